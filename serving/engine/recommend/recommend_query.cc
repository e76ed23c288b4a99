#include "serving/engine/recommend/recommend_query.h"

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

absl::Status CheckRange(std::string_view field, size_t value, size_t min, size_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), " is ", value, ", must be within ", min, "..", max));
}

absl::Status CheckCount(std::string_view field, size_t entries, size_t max) {
  if (entries <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), " has ", entries, " entries, the limit is ", max));
}

}  // namespace

absl::Status ValidateRecommendQuery(const RankQuery& request, const RecommendSpec& spec) {
  if (auto s = ValidateRequest(request); !s.ok()) return s;
  if (auto s = CheckRange("count", spec.count, 1, kRecommendCountMax); !s.ok()) return s;
  if (auto s = CheckRange("beam", spec.beam, 0, kRecommendBeamMax); !s.ok()) return s;
  if (auto s = CheckCount("exclude_item_ids", spec.exclude_items.size(), kExcludedItemsMax); !s.ok()) return s;
  if (auto s = CheckCount("include_categories", spec.include_categories.size(), kIncludedCategoriesMax); !s.ok())
    return s;
  for (const std::string& category : spec.include_categories) {
    if (!category.empty() && category.size() <= kFeatureTextBytesMax) continue;
    return absl::InvalidArgumentError(absl::StrCat("include_categories: a category has ", category.size(),
                                                   " bytes, 1..", kFeatureTextBytesMax, " are allowed"));
  }
  if (spec.per_sid_max.has_value()) {
    if (auto s = CheckRange("per_sid_max", *spec.per_sid_max, 0, kRecommendCountMax); !s.ok()) return s;
  }
  if (!spec.rank.has_value()) return absl::OkStatus();
  return CheckRange("rank.candidates", spec.rank->candidates, 0, kCandidatesMax);
}

}  // namespace backstory
