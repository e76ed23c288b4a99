// The RocksDB database under the store: how it is opened, checked, written, synced, closed. Internal to store/.
#ifndef BACKSTORY_STORE_DATABASE_H_
#define BACKSTORY_STORE_DATABASE_H_

#include <rocksdb/db.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/files.h"
#include "store/integrity.h"
#include "store/log_file_system.h"
#include "store/rocksdb_history_store.h"

namespace backstory {

// Column families, in the order of Database::family. Their names are persisted.
enum class Family : size_t { kMeta = 0, kHeads = 1, kHistory = 2, kCells = 3, kCatalog = 4 };
inline constexpr const char* kFamilyNames[] = {"default", "heads", "history", "cells", "catalog"};
inline constexpr size_t kFamilies = 5;

// Corruption is DATA_LOSS with the next command, no space RESOURCE_EXHAUSTED, other I/O errors UNAVAILABLE.
absl::Status FromRocks(const rocksdb::Status& status, const std::string& directory);

// Thread-safe, except that Write has one caller at a time (the commit thread).
class Database {
 public:
  // env: where RocksDB reads and writes; tests pass one that fails. It must outlive the database.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const StoreOptions& options, rocksdb::Env* env);
  // Flushes, closes and marks the record closed.
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  rocksdb::DB* rocks() const { return db_.get(); }
  rocksdb::ColumnFamilyHandle* family(Family f) const { return handles_[static_cast<size_t>(f)]; }
  const std::string& directory() const { return options_.directory; }
  bool read_only() const { return options_.read_only; }

  // false if absent.
  absl::StatusOr<bool> Get(Family f, const std::string& key, std::string* value,
                           const rocksdb::Snapshot* snapshot = nullptr) const;
  std::unique_ptr<rocksdb::Iterator> Scan(Family f, const rocksdb::Snapshot* snapshot = nullptr,
                                          bool bulk = false) const;

  // Atomic. With sync, durable and the watermark raised when it returns OK; without, safe from the end of the process.
  // After an error the batch may be readable, and may become durable later, but counts as not acknowledged.
  absl::Status Write(rocksdb::WriteBatch* batch, bool sync);
  absl::Status SyncLog();
  absl::Status EnsureSynced();  // SyncLog if anything written is not yet acknowledged as durable

  // Copies the store as it is now; see HistoryStore::Checkpoint.
  absl::Status Checkpoint(const std::string& directory);
  absl::Status CompactAll();
  // Why writes are refused now, as far as is known without one.
  absl::Status Health() const;
  uint64_t syncs() const { return syncs_; }

  // 16 random bytes each: this store's own, and all, those that came with imported slots after it.
  const std::string& own_secret() const { return own_secret_; }
  std::vector<std::string> secrets() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return secrets_;
  }
  void AddSecret(const std::string& secret, rocksdb::WriteBatch* batch);  // commit thread only

 private:
  class Listener;

  Database(const StoreOptions& options, rocksdb::Env* env) : options_(options), env_(env) {}
  absl::Status OpenForWriting(DirectoryState found);
  absl::Status OpenReadOnly();
  absl::Status PrepareMeta(bool created);
  absl::Status DescribeFiles(IntegrityRecord* record) const;  // MANIFEST and live SSTs of one moment
  absl::Status WriteRecord(IntegrityRecord::State state);
  absl::Status AdmitWrite();
  absl::Status CheckSpace() const;
  void Maintain();
  void MarkRecordStale();

  const StoreOptions options_;
  rocksdb::Env* const env_;
  DirectoryLock lock_;
  std::shared_ptr<LogFileSystem> files_;  // under db_; null if read-only
  std::unique_ptr<rocksdb::Env> log_env_;
  std::shared_ptr<Listener> listener_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
  std::string own_secret_;  // set while opening

  std::mutex sync_mutex_;  // guards watermark_
  Watermark watermark_;
  std::atomic<uint64_t> acknowledged_{0};
  std::atomic<uint64_t> syncs_{0};
  std::atomic<bool> unsynced_{false};

  std::mutex checkpoint_mutex_;  // one checkpoint at a time
  std::mutex record_mutex_;      // one writer of the record at a time
  mutable std::mutex mutex_;     // guards what follows
  std::condition_variable wake_;
  std::vector<std::string> secrets_;
  bool stopping_ = false;
  bool record_stale_ = false;
  absl::Status background_error_;
  std::thread maintenance_;
};

// RocksDB options shared by all who open a store's files: verify and repair as well.
rocksdb::Options BaseOptions(const StoreOptions& options, rocksdb::Env* env);
std::vector<rocksdb::ColumnFamilyDescriptor> FamilyDescriptors(const StoreOptions& options,
                                                               const rocksdb::Options& base, bool compactions);

// A store's files opened by RocksDB without changing them.
struct ReadOnlyFiles {
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  ReadOnlyFiles() = default;
  ReadOnlyFiles(ReadOnlyFiles&&) = default;
  ~ReadOnlyFiles();
  std::map<std::string, SstFile> LiveSsts() const;
};
absl::StatusOr<ReadOnlyFiles> OpenFilesReadOnly(const StoreOptions& options, rocksdb::Env* env);

// The whole check before a store may be opened for writing: files closed, then against a read-only open.
absl::StatusOr<IntegrityRecord> CheckStore(const StoreOptions& options, rocksdb::Env* env);

// Writes record and watermark for files that were just copied or repaired and are open nowhere.
absl::Status AdoptDirectory(const std::string& directory, rocksdb::Env* env);

}  // namespace backstory

#endif  // BACKSTORY_STORE_DATABASE_H_
