#include <cmath>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "features/tokenizer.h"

namespace backstory {
namespace {

constexpr uint32_t kFeatureVersions[] = {1};
constexpr size_t kFieldsMax = 64;
constexpr size_t kChannelsMax = 8;
constexpr size_t kRulesMax = 64;
constexpr int32_t kActionClassesMax = 255;
constexpr size_t kNameBytesMax = 64;
constexpr uint32_t kVocabMax = 1u << 28;
constexpr int64_t kHourUs = 3'600'000'000;
constexpr int64_t kLabelWindowMaxUs = 90 * 24 * kHourUs;

absl::Status Bad(const std::string& field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.", field, ": ", what));
}

bool IsName(const std::string& name) {
  if (name.empty() || name.size() > kNameBytesMax) return false;
  for (char c : name) {
    const bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    if (!ok) return false;
  }
  return true;
}

enum class View { kPartial, kFull };

bool Allowed(SparseSource source, View view) {
  switch (source) {
    case SparseSource::kItemId:
    case SparseSource::kItemCategories:
    case SparseSource::kItemSid:
    case SparseSource::kItemYear:
    case SparseSource::kScene:
    case SparseSource::kHourOfDay:
    case SparseSource::kDayOfWeek:
      return true;
    case SparseSource::kActionClass:
    case SparseSource::kActionValue:
    case SparseSource::kPosition:
    case SparseSource::kEventContext:
      return view == View::kPartial;
    case SparseSource::kUserId:
    case SparseSource::kRequestFeature:
    case SparseSource::kItemString:
      return view == View::kFull;
  }
  return false;
}

bool NeedsAttribute(SparseSource source) {
  return source == SparseSource::kEventContext || source == SparseSource::kRequestFeature ||
         source == SparseSource::kItemString;
}

bool NeedsAttribute(DenseSource source) {
  return source == DenseSource::kItemNumber || source == DenseSource::kRequestNumber;
}

absl::Status CheckAttribute(const std::string& where, bool needed, const std::string& attribute) {
  if (!needed && !attribute.empty()) return Bad(where + ".attribute", "must be empty for this source");
  if (needed && (attribute.empty() || attribute == "cand." || attribute.size() > kNameBytesMax)) {
    return Bad(where + ".attribute", absl::StrCat("1 to ", kNameBytesMax, " bytes needed for this source"));
  }
  return absl::OkStatus();
}

absl::Status CheckSparse(const std::vector<SparseFieldConfig>& fields, View view, std::set<std::string>* names,
                         std::map<std::string, uint32_t>* tables) {
  const std::string list = view == View::kPartial ? "partial" : "full";
  if (fields.size() > kFieldsMax) return Bad(list, absl::StrCat(fields.size(), " fields, limit ", kFieldsMax));
  for (size_t i = 0; i < fields.size(); ++i) {
    const SparseFieldConfig& field = fields[i];
    const std::string where = absl::StrCat(list, "[", i, "]");
    if (!IsName(field.name)) return Bad(where + ".name", "1 to 64 of [A-Za-z0-9_-] needed");
    if (!names->insert(field.name).second) return Bad(where + ".name", absl::StrCat("'", field.name, "' used twice"));
    if (!IsName(field.table)) return Bad(where + ".table", "1 to 64 of [A-Za-z0-9_-] needed");
    if (field.vocab < 2 || field.vocab > kVocabMax) {
      return Bad(where + ".vocab", absl::StrCat(field.vocab, " is outside 2..", kVocabMax));
    }
    const auto table = tables->emplace(field.table, field.vocab).first;
    if (table->second != field.vocab) {
      return Bad(where + ".vocab", absl::StrCat(field.vocab, " differs from ", table->second,
                                                " of another field of table '", field.table, "'"));
    }
    if (!Allowed(field.source, view)) {
      return Bad(where + ".source",
                 absl::StrCat("source ", static_cast<int>(field.source), " is not allowed in ", list, " tokens"));
    }
    if (auto status = CheckAttribute(where, NeedsAttribute(field.source), field.attribute); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckDense(const TokenizerConfig& config, std::set<std::string>* names) {
  if (config.full_dense.size() > kFieldsMax) {
    return Bad("full_dense", absl::StrCat(config.full_dense.size(), " fields, limit ", kFieldsMax));
  }
  for (size_t i = 0; i < config.full_dense.size(); ++i) {
    const DenseFieldConfig& field = config.full_dense[i];
    const std::string where = absl::StrCat("full_dense[", i, "]");
    if (!IsName(field.name)) return Bad(where + ".name", "1 to 64 of [A-Za-z0-9_-] needed");
    if (!names->insert(field.name).second) return Bad(where + ".name", absl::StrCat("'", field.name, "' used twice"));
    if (field.source > DenseSource::kUserCategoryRate) return Bad(where + ".source", "unknown source");
    if (!(field.prior > 0 && field.prior < 1)) return Bad(where + ".prior", "must be inside (0, 1)");
    if (!(field.prior_weight >= 0 && field.prior_weight <= 1e6f)) return Bad(where + ".prior_weight", "outside 0..1e6");
    if (!std::isfinite(field.prior_value)) return Bad(where + ".prior_value", "must be finite");
    if (!std::isfinite(field.scale)) return Bad(where + ".scale", "must be finite");
    if (auto status = CheckAttribute(where, NeedsAttribute(field.source), field.attribute); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool IsClass(int32_t action_class) { return action_class >= 0 && action_class < kActionClassesMax; }

absl::Status CheckActions(const TokenizerConfig& config) {
  const std::string limit = absl::StrCat("must be in 0..", kActionClassesMax - 1);
  if (config.actions.size() > kRulesMax) {
    return Bad("actions", absl::StrCat(config.actions.size(), " rules, limit ", kRulesMax));
  }
  for (size_t i = 0; i < config.actions.size(); ++i) {
    const ActionRule& rule = config.actions[i];
    if (!IsClass(rule.action_class)) return Bad(absl::StrCat("actions[", i, "].action_class"), limit);
    if (!(rule.min_value < rule.max_value)) {
      return Bad(absl::StrCat("actions[", i, "].min_value"), "must be less than max_value");
    }
  }
  if (!IsClass(config.default_action_class)) return Bad("default_action_class", limit);
  if (config.label.action == ActionType::kNone) return Bad("label.action", "must name an action type");
  if (!std::isfinite(config.label.min_value)) return Bad("label.min_value", "must be finite");
  return absl::OkStatus();
}

absl::Status CheckChannels(const TokenizerConfig& config) {
  if (config.channels.empty() || config.channels.size() > kChannelsMax) {
    return Bad("channels", absl::StrCat(config.channels.size(), " channels, 1 to ", kChannelsMax, " needed"));
  }
  std::set<std::string> names;
  for (size_t c = 0; c < config.channels.size(); ++c) {
    const std::string where = absl::StrCat("channels[", c, "]");
    if (!IsName(config.channels[c].name)) return Bad(where + ".name", "1 to 64 of [A-Za-z0-9_-] needed");
    if (!names.insert(config.channels[c].name).second) return Bad(where + ".name", "used twice");
    for (int32_t action_class : config.channels[c].action_classes) {
      if (!IsClass(action_class)) return Bad(where + ".action_classes", "class outside the limit");
    }
  }
  return absl::OkStatus();
}

bool WantsItemBins(const TokenizerConfig& config) {
  for (const DenseFieldConfig& field : config.full_dense) {
    if (field.source == DenseSource::kItemRate) return true;
  }
  return false;
}

}  // namespace

absl::Status ValidateTokenizerConfig(const TokenizerConfig& config) {
  bool supported = false;
  for (uint32_t version : kFeatureVersions) supported = supported || config.feature_version == version;
  if (!supported)
    return Bad("feature_version", absl::StrCat(config.feature_version, " is not supported; supported: 1"));
  std::map<std::string, uint32_t> tables;
  std::set<std::string> partial_names, full_names;
  if (config.partial.empty()) return Bad("partial", "at least one field needed");
  if (config.full.empty() && config.full_dense.empty()) return Bad("full", "at least one field needed");
  if (auto s = CheckSparse(config.partial, View::kPartial, &partial_names, &tables); !s.ok()) return s;
  if (auto s = CheckSparse(config.full, View::kFull, &full_names, &tables); !s.ok()) return s;
  if (auto s = CheckDense(config, &full_names); !s.ok()) return s;
  if (auto s = CheckActions(config); !s.ok()) return s;
  if (auto s = CheckChannels(config); !s.ok()) return s;
  const float threshold = config.label.min_value;
  const bool on_bin = threshold <= 0 || (threshold <= 7.5f && threshold * 2 == std::floor(threshold * 2));
  if (WantsItemBins(config) && !on_bin) {
    return Bad("label.min_value",
               "with an item rate it must be <= 0 or a multiple of 0.5 up to 7.5 (the bins of item counts)");
  }
  if (config.label_window_us < 0 || config.label_window_us > kLabelWindowMaxUs) {
    return Bad("label_window_us", absl::StrCat("outside 0..", kLabelWindowMaxUs));
  }
  if (config.stats_granularity_us < kHourUs || config.stats_granularity_us % kHourUs != 0) {
    return Bad("stats_granularity_us", absl::StrCat("must be a positive multiple of ", kHourUs));
  }
  return absl::OkStatus();
}

}  // namespace backstory
