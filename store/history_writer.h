// Every change of a history: append, delete, merge, retain. Internal to store/; one instance, commit thread only.
#ifndef BACKSTORY_STORE_HISTORY_WRITER_H_
#define BACKSTORY_STORE_HISTORY_WRITER_H_

#include <rocksdb/write_batch.h>

#include <atomic>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/block_editor.h"
#include "store/cell_cache.h"
#include "store/commit_queue.h"
#include "store/database.h"
#include "store/history_store.h"
#include "store/user_record.h"

namespace backstory {

// Counters of the whole store, one record of the default column family, written with every commit.
struct StoreTotals {
  uint64_t users = 0, events = 0;
  uint64_t retained = 0;  // events dropped by retention: item statistics still count them
  static constexpr const char* kKey = "totals";
};
std::string EncodeTotals(const StoreTotals& totals);
bool DecodeTotals(std::string_view bytes, StoreTotals* totals);

class HistoryWriter : public Committer {
 public:
  HistoryWriter(Database* database, CellCache* cells, size_t cache_bytes)
      : database_(database), cells_(cells), cache_bytes_(cache_bytes) {}
  absl::Status Load();  // the totals; call once

  // Appends the events that `result` does not already reject. keep_ingest: imported events keep their ingest time and
  // are refused by it where the user was deleted.
  absl::Status Append(const UserKey& user, std::span<const Event> events, int64_t now_us, bool keep_ingest,
                      AppendResult* result);
  absl::StatusOr<uint64_t> DeleteEvents(const UserKey& user, const DeleteSelector& what, int64_t now_us);
  absl::StatusOr<uint64_t> DeleteUser(const UserKey& user, int64_t now_us);
  absl::Status Merge(const UserKey& alias, const UserKey& primary);
  absl::StatusOr<uint64_t> Retain(const UserKey& user, uint64_t keep);
  // Refuses events from before a deletion that this store did not see (of an imported user who came back after it). Of
  // an alias, or of a user who is not here, the mark says so.
  absl::Status RefuseUntil(const UserKey& user, int64_t until_us);
  // Moves the user's tail records into blocks; what Compact does first.
  absl::Status Fold(const UserKey& user);
  // Any other writes that go into the same commit (catalog, imported marks).
  rocksdb::WriteBatch* batch() { return &batch_; }
  absl::Status Flush();  // makes what is prepared visible to reads of the database, without sync

  absl::Status Commit(bool sync) override;
  uint64_t commits() const { return commits_; }

 private:
  struct Entry {
    std::string prefix;
    UserRecord record;
    bool exists = false;
    bool ids_loaded = false;
    absl::flat_hash_map<uint64_t, int64_t> ids;  // event id -> time, of every stored event
    std::list<Entry>::iterator self;
    size_t accounted = 0;
    size_t bytes() const { return 512 + ids.capacity() * 17; }
  };
  struct Upsert {
    StoredEvent stored;
    std::optional<Event> old;  // what it replaces
  };
  struct Changes {
    std::vector<Upsert> upserts;
    absl::flat_hash_map<uint64_t, size_t> index;  // event id -> upserts
    bool corrected = false;                       // raises the epoch
    // Of a user that merges into this one.
    uint64_t seq_floor = 0, epoch_floor = 0;
    std::vector<std::string> aliases;
  };

  absl::StatusOr<Entry*> Find(const UserKey& user);     // resolves an alias
  absl::StatusOr<Entry*> FindRaw(const UserKey& user);  // does not
  absl::Status LoadIds(Entry* entry);
  absl::Status FlushIfTouched(const Entry& entry);
  absl::StatusOr<std::optional<StoredEvent>> Lookup(const Entry& entry, uint64_t event_id, BlockEditor* editor,
                                                    std::optional<BlockEditor::Tail>* tail);
  // Compares with what is stored and notes the change. kRejected never; kConflict fills nothing.
  absl::StatusOr<EventOutcome> Consider(const Entry& entry, Event event, Changes* changes, BlockEditor* editor,
                                        std::optional<BlockEditor::Tail>* tail);
  absl::Status Apply(Entry* entry, Changes* changes);
  // Blocks or a tail record of one commit; updates the counters of `record` that depend on where events live.
  absl::Status WriteEvents(const Entry& entry, const std::vector<StoredEvent>& upserts,
                           const std::vector<BlockKey>& removals, bool fold, UserRecord* record);
  std::string Prefix(const UserKey& user) const { return UserPrefix(database_->own_secret(), user); }
  void PutRecord(Entry* entry);
  void AddCell(const std::string& ns, const Event& event, int64_t change);
  void Touch(Entry* entry);
  void Account(Entry* entry);  // keeps bytes_ right after an entry grew
  void Drop(const std::string& prefix);
  void EmitCells();
  absl::Status WriteBatch(bool sync);
  void ForgetCaches();

  Database* const database_;
  CellCache* const cells_;
  const size_t cache_bytes_;

  StoreTotals totals_;
  std::atomic<uint64_t> commits_{0};
  size_t bytes_ = 0;
  std::list<Entry> entries_;  // most recently used first
  absl::flat_hash_map<std::string, Entry*> by_prefix_;

  // Prepared since the last Flush.
  rocksdb::WriteBatch batch_;
  std::unordered_set<std::string> touched_;
  std::unordered_map<std::string, std::pair<std::string, std::vector<Cell>>>
      pending_cells_;    // key -> item prefix, changes
  absl::Status failed_;  // a Flush of this group failed: so does the group
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_HISTORY_WRITER_H_
