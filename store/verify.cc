#define XXH_INLINE_ALL
#include <rocksdb/db.h>
#include <xxhash.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"
#include "store/cell_codec.h"
#include "store/database.h"
#include "store/event_codec.h"
#include "store/history_writer.h"
#include "store/item_codec.h"
#include "store/keys.h"
#include "store/maintenance.h"
#include "store/user_record.h"

namespace backstory {
namespace {

constexpr size_t kProblemsMax = 100;

// Order-independent: the sum over events equals the sum over cells if and only if (but for chance) they agree.
uint64_t CellHash(std::string_view ns, uint64_t item, uint32_t hour, uint32_t outcome) {
  std::string bytes(ns);
  PutFixed64(&bytes, item);
  PutFixed32(&bytes, hour);
  PutFixed32(&bytes, outcome);
  return XXH3_64bits(bytes.data(), bytes.size());
}

class Verifier {
 public:
  Verifier(std::string directory, ReadOnlyFiles files) : directory_(std::move(directory)), files_(std::move(files)) {}

  VerifyReport Run() {
    report_.sst_files = files_.LiveSsts().size();
    rocksdb::ReadOptions read;
    if (const rocksdb::Status status = files_.db->VerifyChecksum(read); !status.ok()) Problem(status.ToString());
    CheckHeads();
    CheckHistories();
    CheckCells();
    CheckCatalog();
    return std::move(report_);
  }

 private:
  struct Sums {
    uint64_t live = 0, stored = 0, hash = 0, tail_events = 0, tail_records = 0;
    int64_t newest_us = -1;
  };

  void Problem(const std::string& what) {
    if (report_.problems.size() < kProblemsMax) report_.problems.push_back(absl::StrCat(directory_, ": ", what));
  }
  std::unique_ptr<rocksdb::Iterator> Scan(Family f) {
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    return std::unique_ptr<rocksdb::Iterator>(files_.db->NewIterator(read, files_.handles[static_cast<size_t>(f)]));
  }
  void Ended(const rocksdb::Iterator& it, const char* what) {
    if (!it.status().ok()) Problem(absl::StrCat(what, ": ", it.status().ToString()));
  }
  bool Get(Family f, const std::string& key, std::string* value) {
    return files_.db->Get({}, files_.handles[static_cast<size_t>(f)], key, value).ok();
  }

  void CheckHeads() {
    std::string value;
    StoreTotals totals;
    if (Get(Family::kMeta, StoreTotals::kKey, &value) && !DecodeTotals(value, &totals)) Problem("totals: malformed");
    uint64_t events = 0;
    auto it = Scan(Family::kHeads);
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      if (it->key().size() != kUserPrefixBytes) continue;
      UserRecord record;
      if (!DecodeUserRecord(it->value().ToStringView(), &record)) {
        Problem("heads: a record is malformed");
        continue;
      }
      if (!record.alias_of.empty()) {
        ++report_.aliases;
        continue;
      }
      ++report_.users;
      events += record.head.events;
      if (record.stored > 0) CheckHasHistory(it->key().ToString(), record);
    }
    Ended(*it, "heads");
    retained_ = totals.retained > 0;
    if (report_.users != totals.users || events != totals.events) {
      Problem(absl::StrCat("totals: ", totals.users, " users and ", totals.events, " events recorded, ", report_.users,
                           " and ", events, " found in heads"));
    }
  }

  void CheckHasHistory(const std::string& prefix, const UserRecord& record) {
    auto it = Scan(Family::kHistory);
    it->Seek(prefix);
    if (!it->Valid() || !it->key().starts_with(prefix)) {
      Problem(absl::StrCat("history: a user of slot ", SlotOf(record.user.user), " has ", record.stored,
                           " events and no records"));
    }
  }

  void CheckHistories() {
    auto it = Scan(Family::kHistory);
    std::string prefix;
    Sums sums;
    BlockKey last;
    bool any = false;
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      const std::string_view key = it->key().ToStringView();
      if (!IsBlockKey(key) && !IsTailKey(key)) {
        Problem("history: a key is malformed");
        continue;
      }
      if (key.substr(0, kUserPrefixBytes) != prefix) {
        if (any) CheckUser(prefix, sums);
        prefix = key.substr(0, kUserPrefixBytes);
        sums = Sums();
        last = BlockKey();
        any = true;
        ns_.clear();
        if (std::string value; Get(Family::kHeads, prefix, &value)) {
          UserRecord record;
          if (DecodeUserRecord(value, &record)) ns_ = record.user.ns;
        }
      }
      CheckRecord(key, it->value().ToStringView(), &last, &sums);
    }
    if (any) CheckUser(prefix, sums);
    Ended(*it, "history");
  }

  void CheckRecord(std::string_view key, std::string_view value, BlockKey* last, Sums* sums) {
    std::vector<StoredEvent> events;
    if (!DecodeBlock(value, &events) || events.empty()) return Problem("history: a record is malformed");
    if (IsBlockKey(key)) {
      ++report_.blocks;
      if (ParseBlockKey(key) != KeyOf(events[0].event)) Problem("history: a block's key differs from its first event");
      if (ParseBlockKey(key) < *last) Problem("history: two blocks overlap");
    } else {
      ++report_.tail_records;
      ++sums->tail_records;
      sums->tail_events += events.size();
    }
    BlockKey previous;
    for (size_t i = 0; i < events.size(); ++i) {
      const Event& e = events[i].event;
      if (i > 0 && !(previous < KeyOf(e))) Problem("history: events of a block are out of order");
      previous = KeyOf(e);
      ++sums->stored;
      if (e.tombstone) {
        ++report_.tombstones;
        continue;
      }
      ++report_.events;
      ++sums->live;
      sums->hash += EventHash(e);
      sums->newest_us = std::max(sums->newest_us, e.time_us);
      event_cells_ += CellHash(ns_, e.item_id, HourOf(e.time_us), OutcomeOf(e));
    }
    if (IsBlockKey(key)) *last = previous;
  }

  void CheckUser(const std::string& prefix, const Sums& sums) {
    std::string value;
    UserRecord record;
    if (!Get(Family::kHeads, prefix, &value) || !DecodeUserRecord(value, &record) || !record.alias_of.empty()) {
      return Problem(absl::StrCat("history: ", sums.stored, " events belong to no head record"));
    }
    if (record.head.events != sums.live || record.stored != sums.stored || record.head.hash != sums.hash ||
        record.head.newest_us != sums.newest_us || record.tail_events != sums.tail_events ||
        record.tail_records != sums.tail_records) {
      Problem(absl::StrCat("heads: a user of slot ", SlotOf(record.user.user), " has ", record.head.events,
                           " events recorded, ", sums.live, " found, or their hash differs"));
    }
  }

  void CheckCells() {
    uint64_t cells = 0;
    auto it = Scan(Family::kCells);
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      std::string ns;
      uint64_t item = 0;
      uint32_t first_hour = 0;
      std::vector<Cell> decoded;
      if (!ParseCellKey(it->key().ToStringView(), &ns, &item, &first_hour) ||
          !DecodeCells(it->value().ToStringView(), first_hour, &decoded)) {
        Problem("cells: a record is malformed");
        continue;
      }
      for (const Cell& cell : decoded) {
        if (cell.count < 0) Problem(absl::StrCat("cells: item ", item, " has a negative count"));
        cells += static_cast<uint64_t>(cell.count) * CellHash(ns, item, cell.hour, cell.outcome);
      }
    }
    Ended(*it, "cells");
    if (!retained_ && cells != event_cells_) Problem("cells: item statistics differ from the events");
  }

  void CheckCatalog() {
    auto it = Scan(Family::kCatalog);
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      Item item;
      if (DecodeItem(it->value().ToStringView(), &item)) {
        ++report_.items;
      } else {
        Problem("catalog: an item is malformed");
      }
    }
    Ended(*it, "catalog");
  }

  const std::string directory_;
  ReadOnlyFiles files_;
  VerifyReport report_;
  std::string ns_;  // of the user whose history is being read
  bool retained_ = false;
  uint64_t event_cells_ = 0;
};

}  // namespace

absl::StatusOr<VerifyReport> VerifyStore(const std::string& directory) {
  absl::StatusOr<DirectoryState> found = InspectDirectory(directory);
  if (!found.ok()) return found.status();
  if (*found != DirectoryState::kStore) return absl::NotFoundError(absl::StrCat("no store in ", directory));
  DirectoryLock lock;
  if (absl::Status status = lock.Acquire(directory, false); !status.ok()) return status;
  StoreOptions options;
  options.directory = directory;
  VerifyReport damaged;
  const absl::Status checked = CheckStore(options, rocksdb::Env::Default()).status();
  if (absl::IsDataLoss(checked)) {
    damaged.problems.emplace_back(checked.message());
    return damaged;
  }
  if (!checked.ok()) return checked;
  absl::StatusOr<ReadOnlyFiles> files = OpenFilesReadOnly(options, rocksdb::Env::Default());
  if (!files.ok()) return files.status();
  return Verifier(directory, *std::move(files)).Run();
}

}  // namespace backstory
