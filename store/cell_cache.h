// Item statistics in memory, for CountsBefore. Thread-safe.
#ifndef BACKSTORY_STORE_CELL_CACHE_H_
#define BACKSTORY_STORE_CELL_CACHE_H_

#include <array>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "features/item.h"
#include "store/cell_codec.h"
#include "store/database.h"

namespace backstory {

class CellCache {
 public:
  CellCache(const Database* database, size_t bytes) : database_(database), shard_bytes_(bytes / kShards) {}

  // Outcomes in cells before `end_hour`.
  absl::StatusOr<ItemCounts> CountsBefore(std::string_view ns, uint64_t item_id, int64_t end_hour);

  // Commit thread, before the commit that changes cells of this prefix (CellPrefix) can be seen. Every Announce is followed
  // by its Apply, or by Clear. Between the two a load may or may not see the change, so what it loaded is not kept:
  // Apply would count the change twice.
  void Announce(const std::string& prefix);
  // Commit thread, after the commit that holds these changes.
  void Apply(const std::string& prefix, const std::vector<Cell>& changes);
  // Forgets all: after a failed commit.
  void Clear();

 private:
  static constexpr size_t kShards = 64;
  struct Entry {
    std::vector<Cell> cells;   // sorted by (hour, outcome)
    std::vector<Cell> totals;  // hour 0: sums over all hours, sorted by outcome
    std::list<std::string>::iterator age;
  };
  struct Shard {
    std::mutex mutex;  // guards all below
    std::unordered_map<std::string, Entry> entries;
    std::list<std::string> ages;  // most recently used first
    size_t bytes = 0;
    uint64_t generation = 0;  // changes with every Announce
    uint64_t announced = 0;   // changes whose Apply is to come
  };

  absl::StatusOr<std::vector<Cell>> Load(const std::string& prefix) const;
  Shard& ShardOf(const std::string& prefix) { return shards_[std::hash<std::string>()(prefix) % kShards]; }

  const Database* database_;
  const size_t shard_bytes_;
  std::array<Shard, kShards> shards_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_CELL_CACHE_H_
