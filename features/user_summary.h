// A running UserSummary: the same numbers as Summarise, without walking the history again for every request or target.
#ifndef BACKSTORY_FEATURES_USER_SUMMARY_H_
#define BACKSTORY_FEATURES_USER_SUMMARY_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/container/flat_hash_set.h"
#include "features/tokenizer.h"

namespace backstory {

// Sums over the leading rows that are before and closed at a moment. Equal to Summarise(rows, now_us, tie, items) when
// the rows before the ones already counted have not changed: ExtendJoin's return value says; Reset if it is <
// counted(). Not thread-safe. Memory: the summary and 8 to 16 bytes per request among the rows.
class SummaryAccumulator {
 public:
  // Counts rows up to now_us, which must not be before the one of the last call, and returns the summary. O(new rows);
  // O(rows) if the tie group is a request that began before now.
  UserSummary At(std::span<const HistoryRow> rows, int64_t now_us, int64_t tie, const ItemLookup& items);
  size_t counted() const { return counted_; }
  void Reset() { *this = SummaryAccumulator(); }

 private:
  UserSummary sums_;
  size_t counted_ = 0;
  absl::flat_hash_set<int64_t> request_ties_;
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_USER_SUMMARY_H_
