#include "features/field_ids.h"

#include <algorithm>
#include <chrono>

namespace backstory::internal {

void FieldIds::Categories(const std::vector<std::string>& categories) {
  if (categories.empty()) return Missing();
  for (const std::string& category : categories) Hashed(category);
}

void FieldIds::CategoryText(std::string_view joined_by_bars) {
  const size_t before = ids_->size();
  ForEachCategory(joined_by_bars, [this](std::string_view category) { Hashed(category); });
  if (ids_->size() == before) Missing();
}

void FieldIds::Sid(const std::vector<uint32_t>& sid) {
  if (sid.empty()) return Missing();
  for (size_t level = 0; level < sid.size(); ++level) Hashed(uint64_t{level} << 32 | sid[level]);
}

void FieldIds::Year(int32_t year) {
  if (year == 0) return Missing();
  Number(year < 1900 ? 0 : static_cast<uint64_t>(year - 1900) / 5 + 1);
}

void FieldIds::OfItem(SparseSource source, const Item* item) {
  if (item == nullptr) return Missing();
  if (source == SparseSource::kItemCategories) return Categories(item->categories);
  if (source == SparseSource::kItemSid) return Sid(item->sid);
  Year(item->year);
}

int YearOf(int64_t time_us) {
  using std::chrono::floor;
  const std::chrono::sys_time<std::chrono::microseconds> time{std::chrono::microseconds(time_us)};
  return static_cast<int>(std::chrono::year_month_day(floor<std::chrono::days>(time)).year());
}

}  // namespace backstory::internal
