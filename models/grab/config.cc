#include "models/grab/config.h"

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "features/tokenizer.h"

namespace backstory::grab {
namespace {

constexpr size_t kNameBytesMax = 64;
constexpr int kChannelsMax = 8;
constexpr int kTasksMax = 16;
// Largest embedding table in elements: 2^33 floats are 32 GiB.
constexpr uint64_t kTableElementsMax = uint64_t{1} << 33;

bool IsName(std::string_view name) {
  if (name.empty() || name.size() > kNameBytesMax) return false;
  for (char c : name) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-')) return false;
  }
  return true;
}

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is outside [", min, ", ", max, "]"));
}

absl::Status CheckName(const std::string& field, const std::string& name) {
  if (IsName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": \"", name, "\" does not match [a-z0-9_-]{1,64}"));
}

absl::Status CheckWidths(const Config& c) {
  struct Bound {
    const char* field;
    int64_t value, min, max;
  };
  for (const Bound& b : {
           Bound{"d", c.d, 1, 4096},
           Bound{"heads", c.heads, 1, 64},
           Bound{"d_head", c.d_head, 1, 512},
           Bound{"layers", c.layers, 1, 64},
           Bound{"latent", c.latent, 0, c.d},
           Bound{"ffn", c.ffn, 1, 16384},
           Bound{"n_pos", c.n_pos, 2, 65536},
           Bound{"n_time", c.n_time, 2, 4096},
           Bound{"n_act", c.n_act, 2, 4096},
           Bound{"window_rows", c.window_rows, 1, INT64_MAX},
           // Windows are compared in microseconds.
           Bound{"window_sec", c.window_sec, 1, INT64_MAX / 1'000'000},
           Bound{"embedding", c.embedding, 1, 4096},
           Bound{"gate_mlp_hidden", c.gate_mlp_hidden, 1, 16384},
           Bound{"head_hidden", c.head_hidden, 1, 16384},
           Bound{"channels", c.channels(), 1, kChannelsMax},
       }) {
    if (absl::Status s = CheckRange(b.field, b.value, b.min, b.max); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckTasks(const Config& c) {
  if (absl::Status s = CheckRange("tasks", static_cast<int64_t>(c.tasks.size()), 1, kTasksMax); !s.ok()) return s;
  std::set<std::string> seen;
  for (const std::string& task : c.tasks) {
    if (absl::Status s = CheckName("tasks", task); !s.ok()) return s;
    if (!seen.insert(task).second) return absl::InvalidArgumentError(absl::StrCat("tasks: \"", task, "\" twice"));
  }
  return absl::OkStatus();
}

// The tokenizer alone is valid; what it may emit must also fit the codebooks and tables of this model.
absl::Status CheckTokenizerFits(const Config& c) {
  const TokenizerConfig& t = c.tokenizer;
  const int64_t last_class = c.n_act - 2;  // n_act - 1 is the candidate itself
  if (absl::Status s = CheckRange("tokenizer.default_action_class", t.default_action_class, 0, last_class); !s.ok()) {
    return s;
  }
  for (const ActionRule& rule : t.actions) {
    if (absl::Status s = CheckRange("tokenizer.actions.action_class", rule.action_class, 0, last_class); !s.ok()) {
      return s;
    }
  }
  if (t.partial.empty()) return absl::InvalidArgumentError("tokenizer.partial: a history row needs at least one field");
  if (t.full.empty() && t.full_dense.empty()) {
    return absl::InvalidArgumentError("tokenizer.full: a candidate needs at least one field");
  }
  for (const auto* view : {&t.partial, &t.full}) {
    for (const SparseFieldConfig& field : *view) {
      if (uint64_t{field.vocab} * static_cast<uint64_t>(c.embedding) <= kTableElementsMax) continue;
      return absl::InvalidArgumentError(absl::StrCat("tokenizer field ", field.name, ": vocab ", field.vocab,
                                                     " x embedding ", c.embedding, " exceeds ", kTableElementsMax));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Config& config) {
  if (absl::Status s = CheckName("name", config.name); !s.ok()) return s;
  if (absl::Status s = CheckWidths(config); !s.ok()) return s;
  if (absl::Status s = CheckTasks(config); !s.ok()) return s;
  if (absl::Status s = ValidateTokenizerConfig(config.tokenizer); !s.ok()) return s;
  return CheckTokenizerFits(config);
}

}  // namespace backstory::grab
