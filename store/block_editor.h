// Changes the event blocks of one user. Internal to store/; commit thread only.
#ifndef BACKSTORY_STORE_BLOCK_EDITOR_H_
#define BACKSTORY_STORE_BLOCK_EDITOR_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/database.h"
#include "store/event_codec.h"
#include "store/keys.h"

namespace backstory {

inline constexpr size_t kBlockRowsTarget = 1024;  // 16 KB or so: one disk read, and what a merge rewrites
inline constexpr size_t kBlockRowsSplit = 1536;   // a block grows to this, then full blocks are cut off its front

inline BlockKey KeyOf(const Event& e) { return {e.time_us, e.event_id}; }

// Sees the database as of its last write: what is pending in a batch must be written first.
class BlockEditor {
 public:
  BlockEditor(const Database* database, std::string prefix) : database_(database), prefix_(std::move(prefix)) {}

  struct Tail {
    std::vector<std::string> keys;
    std::vector<StoredEvent> events;  // canonical order
  };
  absl::StatusOr<Tail> ReadTail() const;

  // Every stored event, tail included, canonical order.
  absl::StatusOr<std::vector<StoredEvent>> ReadAll() const;
  // All keys of the user in `history`.
  absl::StatusOr<std::vector<std::string>> ReadKeys() const;

  // The stored event at `key` within blocks; keeps the last block, so ascending lookups decode each block once.
  absl::StatusOr<std::optional<StoredEvent>> Find(BlockKey key);

  // Removes, then inserts; both sorted. Writes whole blocks into `batch`.
  absl::Status Apply(const std::vector<StoredEvent>& upserts, const std::vector<BlockKey>& removals,
                     rocksdb::WriteBatch* batch);
  // Newest time of a live event after Apply; -1 = none.
  absl::StatusOr<int64_t> NewestLive() const;

 private:
  absl::Status Damaged(std::string_view key) const;
  void WriteBlocks(const std::vector<StoredEvent>& events, const std::string& old_key, rocksdb::WriteBatch* batch);

  const Database* database_;
  std::string prefix_;
  std::map<std::string, std::vector<StoredEvent>>
      edited_;  // old block key -> what replaces it ("" = a new first block)
  std::string found_key_;
  std::vector<StoredEvent> found_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_BLOCK_EDITOR_H_
