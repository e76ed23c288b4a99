// Item statistics over a set of events in memory: what HistoryStore::CountsBefore answers for a stored set.
#ifndef BACKSTORY_FEATURES_ITEM_COUNTS_H_
#define BACKSTORY_FEATURES_ITEM_COUNTS_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "features/event.h"
#include "features/item.h"

namespace backstory {

// Add all events of all users (live ones: no duplicates, no tombstones), Seal, then ask. Thread-safe once sealed.
// Memory: 16 bytes an event and about 2 bytes of snapshots.
class ItemCountIndex {
 public:
  void Add(const Event& event);
  void Seal();
  // Outcomes of the item with event time before `before_us` rounded down to a multiple of `granularity_us` (> 0).
  // O(log events of the item).
  ItemCounts CountsBefore(uint64_t item_id, int64_t before_us, int64_t granularity_us) const;

 private:
  static constexpr size_t kStride = 64;
  struct Outcome {
    int64_t time_us;
    uint16_t action;  // 0 = an exposure
    uint8_t value_bin;
  };
  struct PerItem {
    std::vector<Outcome> outcomes;      // sorted by time once sealed
    std::vector<ItemCounts> snapshots;  // [i]: counts of outcomes [0, (i + 1) * kStride)
  };
  static void Count(const Outcome& outcome, ItemCounts* counts);

  absl::flat_hash_map<uint64_t, PerItem> items_;
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_ITEM_COUNTS_H_
