#include "store/history_writer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"
#include "store/kill_point.h"
#include "store/limits.h"

namespace backstory {
namespace {

// A user's newest events sit in one small record per commit until there are this many, then they are merged into
// blocks. More means less rewriting and more records to read.
constexpr uint32_t kTailEventsMax = 256;
constexpr uint32_t kTailRecordsMax = 64;

// What is kept of a deleted event: nothing but its identity and place.
Event Scrubbed(const Event& e) {
  Event tombstone;
  tombstone.kind = e.kind;
  tombstone.event_id = e.event_id;
  tombstone.revision = e.revision;
  tombstone.tombstone = true;
  tombstone.time_us = e.time_us;
  tombstone.ingest_time_us = e.ingest_time_us;
  return tombstone;
}

bool SameContent(const Event& stored, const Event& incoming) {
  Event copy = incoming;
  copy.ingest_time_us = stored.ingest_time_us;
  return copy == stored;
}

EventOutcome Decide(const Event* stored, const Event& incoming) {
  if (stored == nullptr || incoming.revision > stored->revision) return EventOutcome::kAccepted;
  if (incoming.revision < stored->revision) return EventOutcome::kStale;
  if (stored->tombstone && incoming.tombstone) return EventOutcome::kDuplicate;
  return SameContent(*stored, incoming) ? EventOutcome::kDuplicate : EventOutcome::kConflict;
}

void Count(EventOutcome outcome, AppendResult* result) {
  switch (outcome) {
    case EventOutcome::kAccepted:
      ++result->accepted;
      return;
    case EventOutcome::kDuplicate:
    case EventOutcome::kStale:
      ++result->duplicate;
      return;
    case EventOutcome::kConflict:
      ++result->conflict;
      return;
    case EventOutcome::kRejected:
      ++result->rejected;
      return;
  }
}

}  // namespace

std::string EncodeTotals(const StoreTotals& totals) {
  std::string out;
  for (const uint64_t v : {totals.users, totals.events, totals.retained}) PutVarint(&out, v);
  return out;
}

bool DecodeTotals(std::string_view bytes, StoreTotals* totals) {
  ByteReader reader(bytes);
  return reader.ReadVarint(&totals->users) && reader.ReadVarint(&totals->events) &&
         reader.ReadVarint(&totals->retained);
}

absl::Status HistoryWriter::Load() {
  std::string value;
  absl::StatusOr<bool> found = database_->Get(Family::kMeta, StoreTotals::kKey, &value);
  if (!found.ok()) return found.status();
  totals_ = StoreTotals();
  if (*found && !DecodeTotals(value, &totals_)) {
    return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": totals are malformed; ",
                                            DamageAdvice(database_->directory())));
  }
  return absl::OkStatus();
}

absl::StatusOr<HistoryWriter::Entry*> HistoryWriter::FindRaw(const UserKey& user) {
  const std::string prefix = Prefix(user);
  if (const auto it = by_prefix_.find(prefix); it != by_prefix_.end()) {
    entries_.splice(entries_.begin(), entries_, it->second->self);
    return it->second;
  }
  Entry entry;
  entry.prefix = prefix;
  std::string value;
  absl::StatusOr<bool> found = database_->Get(Family::kHeads, prefix, &value);
  if (!found.ok()) return found.status();
  entry.exists = *found;
  if (*found && (!DecodeUserRecord(value, &entry.record) || entry.record.user != user)) {
    return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": head record in slot ",
                                            SlotOf(user.user), " is malformed; ",
                                            DamageAdvice(database_->directory())));
  }
  entry.record.user = user;
  // An alias that was deleted before it became one goes on refusing its own replays.
  const bool marked = !entry.exists || !entry.record.alias_of.empty();
  for (const std::string& secret : marked ? database_->secrets() : std::vector<std::string>()) {
    found = database_->Get(Family::kHeads, DeletedUserKey(secret, user), &value);
    if (!found.ok()) return found.status();
    DeletedUser deleted;
    if (!*found || !DecodeDeletedUser(value, &deleted)) continue;
    UserRecord& record = entry.record;
    record.refuse_until_us = std::max(record.refuse_until_us, deleted.deleted_us);
    record.head.seq = record.epoch_seq = std::max(record.head.seq, deleted.seq);
    record.head.epoch = std::max(record.head.epoch, deleted.epoch);
  }
  entries_.push_front(std::move(entry));
  Entry* added = &entries_.front();
  added->self = entries_.begin();
  by_prefix_[prefix] = added;
  Account(added);
  return added;
}

absl::StatusOr<HistoryWriter::Entry*> HistoryWriter::Find(const UserKey& user) {
  absl::StatusOr<Entry*> entry = FindRaw(user);
  if (!entry.ok() || (*entry)->record.alias_of.empty()) return entry;
  return FindRaw({user.ns, (*entry)->record.alias_of});
}

absl::Status HistoryWriter::LoadIds(Entry* entry) {
  if (entry->ids_loaded) return absl::OkStatus();
  if (entry->exists) {
    if (absl::Status status = FlushIfTouched(*entry); !status.ok()) return status;
    std::vector<uint64_t> ids;
    std::vector<int64_t> times;
    auto it = database_->Scan(Family::kHistory);
    for (it->Seek(entry->prefix); it->Valid() && it->key().starts_with(entry->prefix); it->Next()) {
      if (!DecodeBlockIds(it->value().ToStringView(), &ids, &times)) {
        return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": a history record in slot ",
                                                SlotOf(entry->record.user.user), " is malformed; ",
                                                DamageAdvice(database_->directory())));
      }
    }
    if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
    entry->ids.reserve(ids.size() + 64);
    for (size_t i = 0; i < ids.size(); ++i) entry->ids.emplace(ids[i], times[i]);
  }
  entry->ids_loaded = true;
  Account(entry);
  return absl::OkStatus();
}

absl::Status HistoryWriter::FlushIfTouched(const Entry& entry) {
  return touched_.contains(entry.prefix) ? Flush() : absl::OkStatus();
}

absl::StatusOr<std::optional<StoredEvent>> HistoryWriter::Lookup(const Entry& entry, uint64_t event_id,
                                                                 BlockEditor* editor,
                                                                 std::optional<BlockEditor::Tail>* tail) {
  const auto id = entry.ids.find(event_id);
  if (id == entry.ids.end()) return std::nullopt;
  if (absl::Status status = FlushIfTouched(entry); !status.ok()) return status;
  const BlockKey key{id->second, event_id};
  if (!tail->has_value()) {
    absl::StatusOr<BlockEditor::Tail> read = editor->ReadTail();
    if (!read.ok()) return read.status();
    *tail = *std::move(read);
  }
  const auto& events = (*tail)->events;
  const auto it = std::lower_bound(events.begin(), events.end(), key,
                                   [](const StoredEvent& e, const BlockKey& k) { return KeyOf(e.event) < k; });
  if (it != events.end() && KeyOf(it->event) == key) return *it;
  return editor->Find(key);
}

absl::StatusOr<EventOutcome> HistoryWriter::Consider(const Entry& entry, Event event, Changes* changes,
                                                     BlockEditor* editor, std::optional<BlockEditor::Tail>* tail) {
  if (event.tombstone) event = Scrubbed(event);
  if (event.value == 0) event.value = 0;  // one zero: -0 and 0 are the same content
  if (const auto pending = changes->index.find(event.event_id); pending != changes->index.end()) {
    Upsert& upsert = changes->upserts[pending->second];
    const EventOutcome outcome = Decide(&upsert.stored.event, event);
    if (outcome == EventOutcome::kAccepted) upsert.stored.event = std::move(event);
    return outcome;
  }
  absl::StatusOr<std::optional<StoredEvent>> stored = Lookup(entry, event.event_id, editor, tail);
  if (!stored.ok()) return stored.status();
  const EventOutcome outcome = Decide(stored->has_value() ? &(*stored)->event : nullptr, event);
  if (outcome != EventOutcome::kAccepted) return outcome;
  Upsert upsert;
  if (stored->has_value()) {
    upsert.old = std::move((*stored)->event);
    changes->corrected = true;
  }
  changes->index.emplace(event.event_id, changes->upserts.size());
  upsert.stored.event = std::move(event);
  changes->upserts.push_back(std::move(upsert));
  return outcome;
}

absl::Status HistoryWriter::Append(const UserKey& user, std::span<const Event> events, int64_t now_us, bool keep_ingest,
                                   AppendResult* result) {
  if (!failed_.ok()) return failed_;
  const absl::StatusOr<Entry*> own = FindRaw(user);
  if (!own.ok()) return own.status();
  const absl::StatusOr<Entry*> found = Find(user);
  if (!found.ok()) return found.status();
  Entry* entry = *found;
  const int64_t refuse_until_us = std::max((*own)->record.refuse_until_us, entry->record.refuse_until_us);
  if (absl::Status status = LoadIds(entry); !status.ok()) return status;
  const UserRecord& record = entry->record;
  BlockEditor editor(database_, entry->prefix);
  std::optional<BlockEditor::Tail> tail;
  Changes changes;
  changes.upserts.reserve(events.size());
  for (size_t i = 0; i < events.size(); ++i) {
    EventOutcome& outcome = result->outcomes[i];
    if (outcome != EventOutcome::kRejected) {
      const int64_t known_us = keep_ingest ? events[i].ingest_time_us : events[i].time_us;
      if (known_us <= refuse_until_us) {
        outcome = EventOutcome::kRejected;
        result->reasons[i] = absl::StrCat(keep_ingest ? "ingest_time_us: " : "time_us: ", known_us,
                                          " is not after the deletion of this user at ", refuse_until_us);
      } else if (KeyOf(events[i]) < record.floor) {
        outcome = EventOutcome::kRejected;
        result->reasons[i] =
            absl::StrCat("time_us: ", events[i].time_us, " is before what retention keeps, ", record.floor.time_us);
      } else {
        Event event = events[i];
        if (!keep_ingest) event.ingest_time_us = now_us;
        const bool late = !event.tombstone && event.time_us < record.head.newest_us;
        absl::StatusOr<EventOutcome> considered = Consider(*entry, std::move(event), &changes, &editor, &tail);
        if (!considered.ok()) return considered.status();
        outcome = *considered;
        if (outcome == EventOutcome::kAccepted && late) ++result->late;
        if (outcome == EventOutcome::kConflict) {
          result->reasons[i] = absl::StrCat("revision: ", events[i].revision, " of event ", events[i].event_id,
                                            " is stored with other content; the first is kept");
        }
      }
    }
    Count(outcome, result);
  }
  if (!changes.upserts.empty()) {
    if (absl::Status status = Apply(entry, &changes); !status.ok()) return status;
  }
  result->seq = entry->record.head.seq;
  return absl::OkStatus();
}

absl::Status HistoryWriter::Apply(Entry* entry, Changes* changes) {
  UserRecord record = entry->record;
  record.head.seq = std::max(record.head.seq, changes->seq_floor) + 1;
  if (changes->corrected || changes->epoch_floor > 0) {
    record.head.epoch = std::max(record.head.epoch, changes->epoch_floor) + 1;
    record.epoch_seq = record.head.seq;
  }
  record.aliases.insert(record.aliases.end(), changes->aliases.begin(), changes->aliases.end());
  std::vector<StoredEvent> upserts;
  std::vector<BlockKey> removals;
  int64_t live = 0;
  upserts.reserve(changes->upserts.size());
  for (const Upsert& upsert : changes->upserts) {
    upserts.push_back({upsert.stored.event, record.head.seq});
    if (upsert.old.has_value()) {
      removals.push_back(KeyOf(*upsert.old));
      if (!upsert.old->tombstone) record.head.hash -= EventHash(*upsert.old), --live;
    } else {
      ++record.stored;
    }
    if (!upsert.stored.event.tombstone) {
      record.head.hash += EventHash(upsert.stored.event), ++live;
      record.head.newest_us = std::max(record.head.newest_us, upsert.stored.event.time_us);
    }
  }
  record.head.events += static_cast<uint64_t>(live);
  std::sort(upserts.begin(), upserts.end(),
            [](const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); });
  std::sort(removals.begin(), removals.end());
  if (absl::Status status = WriteEvents(*entry, upserts, removals, false, &record); !status.ok()) return status;

  for (const Upsert& upsert : changes->upserts) {
    const std::string& ns = record.user.ns;
    if (upsert.old.has_value() && !upsert.old->tombstone) AddCell(ns, *upsert.old, -1);
    if (!upsert.stored.event.tombstone) AddCell(ns, upsert.stored.event, +1);
    if (entry->ids_loaded) entry->ids[upsert.stored.event.event_id] = upsert.stored.event.time_us;
  }
  totals_.events += static_cast<uint64_t>(live);
  totals_.users += !entry->exists;
  entry->exists = true;
  entry->record = std::move(record);
  PutRecord(entry);
  return absl::OkStatus();
}

absl::Status HistoryWriter::WriteEvents(const Entry& entry, const std::vector<StoredEvent>& upserts,
                                        const std::vector<BlockKey>& removals, bool fold, UserRecord* record) {
  rocksdb::ColumnFamilyHandle* history = database_->family(Family::kHistory);
  if (!fold && removals.empty() && record->tail_events + upserts.size() < kTailEventsMax &&
      record->tail_records + 1 < kTailRecordsMax) {
    if (upserts.empty()) return absl::OkStatus();
    batch_.Put(history, MakeTailKey(entry.prefix, record->head.seq), EncodeBlock(upserts));
    record->tail_events += static_cast<uint32_t>(upserts.size());
    ++record->tail_records;
    return absl::OkStatus();
  }
  if (absl::Status status = FlushIfTouched(entry); !status.ok()) return status;
  BlockEditor editor(database_, entry.prefix);
  BlockEditor::Tail tail;
  if (record->tail_records > 0) {
    absl::StatusOr<BlockEditor::Tail> read = editor.ReadTail();
    if (!read.ok()) return read.status();
    tail = *std::move(read);
  }
  std::erase_if(tail.events, [&removals](const StoredEvent& e) {
    return std::binary_search(removals.begin(), removals.end(), KeyOf(e.event));
  });
  const auto middle = static_cast<std::ptrdiff_t>(tail.events.size());
  tail.events.insert(tail.events.end(), upserts.begin(), upserts.end());
  std::inplace_merge(tail.events.begin(), tail.events.begin() + middle, tail.events.end(),
                     [](const StoredEvent& a, const StoredEvent& b) { return CanonicalLess(a.event, b.event); });
  batch_.SetSavePoint();
  absl::Status status = editor.Apply(tail.events, removals, &batch_);
  if (status.ok() && !removals.empty()) {
    absl::StatusOr<int64_t> newest = editor.NewestLive();
    status = newest.status();
    if (newest.ok()) record->head.newest_us = *newest;
  }
  if (!status.ok()) {
    batch_.RollbackToSavePoint();
    return status;
  }
  batch_.PopSavePoint();
  for (const std::string& key : tail.keys) batch_.Delete(history, key);
  record->tail_events = record->tail_records = 0;
  record->merged_seq = record->head.seq;
  return absl::OkStatus();
}

absl::Status HistoryWriter::RefuseUntil(const UserKey& user, int64_t until_us) {
  absl::StatusOr<Entry*> entry = FindRaw(user);
  if (!entry.ok()) return entry.status();
  UserRecord& record = (*entry)->record;
  if (!(*entry)->exists || !record.alias_of.empty() || record.refuse_until_us >= until_us) return absl::OkStatus();
  record.refuse_until_us = until_us;
  PutRecord(*entry);
  return absl::OkStatus();
}

absl::Status HistoryWriter::Fold(const UserKey& user) {
  absl::StatusOr<Entry*> entry = FindRaw(user);
  if (!entry.ok()) return entry.status();
  if (!(*entry)->exists || (*entry)->record.tail_records == 0) return absl::OkStatus();
  UserRecord record = (*entry)->record;
  if (absl::Status status = WriteEvents(**entry, {}, {}, true, &record); !status.ok()) return status;
  (*entry)->record = std::move(record);
  PutRecord(*entry);
  PassKillPoint(KillPoint::kFoldPrepared);
  return absl::OkStatus();
}

void HistoryWriter::PutRecord(Entry* entry) {
  batch_.Put(database_->family(Family::kHeads), entry->prefix, EncodeUserRecord(entry->record));
  Touch(entry);
}

void HistoryWriter::Touch(Entry* entry) {
  touched_.insert(entry->prefix);
  Account(entry);
}

void HistoryWriter::Account(Entry* entry) {
  bytes_ += entry->bytes() - entry->accounted;
  entry->accounted = entry->bytes();
}

void HistoryWriter::Drop(const std::string& prefix) {
  const auto it = by_prefix_.find(prefix);
  if (it == by_prefix_.end()) return;
  bytes_ -= it->second->accounted;
  entries_.erase(it->second->self);
  by_prefix_.erase(it);
}

void HistoryWriter::AddCell(const std::string& ns, const Event& event, int64_t change) {
  const uint32_t hour = HourOf(event.time_us);
  auto& [prefix, cells] = pending_cells_[CellKey(ns, event.item_id, hour)];
  if (prefix.empty()) prefix = CellPrefix(ns, event.item_id);
  cells.push_back({hour, OutcomeOf(event), change});
}

void HistoryWriter::EmitCells() {
  // In key order: the memory table then inserts each beside the one before instead of searching from its top.
  std::vector<std::pair<const std::string, std::pair<std::string, std::vector<Cell>>>*> sorted;
  sorted.reserve(pending_cells_.size());
  for (auto& entry : pending_cells_) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
  for (auto* entry : sorted) {
    auto& cells = entry->second.second;
    NormaliseCells(&cells);
    if (cells.empty()) continue;
    const uint32_t first_hour = cells[0].hour / kHoursPerRecord * kHoursPerRecord;
    batch_.Merge(database_->family(Family::kCells), entry->first, EncodeCells(cells, first_hour));
  }
}

absl::Status HistoryWriter::WriteBatch(bool sync) {
  if (failed_.ok() && batch_.Count() > 0) {
    EmitCells();
    batch_.Put(database_->family(Family::kMeta), StoreTotals::kKey, EncodeTotals(totals_));
    for (const auto& [key, changes] : pending_cells_) cells_->Announce(changes.first);
    failed_ = database_->Write(&batch_, sync);
    if (failed_.ok()) {
      for (const auto& [key, changes] : pending_cells_) cells_->Apply(changes.first, changes.second);
      ++commits_;
    }
  } else if (failed_.ok() && sync) {
    failed_ = database_->EnsureSynced();
  }
  batch_.Clear();
  touched_.clear();
  pending_cells_.clear();
  if (!failed_.ok()) ForgetCaches();
  return failed_;
}

absl::Status HistoryWriter::Flush() { return WriteBatch(false); }

absl::Status HistoryWriter::Commit(bool sync) {
  const absl::Status status = WriteBatch(sync);
  failed_ = absl::OkStatus();
  while (bytes_ > cache_bytes_ && entries_.size() > 1) Drop(std::string(entries_.back().prefix));
  return status;
}

void HistoryWriter::ForgetCaches() {
  entries_.clear();
  by_prefix_.clear();
  bytes_ = 0;
  cells_->Clear();
  (void)Load();  // a failure here leaves the totals, which only feed statistics, as they were assumed
}

}  // namespace backstory
