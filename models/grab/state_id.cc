#include "models/grab/state_id.h"

#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "features/hash.h"

namespace backstory::grab {
namespace {

// Bumped when the meaning of cached rows changes without any setting changing.
constexpr int kKvFormat = 1;

std::string Settings(const Config& c, Dtype precision) {
  const TokenizerConfig& t = c.tokenizer;
  std::string text =
      absl::StrCat("kv ", kKvFormat, precision == Dtype::kF32 ? " fp32" : " bf16", ";feature_version ",
                   t.feature_version, ";salt ", t.hash_salt, ";label_window ", t.label_window_us, ";open ",
                   static_cast<int>(t.open_rows), ";default_class ", t.default_action_class, ";");
  for (const SparseFieldConfig& f : t.partial) {
    absl::StrAppend(&text, "field ", f.name.size(), ":", f.name, " ", static_cast<int>(f.source), " ",
                    f.attribute.size(), ":", f.attribute, " ", f.table.size(), ":", f.table, " ", f.vocab, ";");
  }
  for (const ActionRule& rule : t.actions) {
    absl::StrAppend(&text, "rule ", static_cast<int>(rule.action), " ",
                    absl::StrFormat("%a %a", rule.min_value, rule.max_value), " ", rule.action_class, ";");
  }
  for (const ChannelConfig& channel : t.channels) {
    absl::StrAppend(&text, "channel");
    for (int32_t action_class : channel.action_classes) absl::StrAppend(&text, " ", action_class);
    absl::StrAppend(&text, ";");
  }
  absl::StrAppend(&text, "d ", c.d, " heads ", c.heads, " d_head ", c.d_head, " layers ", c.layers, " latent ",
                  c.latent, " ffn ", c.ffn, " n_pos ", c.n_pos, " n_time ", c.n_time, " n_act ", c.n_act,
                  " window_rows ", c.window_rows);
  absl::StrAppend(&text, " window_sec ", c.window_sec, " norm ", static_cast<int>(c.norm), " embedding ", c.embedding,
                  " hidden ", c.gate_mlp_hidden);
  return text;
}

void AddTensor(const TensorMap& tensors, const std::string& name, uint64_t* hash) {
  const TensorView* view = tensors.Find(name);
  if (view == nullptr) return;  // of an option that is off; the settings say so
  *hash = HashBytes(name, *hash);
  *hash = HashBytes({reinterpret_cast<const char*>(view->data), view->size * sizeof(float)}, *hash);
}

}  // namespace

std::string StateId(const Config& config, const TensorMap& tensors, Dtype precision) {
  uint64_t hash = HashBytes(Settings(config, precision), 0);
  std::set<std::string> tables;
  for (const SparseFieldConfig& field : config.tokenizer.partial) tables.insert(field.table);
  for (const std::string& table : tables) AddTensor(tensors, absl::StrCat("tok.table.", table), &hash);
  for (const char* name : {"ln.g", "ln.b", "w1", "b1", "w2", "b2", "wg", "bg"}) {
    AddTensor(tensors, absl::StrCat("tok.p.", name), &hash);
  }
  for (int l = 0; l < config.layers; ++l) {
    const bool last = l + 1 == config.layers;
    for (int c = 0; c < config.channels(); ++c) {
      const std::string p = absl::StrCat("w.l", l, ".c", c, ".");
      for (const char* name : {"wd", "wk", "wv", "bact"}) AddTensor(tensors, p + name, &hash);
      if (last && config.norm == Norm::kPost) continue;
      for (const char* name : {"n1.g", "n1.b"}) AddTensor(tensors, p + name, &hash);
      if (last) continue;
      for (const char* name : {"wq", "wo", "w1", "b1", "w2", "b2", "n2.g", "n2.b", "bpos", "btime"}) {
        AddTensor(tensors, p + name, &hash);
      }
    }
  }
  return absl::StrFormat("%016x", hash);
}

}  // namespace backstory::grab
