#include "store/rocksdb_history_store.h"

#include <rocksdb/env.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"
#include "store/kill_point.h"
#include "store/limits.h"
#include "store/slot_stream.h"
#include "store/store_core.h"

namespace backstory {
namespace {

constexpr size_t kImportEventsPerAppend = 4096;

class RocksDbHistoryStore : public HistoryStore {
 public:
  explicit RocksDbHistoryStore(std::shared_ptr<StoreCore> core) : core_(std::move(core)) {}

  absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events, int64_t now_us,
                                      Durability durability) override {
    AppendResult result;
    if (absl::Status status = CheckWrite(user, now_us); !status.ok()) return status;
    if (absl::Status status = Validate(events, now_us, &result); !status.ok()) return status;
    const absl::Status status =
        core_->queue.Run([&] { return core_->writer.Append(user, events, now_us, false, &result); },
                         durability == Durability::kSynced, events.size());
    if (!status.ok()) return status;
    Count(result);
    return result;
  }

  absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const UserBatch> batches, int64_t now_us,
                                                       Durability durability) override {
    size_t total = 0;
    std::vector<AppendResult> results(batches.size());
    for (size_t i = 0; i < batches.size(); ++i) {
      if (absl::Status status = CheckWrite(batches[i].user, now_us); !status.ok()) return status;
      if (absl::Status status = Validate(batches[i].events, now_us, &results[i]); !status.ok()) return status;
      total += batches[i].events.size();
    }
    if (total > kEventsPerAppendManyMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("events: ", total, " in one call, at most ", kEventsPerAppendManyMax));
    }
    const absl::Status status = core_->queue.Run(
        [&] {
          for (size_t i = 0; i < batches.size(); ++i) {
            absl::Status appended =
                core_->writer.Append(batches[i].user, batches[i].events, now_us, false, &results[i]);
            if (!appended.ok()) return appended;
          }
          return absl::OkStatus();
        },
        durability == Durability::kSynced, total);
    if (!status.ok()) return status;
    for (const AppendResult& result : results) Count(result);
    return results;
  }

  absl::StatusOr<UserHead> Head(const UserKey& user) override {
    if (absl::Status status = Check(user); !status.ok()) return status;
    return core_->reader.Head(user);
  }
  absl::StatusOr<HistoryTail> Tail(const UserKey& user, uint64_t after_seq) override {
    if (absl::Status status = Check(user); !status.ok()) return status;
    return core_->reader.Tail(user, after_seq);
  }
  absl::StatusOr<Snapshot> Read(const UserKey& user, const HistoryRange& range) override {
    if (absl::Status status = Check(user); !status.ok()) return status;
    return core_->reader.Read(user, range);
  }

  absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what, int64_t now_us) override {
    if (absl::Status status = CheckWrite(user, now_us); !status.ok()) return status;
    const int selectors = what.all + !what.event_ids.empty() + (what.until_us > what.from_us) + what.has_item;
    if (selectors != 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("delete: exactly one of all, event_ids, time range, item is needed, ", selectors, " given"));
    }
    return RunCounted([&] {
      return what.all ? core_->writer.DeleteUser(user, now_us) : core_->writer.DeleteEvents(user, what, now_us);
    });
  }

  absl::Status Merge(const UserKey& alias, const UserKey& primary, int64_t now_us) override {
    if (absl::Status status = CheckWrite(alias, now_us); !status.ok()) return status;
    if (absl::Status status = CheckWrite(primary, now_us); !status.ok()) return status;
    if (alias.ns != primary.ns) return absl::InvalidArgumentError("merge: both ids must be in one namespace");
    return core_->queue.Run([&] { return core_->writer.Merge(alias, primary); }, true, 1);
  }

  absl::StatusOr<uint64_t> Retain(const UserKey& user, uint64_t keep) override {
    if (absl::Status status = CheckWrite(user, 0); !status.ok()) return status;
    return RunCounted([&] { return core_->writer.Retain(user, keep); });
  }

  absl::Status ForEachUser(std::string_view ns,
                           const std::function<bool(const UserKey&, const UserHead&)>& visit) override {
    if (absl::Status status = CheckNamespace(ns); !status.ok()) return status;
    return ForEachRecord("", [&](std::string_view /*key*/, const UserRecord& record) {
      return record.user.ns != ns || !record.alias_of.empty() || visit(record.user, record.head);
    });
  }

  absl::Status ExportSlot(int slot, const std::function<absl::Status(std::string_view chunk)>& sink) override;
  absl::Status ImportSlot(int slot, const std::function<absl::StatusOr<std::string>()>& source) override;

  absl::StatusOr<ItemCounts> CountsBefore(std::string_view ns, uint64_t item_id, int64_t before_us,
                                          int64_t granularity_us) override {
    ItemCounts counts;
    const absl::Status status = ManyCountsBefore(ns, {&item_id, 1}, before_us, granularity_us,
                                                 [&](size_t, const ItemCounts& found) { counts = found; });
    if (!status.ok()) return status;
    return counts;
  }

  absl::Status ManyCountsBefore(std::string_view ns, std::span<const uint64_t> item_ids, int64_t before_us,
                                int64_t granularity_us, const CountsVisit& visit) override {
    if (absl::Status status = CheckNamespace(ns); !status.ok()) return status;
    if (granularity_us < kCellMicros || granularity_us % kCellMicros != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("granularity_us: ", granularity_us, " is not a positive multiple of one hour, ", kCellMicros));
    }
    // Nothing is before the epoch.
    const int64_t end_us = before_us <= 0 ? 0 : before_us / granularity_us * granularity_us;
    return core_->cells.CountsBefore(ns, item_ids, end_us / kCellMicros, visit);
  }

  absl::Status Checkpoint(const std::string& directory) override {
    if (absl::Status status = core_->CheckWritable(); !status.ok()) return status;
    return core_->database->Checkpoint(directory);
  }

  absl::StatusOr<Stats> GetStats() override;
  absl::Status Compact() override;
  absl::Status WriteHealth() override { return core_->database->Health(); }

 private:
  absl::Status Check(const UserKey& user) const {
    if (absl::Status status = CheckUser(user); !status.ok()) return status;
    return core_->slots.CheckOwned(SlotOf(user.user));
  }
  absl::Status CheckWrite(const UserKey& user, int64_t now_us) const {
    if (now_us < 0) return absl::InvalidArgumentError(absl::StrCat("now_us: ", now_us, " is negative"));
    if (absl::Status status = core_->CheckWritable(); !status.ok()) return status;
    return Check(user);
  }

  // Marks what limits forbid, on the caller's thread.
  static absl::Status Validate(std::span<const Event> events, int64_t now_us, AppendResult* result) {
    if (events.size() > kEventsPerAppendMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("events: ", events.size(), " for one user, at most ", kEventsPerAppendMax, " in one call"));
    }
    result->outcomes.assign(events.size(), EventOutcome::kAccepted);
    result->reasons.resize(events.size());
    for (size_t i = 0; i < events.size(); ++i) {
      result->reasons[i] = WhyRejected(events[i], now_us);
      if (!result->reasons[i].empty()) result->outcomes[i] = EventOutcome::kRejected;
    }
    return absl::OkStatus();
  }

  void Count(const AppendResult& result) {
    appended_ += result.accepted;
    duplicate_ += result.duplicate;
    conflict_ += result.conflict;
    rejected_ += result.rejected;
    late_ += result.late;
  }

  template <typename F>
  absl::StatusOr<uint64_t> RunCounted(const F& change) {
    uint64_t count = 0;
    const absl::Status status = core_->queue.Run(
        [&] {
          absl::StatusOr<uint64_t> changed = change();
          if (changed.ok()) count = *changed;
          return changed.status();
        },
        true, 1);
    if (!status.ok()) return status;
    return count;
  }

  // Head records whose key starts with `prefix`, in key order; marks of deleted users are skipped.
  absl::Status ForEachRecord(const std::string& prefix,
                             const std::function<bool(std::string_view key, const UserRecord&)>& visit) const;
  absl::Status ImportUser(FrameReader* frames, std::string_view begin, FrameReader::Frame* next);

  const std::shared_ptr<StoreCore> core_;
  std::atomic<uint64_t> appended_{0}, duplicate_{0}, conflict_{0}, rejected_{0}, late_{0};
};

absl::Status RocksDbHistoryStore::ForEachRecord(
    const std::string& prefix, const std::function<bool(std::string_view, const UserRecord&)>& visit) const {
  auto it = core_->database->Scan(Family::kHeads, nullptr, true);
  for (it->Seek(prefix); it->Valid() && it->key().starts_with(prefix); it->Next()) {
    if (it->key().size() != kUserPrefixBytes) continue;
    UserRecord record;
    if (!DecodeUserRecord(it->value().ToStringView(), &record)) {
      return absl::DataLossError(absl::StrCat("store ", core_->database->directory(), ": a head record is malformed; ",
                                              DamageAdvice(core_->database->directory())));
    }
    if (!visit(it->key().ToStringView(), record)) return absl::OkStatus();
  }
  return FromRocks(it->status(), core_->database->directory());
}

absl::Status RocksDbHistoryStore::ExportSlot(int slot, const std::function<absl::Status(std::string_view)>& sink) {
  if (slot < 0 || slot >= kSlotCount)
    return absl::InvalidArgumentError(absl::StrCat("slot: ", slot, " is outside 0-16383"));
  if (absl::Status status = core_->slots.CheckOwned(slot); !status.ok()) return status;
  uint64_t frames = 0;
  absl::Status status;
  const auto send = [&](FrameKind kind, std::string_view payload) {
    ++frames;
    status = sink(MakeFrame(kind, payload));
    return status.ok();
  };
  std::string begin, secrets, prefix;
  PutVarint(&begin, kStoreFormatVersion);
  PutVarint(&begin, static_cast<uint64_t>(slot));
  for (const std::string& secret : core_->database->secrets()) secrets += secret;
  PutBig(&prefix, static_cast<uint64_t>(slot), 2);
  if (!send(FrameKind::kBegin, begin) || !send(FrameKind::kSecrets, secrets)) return status;
  const absl::Status visited = ForEachRecord(prefix, [&](std::string_view key, const UserRecord& record) {
    if (!send(FrameKind::kUser, EncodeUserRecord(record))) return false;
    if (!record.alias_of.empty()) return true;
    absl::StatusOr<std::vector<StoredEvent>> events = BlockEditor(core_->database.get(), std::string(key)).ReadAll();
    status = events.status();
    for (size_t i = 0; status.ok() && i < events->size(); i += kBlockRowsTarget) {
      send(FrameKind::kEvents, EncodeBlock({events->data() + i, std::min(kBlockRowsTarget, events->size() - i)}));
    }
    return status.ok();
  });
  if (!visited.ok()) return visited;
  auto it = core_->database->Scan(Family::kHeads, nullptr, true);
  for (it->Seek(prefix + "D"); status.ok() && it->Valid() && it->key().starts_with(prefix); it->Next()) {
    if (it->key().size() == kUserPrefixBytes) continue;
    std::string mark;
    PutBytes(&mark, it->key().ToStringView());
    PutBytes(&mark, it->value().ToStringView());
    send(FrameKind::kDeleted, mark);
  }
  if (!status.ok()) return status;
  if (!it->status().ok()) return FromRocks(it->status(), core_->database->directory());
  std::string end;
  PutVarint(&end, frames);
  send(FrameKind::kEnd, end);
  return status;
}

absl::Status RocksDbHistoryStore::ImportUser(FrameReader* frames, std::string_view begin, FrameReader::Frame* next) {
  UserRecord record;
  if (!DecodeUserRecord(begin, &record)) return absl::DataLossError("slot stream: malformed user");
  if (absl::Status status = Check(record.user); !status.ok()) return status;
  std::vector<StoredEvent> stored;
  while (true) {
    absl::StatusOr<FrameReader::Frame> frame = frames->Next();
    if (!frame.ok()) return frame.status();
    PassKillPoint(KillPoint::kImportFrame);
    *next = *std::move(frame);
    if (next->kind != FrameKind::kEvents) break;
    if (!DecodeBlock(next->payload, &stored)) return absl::DataLossError("slot stream: malformed events");
  }
  std::vector<Event> events;
  for (size_t i = 0; i < stored.size(); i += events.size()) {
    events.clear();
    for (size_t j = i; j < std::min(stored.size(), i + kImportEventsPerAppend); ++j) events.push_back(stored[j].event);
    AppendResult result;
    result.outcomes.assign(events.size(), EventOutcome::kAccepted);
    result.reasons.resize(events.size());
    const absl::Status status = core_->queue.Run(
        [&] { return core_->writer.Append(record.user, events, 0, true, &result); }, true, events.size());
    if (!status.ok()) return status;
    Count(result);
  }
  if (record.alias_of.empty()) {
    if (record.refuse_until_us < 0) return absl::OkStatus();
    return core_->queue.Run([&] { return core_->writer.RefuseUntil(record.user, record.refuse_until_us); }, true, 1);
  }
  const UserKey primary{record.user.ns, record.alias_of};
  if (absl::Status status = Check(primary); !status.ok()) return status;
  return core_->queue.Run([&] { return core_->writer.Merge(record.user, primary); }, true, 1);
}

absl::Status RocksDbHistoryStore::ImportSlot(int slot, const std::function<absl::StatusOr<std::string>()>& source) {
  if (slot < 0 || slot >= kSlotCount)
    return absl::InvalidArgumentError(absl::StrCat("slot: ", slot, " is outside 0-16383"));
  if (absl::Status status = core_->slots.CheckOwned(slot); !status.ok()) return status;
  if (absl::Status status = core_->CheckWritable(); !status.ok()) return status;
  FrameReader frames(source);
  absl::StatusOr<FrameReader::Frame> frame = frames.Next();
  if (!frame.ok()) return frame.status();
  ByteReader begin(frame->payload);
  uint64_t version = 0, from_slot = 0;
  if (frame->kind != FrameKind::kBegin || !begin.ReadVarint(&version) || !begin.ReadVarint(&from_slot)) {
    return absl::DataLossError("slot stream: does not begin as one");
  }
  if (version > kStoreFormatVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("slot stream: format version ", version, " is newer than ", kStoreFormatVersion));
  }
  if (from_slot != static_cast<uint64_t>(slot)) {
    return absl::InvalidArgumentError(absl::StrCat("slot: the stream holds slot ", from_slot, ", not ", slot));
  }
  frame = frames.Next();
  while (frame.ok() && frame->kind != FrameKind::kEnd) {
    absl::Status status;
    if (frame->kind == FrameKind::kUser) {
      FrameReader::Frame next{};
      const std::string user = std::move(frame->payload);
      status = ImportUser(&frames, user, &next);
      frame = std::move(next);
    } else {
      status = core_->queue.Run(
          [&] {
            rocksdb::WriteBatch* batch = core_->writer.batch();
            if (frame->kind == FrameKind::kSecrets) {
              for (size_t i = 0; i + kSecretBytes <= frame->payload.size(); i += kSecretBytes) {
                const std::string secret = frame->payload.substr(i, kSecretBytes);
                const std::vector<std::string> known = core_->database->secrets();
                if (std::find(known.begin(), known.end(), secret) == known.end())
                  core_->database->AddSecret(secret, batch);
              }
              return absl::OkStatus();
            }
            ByteReader mark(frame->payload);
            std::string_view key, value;
            if (frame->kind != FrameKind::kDeleted || !mark.ReadBytes(&key) || !mark.ReadBytes(&value)) {
              return absl::DataLossError("slot stream: malformed mark");
            }
            batch->Put(core_->database->family(Family::kHeads), rocksdb::Slice(key.data(), key.size()),
                       rocksdb::Slice(value.data(), value.size()));
            return absl::OkStatus();
          },
          true, 1);
      if (status.ok()) frame = frames.Next();
    }
    if (!status.ok()) return status;
  }
  if (!frame.ok()) return frame.status();
  ByteReader end(frame->payload);
  uint64_t count = 0;
  if (!end.ReadVarint(&count) || count + 1 != frames.frames())
    return absl::DataLossError("slot stream: frames are missing");
  return absl::OkStatus();
}

absl::StatusOr<HistoryStore::Stats> RocksDbHistoryStore::GetStats() {
  Stats stats;
  std::string value;
  absl::StatusOr<bool> found = core_->database->Get(Family::kMeta, StoreTotals::kKey, &value);
  if (!found.ok()) return found.status();
  StoreTotals totals;
  if (*found) DecodeTotals(value, &totals);
  stats.users = totals.users;
  stats.events = totals.events;
  rocksdb::DB* db = core_->database->rocks();
  for (size_t i = 0; i < kFamilies; ++i) {
    uint64_t bytes = 0;
    if (db->GetIntProperty(core_->database->family(static_cast<Family>(i)), "rocksdb.live-sst-files-size", &bytes)) {
      stats.disk_bytes += bytes;
    }
  }
  rocksdb::VectorLogPtr logs;
  if (!core_->database->read_only() && db->GetSortedWalFiles(logs).ok()) {
    for (const auto& log : logs) stats.wal_bytes += log->SizeFileBytes();
  }
  stats.appended = appended_;
  stats.duplicate = duplicate_;
  stats.conflict = conflict_;
  stats.rejected = rejected_;
  stats.late = late_;
  stats.commits = core_->writer.commits();
  stats.syncs = core_->database->syncs();
  return stats;
}

absl::Status RocksDbHistoryStore::Compact() {
  if (absl::Status status = core_->CheckWritable(); !status.ok()) return status;
  std::vector<UserKey> fold;
  const absl::Status visited = ForEachRecord("", [&fold](std::string_view /*key*/, const UserRecord& record) {
    if (record.tail_records > 0) fold.push_back(record.user);
    return true;
  });
  if (!visited.ok()) return visited;
  for (const UserKey& user : fold) {
    if (absl::Status status = core_->queue.Run([&] { return core_->writer.Fold(user); }, false, 256); !status.ok())
      return status;
  }
  return core_->database->CompactAll();
}

}  // namespace

absl::Status StoreCore::CheckWritable() const {
  if (!database->read_only()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("store ", database->directory(), " was opened read-only"));
}

std::unique_ptr<HistoryStore> NewHistoryStore(std::shared_ptr<StoreCore> core) {
  return std::make_unique<RocksDbHistoryStore>(std::move(core));
}

absl::StatusOr<std::shared_ptr<StoreCore>> OpenCore(const StoreOptions& options, rocksdb::Env* env) {
  if (options.directory.empty()) return absl::InvalidArgumentError("directory: empty");
  if (options.wal_flush_interval.count() < 1 || options.wal_flush_interval.count() > 10'000) {
    return absl::InvalidArgumentError("wal_flush_interval: 1 to 10,000 ms allowed");
  }
  absl::StatusOr<SlotMap> slots = SlotMap::Create(options.self, options.slots);
  if (!slots.ok()) return slots.status();
  absl::StatusOr<std::unique_ptr<Database>> database = Database::Open(options, env);
  if (!database.ok()) return database.status();
  auto core = std::make_shared<StoreCore>(*std::move(database), *std::move(slots), options);
  if (absl::Status status = core->writer.Load(); !status.ok()) return status;
  return core;
}

absl::StatusOr<Store> OpenStoreWithEnv(const StoreOptions& options, rocksdb::Env* env) {
  absl::StatusOr<std::shared_ptr<StoreCore>> core = OpenCore(options, env);
  if (!core.ok()) return core.status();
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = NewCatalog(*core);
  if (!catalog.ok()) return catalog.status();
  Store store;
  store.history = NewHistoryStore(*core);
  store.catalog = *std::move(catalog);
  return store;
}

absl::StatusOr<Store> OpenStore(const StoreOptions& options) {
  return OpenStoreWithEnv(options, rocksdb::Env::Default());
}

absl::StatusOr<std::unique_ptr<HistoryStore>> OpenHistoryStore(const StoreOptions& options) {
  absl::StatusOr<Store> store = OpenStore(options);
  if (!store.ok()) return store.status();
  return std::move(store->history);
}

}  // namespace backstory
