#include "serving/cli/model_report.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "models/grab/tensors.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

using grab::Config;
using nlohmann::json;

// 12,345,678
std::string Grouped(uint64_t number) {
  std::string digits = absl::StrCat(number);
  for (size_t end = digits.size(); end > 3; end -= 3) digits.insert(end - 3, ",");
  return digits;
}

std::string Line(const char* label, const std::string& value) { return absl::StrFormat("  %-26s %s\n", label, value); }

std::string ArchitectureText(const Config& c) {
  std::string text;
  text += Line("layers", absl::StrCat(c.layers));
  text +=
      Line("channels", absl::StrJoin(c.tokenizer.channels, ", ", [](std::string* out, const ChannelConfig& channel) {
             absl::StrAppend(out, channel.name);
           }));
  text += Line("width", absl::StrFormat("d %d, %d heads x %d, ffn %d%s", c.d, c.heads, c.d_head, c.ffn,
                                        c.latent > 0 ? absl::StrCat(", latent ", c.latent) : ""));
  text += Line("norm", c.norm == grab::Norm::kPre ? "pre" : "post");
  text += Line("target mixing", c.target_mixing ? "yes" : "no");
  text += Line("codebooks", absl::StrFormat("%d positions, %d time buckets, %d actions", c.n_pos, c.n_time, c.n_act));
  text += Line("attention window", absl::StrFormat("%s rows, %s s", Grouped(static_cast<uint64_t>(c.window_rows)),
                                                   Grouped(static_cast<uint64_t>(c.window_sec))));
  text += Line("tasks", absl::StrJoin(c.tasks, ", "));
  const auto names = [](const std::vector<SparseFieldConfig>& fields) {
    return absl::StrJoin(fields, ", ",
                         [](std::string* out, const SparseFieldConfig& field) { absl::StrAppend(out, field.name); });
  };
  text += Line("history fields", names(c.tokenizer.partial));
  text += Line("candidate fields", names(c.tokenizer.full));
  text += Line("candidate numbers",
               absl::StrJoin(c.tokenizer.full_dense, ", ", [](std::string* out, const DenseFieldConfig& field) {
                 absl::StrAppend(out, field.name);
               }));
  return text;
}

std::string CostText(const Config& config) {
  const grab::Costs costs = grab::CostsOf(config);
  std::string text;
  text += Line("parameters",
               absl::StrFormat("%s (%s in tables)", Grouped(costs.parameters), Grouped(costs.table_parameters)));
  text += Line("K/V", absl::StrFormat("%s bytes per row and channel", Grouped(costs.kv_bytes_per_row)));
  text += Line("appending a row",
               absl::StrFormat("%s MACs per channel, attention excluded", Grouped(costs.macs_per_appended_row)));
  text += Line("scoring a candidate",
               absl::StrFormat("%s MACs + %s per history row and channel", Grouped(costs.macs_per_candidate),
                               Grouped(costs.macs_per_candidate_and_row)));
  return text;
}

json ConfigJson(const Config& c) {
  json channels = json::array(), partial = json::array(), full = json::array(), dense = json::array();
  for (const auto& channel : c.tokenizer.channels) channels.push_back(channel.name);
  for (const auto& field : c.tokenizer.partial) partial.push_back(field.name);
  for (const auto& field : c.tokenizer.full) full.push_back(field.name);
  for (const auto& field : c.tokenizer.full_dense) dense.push_back(field.name);
  return {{"layers", c.layers},
          {"channels", channels},
          {"d", c.d},
          {"heads", c.heads},
          {"d_head", c.d_head},
          {"ffn", c.ffn},
          {"latent", c.latent},
          {"norm", c.norm == grab::Norm::kPre ? "pre" : "post"},
          {"target_mixing", c.target_mixing},
          {"n_pos", c.n_pos},
          {"n_time", c.n_time},
          {"n_act", c.n_act},
          {"window_rows", c.window_rows},
          {"window_sec", c.window_sec},
          {"embedding", c.embedding},
          {"gate_mlp_hidden", c.gate_mlp_hidden},
          {"head_hidden", c.head_hidden},
          {"tasks", c.tasks},
          {"feature_version", c.tokenizer.feature_version},
          {"partial", partial},
          {"full", full},
          {"full_dense", dense}};
}

}  // namespace

std::string VersionText(const grab::VersionFiles& files, const std::string& state_id, bool tensors) {
  std::string text = absl::StrFormat("%s version %s\n", files.config.name, files.version);
  text += Line("content hash", files.hash);
  text += Line("state id", state_id);
  text += ArchitectureText(files.config);
  text += CostText(files.config);
  text += Line("goldens", absl::StrCat(files.goldens.size(), " cases"));
  text += Line("calibrations", files.calibrations.empty()
                                   ? std::string("none")
                                   : absl::StrJoin(files.calibrations, ", ", [](std::string* out, const auto& entry) {
                                       absl::StrAppend(out, entry.first);
                                     }));
  for (const auto& [name, bytes] : files.files) text += Line("file", absl::StrCat(name, " ", Grouped(bytes), " bytes"));
  if (!tensors) return text + Line("tensors", absl::StrCat(files.tensors.size(), " (--tensors lists them)"));
  for (const std::string& name : files.tensors.Names()) {
    text += Line("tensor", absl::StrCat(name, " ", ShapeText(files.tensors.Find(name)->shape)));
  }
  return text;
}

json VersionJson(const grab::VersionFiles& files, const std::string& state_id) {
  const grab::Costs costs = grab::CostsOf(files.config);
  json calibrations = json::array();
  for (const auto& [number, calibration] : files.calibrations) calibrations.push_back(number);
  json tensors = json::array();
  for (const std::string& name : files.tensors.Names()) {
    tensors.push_back({{"name", name}, {"shape", files.tensors.Find(name)->shape}});
  }
  return {{"name", files.config.name},
          {"version", files.version},
          {"content_hash", files.hash},
          {"state_id", state_id},
          {"config", ConfigJson(files.config)},
          {"parameters", costs.parameters},
          {"table_parameters", costs.table_parameters},
          {"kv_bytes_per_row", costs.kv_bytes_per_row},
          {"macs_per_appended_row", costs.macs_per_appended_row},
          {"macs_per_candidate", costs.macs_per_candidate},
          {"macs_per_candidate_and_row", costs.macs_per_candidate_and_row},
          {"goldens", files.goldens.size()},
          {"calibrations", calibrations},
          {"files", files.files},
          {"tensors", tensors}};
}

}  // namespace backstory
