// Item statistics in memory, for CountsBefore. Thread-safe.
#ifndef BACKSTORY_STORE_CELL_CACHE_H_
#define BACKSTORY_STORE_CELL_CACHE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "features/item.h"
#include "store/cell_codec.h"
#include "store/database.h"

namespace backstory {

class CellCache {
 public:
  CellCache(const Database* database, size_t bytes) : database_(database), shard_bytes_(bytes / kShards) {}

  // Outcomes of items in cells before `end_hour`: calls visit(i, counts) for every i below items.size(), in any order
  // and maybe under a lock, so it must be quick and not come back here. An error ends it.
  using Visit = std::function<void(size_t i, const ItemCounts& counts)>;
  absl::Status CountsBefore(std::string_view ns, std::span<const uint64_t> items, int64_t end_hour, const Visit& visit);

  // Commit thread, before the commit that changes cells of this prefix (CellPrefix) can be seen. Every Announce is
  // followed by its Apply, or by Clear. Between the two a load may or may not see the change, so what it loaded is not
  // kept: Apply would count the change twice.
  void Announce(const std::string& prefix);
  // Commit thread, after the commit that holds these changes.
  void Apply(const std::string& prefix, const std::vector<Cell>& changes);
  // Forgets all: after a failed commit.
  void Clear();

 private:
  static constexpr size_t kShards = 16;
  static constexpr int64_t kNoHour = INT64_MIN;
  struct Key {
    uint32_t ns = 0;
    uint64_t item = 0;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.ns, key.item);
    }
  };
  struct Entry {
    // The last answer: within an hour everybody who looks from now asks the same. First, for it is next to the key.
    int64_t counted_hour = kNoHour;
    ItemCounts counts;
    bool used = true;          // since its turn to leave last came
    std::vector<Cell> cells;   // sorted by (hour, outcome)
    std::vector<Cell> totals;  // hour 0: sums over all hours, sorted by outcome
  };
  struct alignas(64) Shard {
    std::mutex mutex;  // guards all below
    absl::flat_hash_map<Key, Entry> entries;
    std::deque<Key> turns;  // of the entries, next to leave first
    size_t bytes = 0;
    uint64_t generation = 0;  // changes with every Announce
    uint64_t announced = 0;   // changes whose Apply is to come
  };

  absl::StatusOr<std::vector<Cell>> Load(const std::string& prefix) const;
  absl::Status CountMissing(std::string_view ns, Key key, int64_t end_hour, size_t i, const Visit& visit);
  void Evict(Shard* shard);
  static const ItemCounts& CountsOf(Entry* entry, int64_t end_hour);
  static size_t ShardOf(const Key& key) { return absl::Hash<Key>()(key) >> 60; }
  uint32_t NumberOf(std::string_view ns);
  Key KeyOf(const std::string& prefix);

  const Database* database_;
  const size_t shard_bytes_;
  std::shared_mutex names_mutex_;
  std::map<std::string, uint32_t, std::less<>> names_;  // guarded by names_mutex_; namespaces are never forgotten
  std::array<Shard, kShards> shards_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_CELL_CACHE_H_
