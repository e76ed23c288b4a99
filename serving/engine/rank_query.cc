#include "serving/engine/rank_query.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

absl::Status TooLong(std::string_view field, size_t bytes, size_t limit) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), " has ", bytes, " bytes, the limit is ", limit));
}

absl::Status CheckName(std::string_view field, const std::string& name) {
  if (name.empty()) return absl::InvalidArgumentError(absl::StrCat(std::string(field), " has an empty name"));
  if (name.size() > kFeatureNameBytesMax) {
    return TooLong(absl::StrCat("name in ", std::string(field)), name.size(), kFeatureNameBytesMax);
  }
  return absl::OkStatus();
}

absl::Status CheckLength(const std::string& field, size_t values, size_t candidates) {
  if (values == candidates) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " has ", values, " values for ", candidates, " candidates"));
}

absl::Status CheckNumbers(const CandidateColumns& columns) {
  for (const auto& [name, values] : columns.numbers) {
    if (const absl::Status status = CheckName("candidates.numbers", name); !status.ok()) return status;
    const std::string field = absl::StrCat("candidates.numbers[\"", name, "\"]");
    if (const absl::Status status = CheckLength(field, values.size(), columns.item_ids.size()); !status.ok()) {
      return status;
    }
    for (size_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) {
        return absl::InvalidArgumentError(absl::StrCat(field, " value ", i, " is not finite"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTexts(const CandidateColumns& columns) {
  for (const auto& [name, values] : columns.texts) {
    if (const absl::Status status = CheckName("candidates.texts", name); !status.ok()) return status;
    const std::string field = absl::StrCat("candidates.texts[\"", name, "\"]");
    if (const absl::Status status = CheckLength(field, values.size(), columns.item_ids.size()); !status.ok()) {
      return status;
    }
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i].size() > kFeatureTextBytesMax) {
        return TooLong(absl::StrCat(field, " value ", i), values[i].size(), kFeatureTextBytesMax);
      }
    }
    if (columns.numbers.contains(name)) {
      return absl::InvalidArgumentError(absl::StrCat("candidate column \"", name, "\" is given twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCandidates(const CandidateColumns& columns) {
  if (columns.item_ids.empty()) {
    return absl::InvalidArgumentError("candidates.item_ids is empty, at least 1 is required");
  }
  if (columns.item_ids.size() > kCandidatesMax) {
    return absl::InvalidArgumentError(absl::StrCat("candidates.item_ids has ", columns.item_ids.size(),
                                                   " candidates, the limit is ", kCandidatesMax));
  }
  const size_t names = columns.numbers.size() + columns.texts.size();
  if (names > kCandidateColumnsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("candidates has ", names, " columns, the limit is ", kCandidateColumnsMax));
  }
  if (const absl::Status status = CheckNumbers(columns); !status.ok()) return status;
  return CheckTexts(columns);
}

absl::Status CheckFeatures(const FeatureMap& features) {
  if (features.size() > kRequestFeaturesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("features has ", features.size(), " entries, the limit is ", kRequestFeaturesMax));
  }
  for (const auto& [name, value] : features) {
    if (const absl::Status status = CheckName("features", name); !status.ok()) return status;
    const std::string field = absl::StrCat("features[\"", name, "\"]");
    if (value.is_number && !std::isfinite(value.number)) {
      return absl::InvalidArgumentError(absl::StrCat(field, " is not finite"));
    }
    if (value.text.size() > kFeatureTextBytesMax) return TooLong(field, value.text.size(), kFeatureTextBytesMax);
  }
  return absl::OkStatus();
}

absl::Status CheckTimes(const RankQuery& query) {
  if (query.now_us < 0) return absl::InvalidArgumentError(absl::StrCat("now_us is ", query.now_us, ", must be >= 0"));
  if (query.as_of.event_time_us < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("as_of.event_time_us is ", query.as_of.event_time_us, ", must be >= 0"));
  }
  if (query.as_of.known_by_us < 0) {
    return absl::InvalidArgumentError(absl::StrCat("as_of.known_by_us is ", query.as_of.known_by_us, ", must be >= 0"));
  }
  return absl::OkStatus();
}

}  // namespace

void CancelToken::Cancel() {
  std::lock_guard lock(mutex_);
  if (cancelled_) return;
  cancelled_ = true;
  const std::function<void()> hook = std::exchange(hook_, nullptr);
  if (hook) hook();
}

bool CancelToken::cancelled() const {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

void CancelToken::SetHook(std::function<void()> hook) {
  std::lock_guard lock(mutex_);
  if (!cancelled_) {
    hook_ = std::move(hook);
  } else if (hook) {
    hook();
  }
}

absl::Status ValidateNamespace(const std::string& ns) {
  if (ns.empty()) return absl::InvalidArgumentError("namespace is empty, must match [a-z0-9_-]{1,64}");
  if (ns.size() > 64) return TooLong("namespace", ns.size(), 64);
  if (ns.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") != std::string::npos) {
    return absl::InvalidArgumentError("namespace must match [a-z0-9_-]{1,64}");
  }
  return absl::OkStatus();
}

absl::Status ValidateUser(const std::string& user) {
  if (user.empty()) return absl::InvalidArgumentError("units.user is empty, 1..256 bytes are required");
  if (user.size() > kUnitBytesMax) return TooLong("units.user", user.size(), kUnitBytesMax);
  return absl::OkStatus();
}

absl::Status ValidateRequest(const RankQuery& query) {
  if (const absl::Status status = ValidateNamespace(query.ns); !status.ok()) return status;
  if (query.scene.size() > kSceneBytesMax) return TooLong("scene", query.scene.size(), kSceneBytesMax);
  if (const absl::Status status = ValidateUser(query.units.user); !status.ok()) return status;
  if (query.units.device.size() > kUnitBytesMax) {
    return TooLong("units.device", query.units.device.size(), kUnitBytesMax);
  }
  if (query.units.session.size() > kUnitBytesMax) {
    return TooLong("units.session", query.units.session.size(), kUnitBytesMax);
  }
  if (const absl::Status status = CheckTimes(query); !status.ok()) return status;
  if (query.explain_top < 0 || query.explain_top > kExplainTopMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("explain_top is ", query.explain_top, ", must be within 0..", kExplainTopMax));
  }
  if (query.parameters.size() > kParameterOverridesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameters has ", query.parameters.size(), " entries, the limit is ", kParameterOverridesMax));
  }
  return CheckFeatures(query.features);
}

absl::Status ValidateRankQuery(const RankQuery& query) {
  if (const absl::Status status = ValidateRequest(query); !status.ok()) return status;
  return CheckCandidates(query.candidates);
}

}  // namespace backstory
