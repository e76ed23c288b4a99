#include "models/grab/tensors.h"

#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

using Specs = std::vector<TensorSpec>;

void AddTables(const Config& c, Specs* specs) {
  std::map<std::string, int64_t> vocab;
  for (const auto* view : {&c.tokenizer.partial, &c.tokenizer.full}) {
    for (const SparseFieldConfig& field : *view) vocab.emplace(field.table, field.vocab);
  }
  for (const auto& [table, rows] : vocab) specs->push_back({absl::StrCat("tok.table.", table), {rows, c.embedding}});
}

void AddTokenizerNetwork(const Config& c, const char* view, int64_t width, Specs* specs) {
  const std::string p = absl::StrCat("tok.", view, ".");
  const int64_t hidden = c.gate_mlp_hidden, d = c.d;
  specs->insert(specs->end(), {{p + "ln.g", {width}},
                               {p + "ln.b", {width}},
                               {p + "w1", {width, hidden}},
                               {p + "b1", {hidden}},
                               {p + "w2", {hidden, d}},
                               {p + "b2", {d}},
                               {p + "wg", {width, d}},
                               {p + "bg", {d}}});
}

void AddLayer(const Config& c, int layer, Specs* specs) {
  const int64_t d = c.d, wide = int64_t{c.heads} * c.d_head, channels = c.channels();
  const int64_t inner = c.latent > 0 ? c.latent : d;
  if (c.target_mixing) {
    specs->push_back({absl::StrCat("w.l", layer, ".gate.w"), {channels * d, channels}});
    specs->push_back({absl::StrCat("w.l", layer, ".gate.b"), {channels}});
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    const std::string p = absl::StrCat("w.l", layer, ".c", channel, ".");
    if (c.latent > 0) specs->push_back({p + "wd", {d, inner}});
    specs->insert(specs->end(), {{p + "wq", {inner, wide}},
                                 {p + "wk", {inner, wide}},
                                 {p + "wv", {inner, wide}},
                                 {p + "wo", {wide, d}},
                                 {p + "w1", {d, c.ffn}},
                                 {p + "b1", {c.ffn}},
                                 {p + "w2", {c.ffn, d}},
                                 {p + "b2", {d}},
                                 {p + "n1.g", {d}},
                                 {p + "n1.b", {d}},
                                 {p + "n2.g", {d}},
                                 {p + "n2.b", {d}},
                                 {p + "bpos", {c.n_pos, c.d_head}},
                                 {p + "btime", {c.n_time, c.d_head}},
                                 {p + "bact", {c.n_act, c.d_head}}});
  }
}

uint64_t ElementsOf(const TensorSpec& spec) {
  uint64_t elements = 1;
  for (int64_t dim : spec.shape) elements *= static_cast<uint64_t>(dim);
  return elements;
}

}  // namespace

int64_t PartialWidth(const Config& config) {
  return static_cast<int64_t>(config.tokenizer.partial.size()) * config.embedding;
}

int64_t FullWidth(const Config& config) {
  const TokenizerConfig& t = config.tokenizer;
  return static_cast<int64_t>(t.full.size()) * config.embedding + static_cast<int64_t>(t.full_dense.size());
}

std::vector<TensorSpec> ExpectedTensors(const Config& config) {
  Specs specs;
  AddTables(config, &specs);
  AddTokenizerNetwork(config, "p", PartialWidth(config), &specs);
  AddTokenizerNetwork(config, "f", FullWidth(config), &specs);
  for (int layer = 0; layer < config.layers; ++layer) AddLayer(config, layer, &specs);
  const int64_t hidden = config.head_hidden, tasks = static_cast<int64_t>(config.tasks.size());
  specs.push_back({"w.head.w1", {int64_t{config.channels()} * config.d, hidden}});
  specs.push_back({"w.head.b1", {hidden}});
  specs.push_back({"w.head.w2", {hidden, tasks}});
  specs.push_back({"w.head.b2", {tasks}});
  return specs;
}

absl::Status CheckTensors(const Config& config, const TensorMap& tensors) {
  std::set<std::string> expected;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    if (auto found = tensors.Get(spec.name, spec.shape); !found.ok()) return found.status();
    expected.insert(spec.name);
  }
  for (const std::string& name : tensors.Names()) {
    if (expected.contains(name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", name, ": not called for by the configuration, found shape ", ShapeText(tensors.Find(name)->shape)));
  }
  return absl::OkStatus();
}

Costs CostsOf(const Config& config) {
  Costs costs;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    costs.parameters += ElementsOf(spec);
    if (absl::StartsWith(spec.name, "tok.table.")) costs.table_parameters += ElementsOf(spec);
  }
  const uint64_t d = config.d, wide = uint64_t(config.heads) * config.d_head, layers = config.layers;
  const uint64_t channels = config.channels(), latent = config.latent, hidden = config.gate_mlp_hidden;
  const uint64_t inner = latent > 0 ? latent : d;
  const uint64_t down = latent > 0 ? d * latent : 0;
  const uint64_t block = down + 3 * inner * wide + wide * d + 2 * d * config.ffn;
  const auto tokenizer = [&](int64_t width) { return uint64_t(width) * (hidden + d) + hidden * d; };
  costs.kv_bytes_per_row = layers * 2 * wide * sizeof(float);
  // The last layer of a history row needs its K and V alone.
  costs.macs_per_appended_row = tokenizer(PartialWidth(config)) + (layers - 1) * block + down + 2 * inner * wide;
  const uint64_t mixing = config.target_mixing ? channels * d * channels : 0;
  costs.macs_per_candidate = tokenizer(FullWidth(config)) + layers * (mixing + channels * block) +
                             channels * d * config.head_hidden + config.head_hidden * config.tasks.size();
  costs.macs_per_candidate_and_row = layers * 2 * wide;
  return costs;
}

}  // namespace backstory::grab
