// Every read of a history, each from one snapshot. Internal to store/; thread-safe.
#ifndef BACKSTORY_STORE_HISTORY_READER_H_
#define BACKSTORY_STORE_HISTORY_READER_H_

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "store/database.h"
#include "store/event_codec.h"
#include "store/history_store.h"
#include "store/user_record.h"

namespace backstory {

class HistoryReader {
 public:
  explicit HistoryReader(const Database* database) : database_(database) {}

  absl::StatusOr<UserHead> Head(const UserKey& user) const;
  absl::StatusOr<HistoryTail> Tail(const UserKey& user, uint64_t after_seq) const;
  absl::StatusOr<HistoryStore::Snapshot> Read(const UserKey& user, const HistoryRange& range) const;
  // The record the user's events are under, aliases resolved; its head continues a deleted user's.
  absl::StatusOr<UserRecord> Record(const UserKey& user, const rocksdb::Snapshot* snapshot) const;

 private:
  absl::Status Damaged(const UserKey& user) const;
  std::string Prefix(const UserKey& user) const;
  absl::Status ReadTail(const UserRecord& record, uint64_t after_seq, const rocksdb::Snapshot* snapshot,
                        std::vector<StoredEvent>* events) const;
  absl::Status ReadChangedBlocks(const UserRecord& record, uint64_t after_seq, const rocksdb::Snapshot* snapshot,
                                 std::vector<StoredEvent>* events) const;

  const Database* const database_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_HISTORY_READER_H_
