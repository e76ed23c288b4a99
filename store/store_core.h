// What the two halves of a store share: the database and the thread that changes it. Internal to store/.
#ifndef BACKSTORY_STORE_STORE_CORE_H_
#define BACKSTORY_STORE_STORE_CORE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "store/cell_cache.h"
#include "store/commit_queue.h"
#include "store/database.h"
#include "store/history_reader.h"
#include "store/history_writer.h"
#include "store/rocksdb_history_store.h"
#include "store/slots.h"

namespace backstory {

// Members are destroyed bottom up: the queue carries out what is queued, then the database closes.
struct StoreCore {
  StoreCore(std::unique_ptr<Database> opened, SlotMap slot_map, const StoreOptions& options)
      : database(std::move(opened)),
        slots(std::move(slot_map)),
        reader(database.get()),
        cells(database.get(), options.cell_cache_bytes),
        writer(database.get(), &cells, options.writer_cache_bytes),
        queue(&writer) {}

  std::unique_ptr<Database> database;
  SlotMap slots;
  HistoryReader reader;
  CellCache cells;
  HistoryWriter writer;
  CommitQueue queue;

  // FAILED_PRECONDITION for a store that was opened read-only.
  absl::Status CheckWritable() const;
};

absl::StatusOr<std::shared_ptr<StoreCore>> OpenCore(const StoreOptions& options, rocksdb::Env* env);

// As OpenStore; env serves RocksDB's files (tests make it fail) and must outlive the store.
absl::StatusOr<Store> OpenStoreWithEnv(const StoreOptions& options, rocksdb::Env* env);

std::unique_ptr<HistoryStore> NewHistoryStore(std::shared_ptr<StoreCore> core);
absl::StatusOr<std::unique_ptr<Catalog>> NewCatalog(std::shared_ptr<StoreCore> core);

}  // namespace backstory

#endif  // BACKSTORY_STORE_STORE_CORE_H_
