#include "store/history_reader.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "store/block_rows.h"
#include "store/keys.h"

namespace backstory {
namespace {

class Snapshot {
 public:
  explicit Snapshot(rocksdb::DB* db) : db_(db), snapshot_(db->GetSnapshot()) {}
  ~Snapshot() { db_->ReleaseSnapshot(snapshot_); }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;
  const rocksdb::Snapshot* get() const { return snapshot_; }

 private:
  rocksdb::DB* db_;
  const rocksdb::Snapshot* snapshot_;
};

// A block's bytes and what was decoded from them.
struct ReadBlock {
  std::string bytes;
  BlockRows rows;
};

// Decoded columns are the larger part of a read's memory: a few are kept per thread for the next read.
constexpr size_t kSpareBlocksMax = 8;
std::vector<std::unique_ptr<ReadBlock>>& Spares() {
  thread_local std::vector<std::unique_ptr<ReadBlock>> spares;
  return spares;
}
std::unique_ptr<ReadBlock> TakeSpare() {
  auto& spares = Spares();
  if (spares.empty()) return std::make_unique<ReadBlock>();
  auto block = std::move(spares.back());
  spares.pop_back();
  return block;
}
void KeepSpare(std::unique_ptr<ReadBlock> block) {
  if (Spares().size() < kSpareBlocksMax) Spares().push_back(std::move(block));
}

bool Visible(const Event& e, const HistoryRange& range) {
  return e.time_us >= range.from_us && e.time_us < range.as_of.event_time_us &&
         (range.as_of.known_by_us == AsOf::kAnyIngestTime || e.ingest_time_us <= range.as_of.known_by_us) &&
         (!e.tombstone || range.include_tombstones);
}

}  // namespace

absl::Status HistoryReader::Damaged(const UserKey& user) const {
  return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": a record in slot ", SlotOf(user.user),
                                          " is malformed; ", DamageAdvice(database_->directory())));
}

std::string HistoryReader::Prefix(const UserKey& user) const { return UserPrefix(database_->own_secret(), user); }

absl::StatusOr<UserRecord> HistoryReader::Record(const UserKey& user, const rocksdb::Snapshot* snapshot) const {
  UserKey id = user;
  for (int hop = 0; hop < 2; ++hop) {  // an alias points to a primary, never to another alias
    UserRecord record;
    std::string value;
    absl::StatusOr<bool> found = database_->Get(Family::kHeads, Prefix(id), &value, snapshot);
    if (!found.ok()) return found.status();
    if (*found) {
      if (!DecodeUserRecord(value, &record) || record.user != id) return Damaged(id);
      if (record.alias_of.empty()) return record;
      id.user = record.alias_of;
      continue;
    }
    record.user = id;
    found = database_->Get(Family::kHeads, DeletedUserKey(database_->own_secret(), id), &value, snapshot);
    if (!found.ok()) return found.status();
    DeletedUser deleted;
    if (*found) {
      if (!DecodeDeletedUser(value, &deleted)) return Damaged(id);
      record.head.seq = record.epoch_seq = deleted.seq;
      record.head.epoch = deleted.epoch;
    }
    return record;
  }
  return Damaged(id);
}

absl::StatusOr<UserHead> HistoryReader::Head(const UserKey& user) const {
  absl::StatusOr<UserRecord> record = Record(user, nullptr);
  if (!record.ok()) return record.status();
  return record->head;
}

absl::Status HistoryReader::ReadTail(const UserRecord& record, uint64_t after_seq, const rocksdb::Snapshot* snapshot,
                                     std::vector<StoredEvent>* events) const {
  if (record.tail_records == 0) return absl::OkStatus();
  const std::string prefix = Prefix(record.user);
  auto it = database_->Scan(Family::kHistory, snapshot);
  const auto first = static_cast<std::ptrdiff_t>(events->size());
  for (it->Seek(MakeTailKey(prefix, after_seq + 1)); it->Valid() && it->key().starts_with(prefix); it->Next()) {
    if (!DecodeBlock(it->value().ToStringView(), events)) return Damaged(record.user);
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  std::sort(events->begin() + first, events->end(),
            [](const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); });
  return absl::OkStatus();
}

absl::Status HistoryReader::ReadChangedBlocks(const UserRecord& record, uint64_t after_seq,
                                              const rocksdb::Snapshot* snapshot,
                                              std::vector<StoredEvent>* events) const {
  const std::string prefix = Prefix(record.user);
  auto it = database_->Scan(Family::kHistory, snapshot);
  for (it->Seek(MakeBlockKey(prefix, {})); it->Valid() && it->key().starts_with(prefix); it->Next()) {
    if (!IsBlockKey(it->key().ToStringView())) break;
    BlockHeader header;
    if (!DecodeBlockHeader(it->value().ToStringView(), &header)) return Damaged(record.user);
    if (header.max_seq <= after_seq) continue;
    if (!DecodeBlock(it->value().ToStringView(), events)) return Damaged(record.user);
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  return absl::OkStatus();
}

absl::StatusOr<HistoryTail> HistoryReader::Tail(const UserKey& user, uint64_t after_seq) const {
  const Snapshot snapshot(database_->rocks());
  absl::StatusOr<UserRecord> record = Record(user, snapshot.get());
  if (!record.ok()) return record.status();
  HistoryTail tail;
  tail.head = record->head;
  if (after_seq == record->head.seq) return tail;
  if (after_seq > record->head.seq || after_seq < record->epoch_seq || after_seq < record->retain_seq) {
    tail.rebuild = true;
    tail.oldest_changed_us = 0;
    return tail;
  }
  std::vector<StoredEvent> events;
  if (after_seq < record->merged_seq) {
    if (absl::Status status = ReadChangedBlocks(*record, after_seq, snapshot.get(), &events); !status.ok())
      return status;
  }
  if (absl::Status status = ReadTail(*record, after_seq, snapshot.get(), &events); !status.ok()) return status;
  std::erase_if(events, [after_seq](const StoredEvent& e) { return e.seq <= after_seq || e.event.tombstone; });
  std::sort(events.begin(), events.end(),
            [](const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); });
  for (StoredEvent& e : events) tail.events.push_back(std::move(e.event));
  if (!tail.events.empty()) tail.oldest_changed_us = tail.events.front().time_us;
  return tail;
}

absl::StatusOr<HistoryStore::Snapshot> HistoryReader::Read(const UserKey& user, const HistoryRange& range) const {
  const backstory::Snapshot snapshot(database_->rocks());
  absl::StatusOr<UserRecord> record = Record(user, snapshot.get());
  if (!record.ok()) return record.status();
  HistoryStore::Snapshot result;
  result.head = record->head;
  if (record->stored == 0 || range.newest == 0) return result;

  std::vector<StoredEvent> tail;
  if (absl::Status status = ReadTail(*record, 0, snapshot.get(), &tail); !status.ok()) return status;
  std::erase_if(tail, [&range](const StoredEvent& e) { return !Visible(e.event, range); });

  // Blocks from the newest backwards until there are enough; events are made once all are known, oldest first, so that
  // each is made in its place and none that is too old is made at all.
  const std::string prefix = Prefix(record->user);
  const BlockFilter filter{range.as_of, range.from_us, range.include_tombstones};
  std::vector<std::unique_ptr<ReadBlock>> blocks;
  uint64_t found = 0;
  auto it = database_->Scan(Family::kHistory, snapshot.get());
  const int64_t last_us = range.as_of.event_time_us == INT64_MAX ? INT64_MAX : range.as_of.event_time_us - 1;
  if (last_us < 0) return result;
  for (it->SeekForPrev(MakeBlockKey(prefix, {last_us, UINT64_MAX})); it->Valid() && it->key().starts_with(prefix);
       it->Prev()) {
    blocks.push_back(TakeSpare());
    ReadBlock& block = *blocks.back();
    block.bytes.assign(it->value().data(), it->value().size());
    if (!block.rows.Decode(block.bytes)) return Damaged(user);
    found += block.rows.Select(filter);
    const bool older_than_range = ParseBlockKey(it->key().ToStringView()).time_us < range.from_us;
    if (older_than_range || found >= range.newest) break;
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());

  const uint64_t total = found + tail.size();
  // The oldest surplus is in the oldest block, unless late events of the tail are older still.
  uint64_t surplus = tail.empty() && total > range.newest ? total - range.newest : 0;
  result.events.reserve(total - surplus);
  for (size_t i = blocks.size(); i-- > 0;) {
    blocks[i]->rows.AppendTo(surplus, &result.events);
    surplus = 0;
    KeepSpare(std::move(blocks[i]));
  }
  const auto middle = static_cast<std::ptrdiff_t>(result.events.size());
  for (StoredEvent& e : tail) result.events.push_back(std::move(e.event));
  std::inplace_merge(result.events.begin(), result.events.begin() + middle, result.events.end(), CanonicalLess);
  if (result.events.size() > range.newest) {
    result.events.erase(result.events.begin(), result.events.end() - static_cast<std::ptrdiff_t>(range.newest));
  }
  return result;
}

}  // namespace backstory
