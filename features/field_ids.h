// Internal to features/: the ids of one sparse field for one value, shared by partial and full tokens.
#ifndef BACKSTORY_FEATURES_FIELD_IDS_H_
#define BACKSTORY_FEATURES_FIELD_IDS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "features/hash.h"
#include "features/item.h"
#include "features/tokenizer_config.h"

namespace backstory::internal {

// Appends ids to a column; made once per field and block.
class FieldIds {
 public:
  FieldIds(const SparseFieldConfig& field, const TokenizerConfig& config, std::vector<uint32_t>* ids)
      : salt_(TableSalt(field.table, config.hash_salt)), vocab_(field.vocab), ids_(ids) {}

  void Missing() { ids_->push_back(0); }
  void Hashed(uint64_t value) { ids_->push_back(TableRow(HashU64(value, salt_), vocab_)); }
  void Hashed(std::string_view text) { ids_->push_back(TableRow(HashBytes(text, salt_), vocab_)); }
  void Text(std::string_view text) { text.empty() ? Missing() : Hashed(text); }
  void Number(uint64_t number) {
    ids_->push_back(static_cast<uint32_t>(number < vocab_ - 2 ? number : vocab_ - 2) + 1);
  }

  void Categories(const std::vector<std::string>& categories);
  void CategoryText(std::string_view joined_by_bars);
  void Sid(const std::vector<uint32_t>& sid);
  void Year(int32_t year);  // 0 = missing
  // The immutable item sources; `item` may be null.
  void OfItem(SparseSource source, const Item* item);

 private:
  uint64_t salt_;
  uint32_t vocab_;
  std::vector<uint32_t>* ids_;
};

inline bool IsImmutableItemSource(SparseSource source) {
  return source == SparseSource::kItemCategories || source == SparseSource::kItemSid ||
         source == SparseSource::kItemYear;
}

// UTC, from microseconds since the epoch (>= 0).
inline uint64_t HourOfDay(int64_t time_us) { return static_cast<uint64_t>(time_us) / 3'600'000'000u % 24; }
inline uint64_t DayOfWeek(int64_t time_us) {  // 0 = Sunday; the epoch was a Thursday
  return (static_cast<uint64_t>(time_us) / 86'400'000'000u + 4) % 7;
}
int YearOf(int64_t time_us);

// Calls visit(category) for each non-empty part of "a|b|c".
template <typename Visit>
void ForEachCategory(std::string_view joined_by_bars, const Visit& visit) {
  while (!joined_by_bars.empty()) {
    const size_t bar = joined_by_bars.find('|');
    const std::string_view part = joined_by_bars.substr(0, bar);
    if (!part.empty()) visit(part);
    if (bar == std::string_view::npos) break;
    joined_by_bars.remove_prefix(bar + 1);
  }
}

}  // namespace backstory::internal

#endif  // BACKSTORY_FEATURES_FIELD_IDS_H_
