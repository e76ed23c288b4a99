// The rarer changes of a history: delete, merge, retain. They first write what is pending, then read the database.
#include <algorithm>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "store/history_writer.h"
#include "store/kill_point.h"
#include "store/limits.h"

namespace backstory {
namespace {

bool Selects(const DeleteSelector& what, const std::unordered_set<uint64_t>& ids, const Event& e) {
  if (e.tombstone) return false;
  if (!what.event_ids.empty()) return ids.contains(e.event_id);
  if (what.until_us > what.from_us) return e.time_us >= what.from_us && e.time_us < what.until_us;
  return what.has_item && e.item_id == what.item_id;
}

Event TombstoneOf(const Event& e, int64_t now_us) {
  Event tombstone;
  tombstone.kind = e.kind;
  tombstone.event_id = e.event_id;
  tombstone.revision = e.revision == UINT32_MAX ? e.revision : e.revision + 1;
  tombstone.tombstone = true;
  tombstone.time_us = e.time_us;
  tombstone.ingest_time_us = now_us;
  return tombstone;
}

}  // namespace

absl::StatusOr<uint64_t> HistoryWriter::DeleteEvents(const UserKey& user, const DeleteSelector& what, int64_t now_us) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  absl::StatusOr<Entry*> entry = Find(user);
  if (!entry.ok()) return entry.status();
  if (!(*entry)->exists) return uint64_t{0};
  absl::StatusOr<std::vector<StoredEvent>> stored = BlockEditor(database_, (*entry)->prefix).ReadAll();
  if (!stored.ok()) return stored.status();
  const std::unordered_set<uint64_t> ids(what.event_ids.begin(), what.event_ids.end());
  Changes changes;
  changes.corrected = true;
  for (StoredEvent& e : *stored) {
    if (!Selects(what, ids, e.event)) continue;
    Upsert upsert;
    upsert.stored.event = TombstoneOf(e.event, now_us);
    upsert.old = std::move(e.event);
    changes.upserts.push_back(std::move(upsert));
  }
  const uint64_t deleted = changes.upserts.size();
  if (deleted == 0) return deleted;
  if (absl::Status status = Apply(*entry, &changes); !status.ok()) return status;
  PassKillPoint(KillPoint::kDeletePrepared);
  return deleted;
}

absl::StatusOr<uint64_t> HistoryWriter::DeleteUser(const UserKey& user, int64_t now_us) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  absl::StatusOr<Entry*> found = Find(user);
  if (!found.ok()) return found.status();
  Entry* entry = *found;
  const BlockEditor editor(database_, entry->prefix);
  absl::StatusOr<std::vector<StoredEvent>> events = editor.ReadAll();
  if (!events.ok()) return events.status();
  absl::StatusOr<std::vector<std::string>> keys = editor.ReadKeys();
  if (!keys.ok()) return keys.status();

  const UserRecord old = entry->record;
  const DeletedUser mark{std::max(now_us, old.refuse_until_us), old.head.seq + 1, old.head.epoch + 1};
  rocksdb::ColumnFamilyHandle* heads = database_->family(Family::kHeads);
  for (const std::string& key : *keys) batch_.Delete(database_->family(Family::kHistory), key);
  for (const StoredEvent& e : *events) {
    if (!e.event.tombstone) AddCell(old.user.ns, e.event, -1);
  }
  std::vector<std::string> names = old.aliases;
  names.push_back(old.user.user);
  for (const std::string& name : names) {
    const UserKey id{old.user.ns, name};
    batch_.Delete(heads, Prefix(id));
    batch_.Put(heads, DeletedUserKey(database_->own_secret(), id), EncodeDeletedUser(mark));
    if (name != old.user.user) Drop(Prefix(id));
  }
  totals_.events -= old.head.events;
  totals_.users -= entry->exists;
  entry->record = UserRecord();
  entry->record.user = old.user;
  entry->record.refuse_until_us = mark.deleted_us;
  entry->record.head.seq = entry->record.epoch_seq = mark.seq;
  entry->record.head.epoch = mark.epoch;
  entry->exists = false;
  entry->ids = {};
  entry->ids_loaded = true;
  Touch(entry);
  PassKillPoint(KillPoint::kDeleteUserPrepared);
  if (absl::Status status = Flush(); !status.ok()) return status;  // dropped aliases are read again from the database
  return old.head.events;
}

absl::Status HistoryWriter::Merge(const UserKey& alias, const UserKey& primary) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  absl::StatusOr<Entry*> from = Find(alias);
  if (!from.ok()) return from.status();
  absl::StatusOr<Entry*> into = Find(primary);
  if (!into.ok()) return into.status();
  if (*from == *into) return absl::OkStatus();
  const UserRecord old = (*from)->record;
  const bool existed = (*from)->exists;
  if ((*into)->record.aliases.size() + old.aliases.size() + 1 > kAliasesMax) {
    return absl::FailedPreconditionError(absl::StrCat("merge: a user has at most ", kAliasesMax, " aliases"));
  }
  BlockEditor source(database_, (*from)->prefix);
  absl::StatusOr<std::vector<StoredEvent>> events = source.ReadAll();
  if (!events.ok()) return events.status();
  absl::StatusOr<std::vector<std::string>> keys = source.ReadKeys();
  if (!keys.ok()) return keys.status();
  if (absl::Status status = LoadIds(*into); !status.ok()) return status;

  Changes changes;
  changes.seq_floor = old.head.seq;
  changes.epoch_floor = std::max(old.head.epoch, (*into)->record.head.epoch);
  changes.corrected = true;
  changes.aliases = old.aliases;
  changes.aliases.push_back(old.user.user);
  BlockEditor target(database_, (*into)->prefix);
  std::optional<BlockEditor::Tail> tail;
  for (const StoredEvent& e : *events) {
    if (KeyOf(e.event) < (*into)->record.floor) continue;  // older than what retention keeps of the primary
    absl::StatusOr<EventOutcome> outcome = Consider(**into, e.event, &changes, &target, &tail);
    if (!outcome.ok()) return outcome.status();
  }
  if (absl::Status status = Apply(*into, &changes); !status.ok()) return status;

  for (const std::string& key : *keys) batch_.Delete(database_->family(Family::kHistory), key);
  for (const StoredEvent& e : *events) {
    if (!e.event.tombstone) AddCell(old.user.ns, e.event, -1);
  }
  totals_.events -= old.head.events;
  totals_.users -= existed;
  for (const std::string& name : changes.aliases) {
    UserRecord record;
    record.user = {old.user.ns, name};
    record.alias_of = (*into)->record.user.user;
    batch_.Put(database_->family(Family::kHeads), Prefix(record.user), EncodeUserRecord(record));
    Drop(Prefix(record.user));
  }
  PassKillPoint(KillPoint::kMergePrepared);
  return Flush();
}

absl::StatusOr<uint64_t> HistoryWriter::Retain(const UserKey& user, uint64_t keep) {
  if (absl::Status status = Flush(); !status.ok()) return status;
  absl::StatusOr<Entry*> found = Find(user);
  if (!found.ok()) return found.status();
  Entry* entry = *found;
  UserRecord record = entry->record;
  if (!entry->exists || keep >= record.head.events) return uint64_t{0};
  const auto first = static_cast<uint64_t>(record.head.first_index);
  const uint64_t cut = (first + record.head.events - keep) / kAnchorEvents * kAnchorEvents;
  if (cut <= first) return uint64_t{0};
  const uint64_t drop = cut - first;
  const BlockEditor reader(database_, entry->prefix);
  absl::StatusOr<std::vector<StoredEvent>> events = reader.ReadAll();
  if (!events.ok()) return events.status();
  absl::StatusOr<std::vector<std::string>> keys = reader.ReadKeys();
  if (!keys.ok()) return keys.status();
  size_t kept_from = 0;
  for (uint64_t dropped = 0; kept_from < events->size(); ++kept_from) {
    const Event& e = (*events)[kept_from].event;
    if (e.tombstone) continue;
    if (dropped == drop) break;
    record.head.hash -= EventHash(e);
    ++dropped;
  }
  rocksdb::ColumnFamilyHandle* history = database_->family(Family::kHistory);
  for (const std::string& key : *keys) batch_.Delete(history, key);
  for (size_t i = kept_from; i < events->size(); i += kBlockRowsTarget) {
    const size_t rows = std::min(kBlockRowsTarget, events->size() - i);
    batch_.Put(history, MakeBlockKey(entry->prefix, KeyOf((*events)[i].event)),
               EncodeBlock({events->data() + i, rows}));
  }
  if (kept_from < events->size()) {
    record.floor = KeyOf((*events)[kept_from].event);
  } else {
    record.floor = {events->back().event.time_us, UINT64_MAX};
    record.head.newest_us = -1;
  }
  record.head.events -= drop;
  record.head.first_index = static_cast<int64_t>(cut);
  record.stored = events->size() - kept_from;
  record.retain_seq = record.merged_seq = ++record.head.seq;
  record.tail_events = record.tail_records = 0;
  totals_.events -= drop;
  totals_.retained += drop;
  entry->record = std::move(record);
  entry->ids = {};
  entry->ids_loaded = false;
  PutRecord(entry);
  PassKillPoint(KillPoint::kRetainPrepared);
  if (absl::Status status = Flush(); !status.ok()) return status;
  return drop;
}

}  // namespace backstory
