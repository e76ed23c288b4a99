// The user histories: every event that was ever acknowledged, in canonical order, point-in-time readable.
// Start here in store/. No RocksDB type appears in this header; rocksdb_history_store.h opens the embedded one.
#ifndef BACKSTORY_STORE_HISTORY_STORE_H_
#define BACKSTORY_STORE_HISTORY_STORE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/item.h"

namespace backstory {

// A user within a namespace. Ids are opaque bytes, 1..256; the wire's 64-bit ids arrive as decimal text.
struct UserKey {
  std::string ns;  // [a-z0-9_-]{1,64}
  std::string user;
  bool operator==(const UserKey&) const = default;
  auto operator<=>(const UserKey&) const = default;
};

inline constexpr int kSlotCount = 16384;
// CRC16 (XMODEM, as Redis Cluster; a non-empty {tag} is hashed alone) of the user id, modulo kSlotCount. First in every
// key.
int SlotOf(std::string_view user);

enum class Durability {
  kSynced,    // acknowledged = fsynced by group commit
  kBuffered,  // acknowledged = in the WAL buffer; a power loss may take back the last wal_flush_interval
};

// What became of each event of a batch, in order.
enum class EventOutcome : uint8_t {
  kAccepted = 1,   // new, or a higher revision
  kDuplicate = 2,  // same revision, same content
  kConflict = 3,   // same revision, other content: the first is kept
  kStale = 4,      // a lower revision than stored: ignored, counted as duplicate on the wire
  kRejected = 5,   // invalid or refused by a user tombstone; see reason
};

struct AppendResult {
  std::vector<EventOutcome> outcomes;  // [events]
  std::vector<std::string> reasons;    // [events], empty unless rejected or conflict
  uint32_t accepted = 0, duplicate = 0, conflict = 0, rejected = 0;
  uint32_t late = 0;  // accepted events older than the newest one stored before this batch
  uint64_t seq = 0;   // the user's commit sequence after the batch
};

struct UserHead {
  uint64_t seq = 0;         // rises by one per committed batch that changed the user; 0 = never seen
  uint64_t epoch = 0;       // rises on delete, correction (a revision or tombstone of a stored event) or merge
  uint64_t hash = 0;        // order-independent hash over live events: equal histories, equal hash
  uint64_t events = 0;      // live events
  int64_t newest_us = -1;   // newest event time, -1 = none
  int64_t first_index = 0;  // index of the first retained event (a multiple of 4,096; retention cuts at anchors)
  bool operator==(const UserHead&) const = default;
};

// Events of one user that changed since a sequence number: what a cached state lacks.
struct HistoryTail {
  UserHead head;
  std::vector<Event> events;              // live events committed after `after_seq`, canonical order
  int64_t oldest_changed_us = INT64_MAX;  // every change since after_seq is at or after this time
  bool rebuild = false;  // the epoch changed or the log no longer reaches back: read the history instead
};

struct HistoryRange {
  AsOf as_of;
  int64_t from_us = 0;           // inclusive
  uint64_t newest = UINT64_MAX;  // at most this many, the newest ones
  bool include_tombstones = false;
};

// Which events Delete removes. Exactly one selector is used; all = the whole user, leaving a keyed-hash tombstone that
// refuses replays of events ingested before it.
struct DeleteSelector {
  bool all = false;
  std::vector<uint64_t> event_ids;
  int64_t from_us = 0, until_us = 0;  // [from, until) if until > from
  uint64_t item_id = 0;
  bool has_item = false;
};

// Thread-safe. Every call that names a user whose slot this store does not own returns FAILED_PRECONDITION with slot
// and owner. Damage is DATA_LOSS naming the file and the next command; a full disk RESOURCE_EXHAUSTED; never UNKNOWN.
class HistoryStore {
 public:
  virtual ~HistoryStore() = default;

  // Events of one user. Idempotent by (event_id, revision). Durable per `durability` when it returns OK. `now_us` is
  // the ingest time; events more than 24 h after it are rejected (INVALID_ARGUMENT semantics, per event).
  virtual absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events, int64_t now_us,
                                              Durability durability) = 0;
  // Several users in one commit (bulk import, AppendStream). Results in order of `batches`.
  struct UserBatch {
    UserKey user;
    std::vector<Event> events;
  };
  virtual absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const UserBatch> batches, int64_t now_us,
                                                               Durability durability) = 0;

  virtual absl::StatusOr<UserHead> Head(const UserKey& user) = 0;
  virtual absl::StatusOr<HistoryTail> Tail(const UserKey& user, uint64_t after_seq) = 0;
  // Canonical order, tombstoned events absent unless asked. Head is read in the same snapshot.
  struct Snapshot {
    UserHead head;
    std::vector<Event> events;
  };
  virtual absl::StatusOr<Snapshot> Read(const UserKey& user, const HistoryRange& range) = 0;

  virtual absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what, int64_t now_us) = 0;
  // `alias` becomes another id of `primary`: its events move, later calls with alias reach primary. Raises the epoch.
  virtual absl::Status Merge(const UserKey& alias, const UserKey& primary, int64_t now_us) = 0;
  // Drops events before the newest anchor at or before the last `keep` events, anchors being multiples of 4,096.
  virtual absl::StatusOr<uint64_t> Retain(const UserKey& user, uint64_t keep) = 0;

  // Users of a namespace in key order, streaming; stop by returning false.
  virtual absl::Status ForEachUser(std::string_view ns,
                                   const std::function<bool(const UserKey&, const UserHead&)>& visit) = 0;

  // One slot as an opaque checksummed stream, and back. Import into an owned slot replaces nothing: it appends.
  virtual absl::Status ExportSlot(int slot, const std::function<absl::Status(std::string_view chunk)>& sink) = 0;
  virtual absl::Status ImportSlot(int slot, const std::function<absl::StatusOr<std::string>()>& source) = 0;

  // Item statistics maintained in the same commits (exactly once): outcomes of `item_id` with event time before
  // `before_us`, rounded down to a multiple of `granularity_us` (a multiple of one hour, the stored cell).
  virtual absl::StatusOr<ItemCounts> CountsBefore(std::string_view ns, uint64_t item_id, int64_t before_us,
                                                  int64_t granularity_us) = 0;
  // CountsBefore of many items at once: visit(i, counts) for every i below item_ids.size(), in any order. `visit` must
  // be quick and not call the store. After an error some were not visited.
  using CountsVisit = std::function<void(size_t i, const ItemCounts& counts)>;
  virtual absl::Status ManyCountsBefore(std::string_view ns, std::span<const uint64_t> item_ids, int64_t before_us,
                                        int64_t granularity_us, const CountsVisit& visit) {
    for (size_t i = 0; i < item_ids.size(); ++i) {
      const absl::StatusOr<ItemCounts> counts = CountsBefore(ns, item_ids[i], before_us, granularity_us);
      if (!counts.ok()) return counts.status();
      visit(i, *counts);
    }
    return absl::OkStatus();
  }

  // A consistent openable copy in `directory` (must not exist), including the integrity record; online.
  virtual absl::Status Checkpoint(const std::string& directory) = 0;

  struct Stats {
    uint64_t users = 0, events = 0, disk_bytes = 0, wal_bytes = 0;
    uint64_t appended = 0, duplicate = 0, conflict = 0, rejected = 0, late = 0, commits = 0, syncs = 0;
  };
  virtual absl::StatusOr<Stats> GetStats() = 0;
  virtual absl::Status Compact() = 0;  // full compaction: after it, deleted bytes are gone from SST files
  // Writes fail since this status (disk full, background error); OK when healthy. For health and admission.
  virtual absl::Status WriteHealth() = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_HISTORY_STORE_H_
