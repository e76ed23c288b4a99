// Opens the embedded store: user histories, item statistics and item catalog in one directory, on RocksDB.
// On-disk format: store/FORMAT.md. No RocksDB type appears here.
#ifndef BACKSTORY_STORE_ROCKSDB_HISTORY_STORE_H_
#define BACKSTORY_STORE_ROCKSDB_HISTORY_STORE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

// Who serves the slots [first, last]. Ranges must not overlap.
struct SlotRange {
  int first = 0;
  int last = kSlotCount - 1;
  std::string owner;
};

struct StoreOptions {
  // ---- Behaviour ----

  // Directory of the store. Two processes never open one directory: the second gets FAILED_PRECONDITION naming the
  // first.
  std::string directory;

  // Make a new store where the directory is absent or empty. Off, such a directory is NOT_FOUND: safer in production,
  // where an unmounted volume looks like an empty directory.
  bool create_if_missing = true;

  // Answer reads only; nothing in the directory changes, so several processes may do it while no writer is open.
  bool read_only = false;

  // Slots of this process: those whose `owner` equals `self`. No range at all = every slot is ours. Calls for a user of
  // another slot fail with FAILED_PRECONDITION naming slot and owner.
  std::string self = "local";
  std::vector<SlotRange> slots;

  // kBuffered acknowledgements reach the disk at the latest this long after they were given: what a power loss may take
  // back. (A killed process takes back nothing.) Lower costs more fsyncs. 1 ms .. 10 s.
  std::chrono::milliseconds wal_flush_interval{100};

  // Writes are refused with RESOURCE_EXHAUSTED while the disk has less free than this, and resume by themselves. Half of
  // it is also out of reach of tables, so that logs, file lists and the integrity record can be finished. Lower only on
  // a tiny disk.
  size_t reserve_bytes = size_t{8} << 20;

  // ---- Performance ----

  // Uncompressed blocks of histories kept for reads. 4,096 events take about 60-100 KB.
  size_t block_cache_bytes = size_t{256} << 20;

  // Events that live in memory before a sorted file is written, per column family of histories; also bounds the log
  // that is replayed after a crash (about 0.5 s per 64 MiB). Most users leave this alone.
  size_t write_buffer_bytes = size_t{64} << 20;

  // Writer's memory of heads and event ids of recently appended users (about 40 bytes an event): without it an append
  // reads the user's ids from disk first (about 1 ms per 20,000 events).
  size_t writer_cache_bytes = size_t{256} << 20;

  // Item statistics kept in memory for CountsBefore (16 bytes a cell).
  size_t cell_cache_bytes = size_t{128} << 20;

  // Threads for flush and compaction. More compete with scoring for cores.
  int background_threads = 2;
};

// Both halves share one directory, one log and one commit thread; either may be destroyed first.
struct Store {
  std::unique_ptr<HistoryStore> history;
  std::unique_ptr<Catalog> catalog;
};

// Checks the integrity record before anything is opened for writing. Errors: NOT_FOUND (no store and not
// create_if_missing), FAILED_PRECONDITION (locked by another process, newer format version), DATA_LOSS (damage; names
// the file and the next command; nothing was changed or deleted), RESOURCE_EXHAUSTED (disk full), INVALID_ARGUMENT
// (options).
absl::StatusOr<Store> OpenStore(const StoreOptions& options);

// The history half alone.
absl::StatusOr<std::unique_ptr<HistoryStore>> OpenHistoryStore(const StoreOptions& options);

}  // namespace backstory

#endif  // BACKSTORY_STORE_ROCKSDB_HISTORY_STORE_H_
