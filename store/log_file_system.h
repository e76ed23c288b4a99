// The file system under RocksDB, made so that a full disk cannot end the process or lose what was acknowledged.
//
// RocksDB 7.8 gives up on a log for good once a write to it failed, and where its build has assertions (Debian's has)
// it aborts the process if the log is touched again. So towards RocksDB a log never fails here: what the disk does not
// take is kept in memory and written when it can be. The store asks SyncLogs() before it acknowledges anything, and
// sends no further write while a log is behind. Tables, which RocksDB may fail to write at any time, do fail: while a
// closed log is not durable, for a table must not outlive half of a commit, and before the last bytes of the disk, so
// that logs and file lists can still grow.
#ifndef BACKSTORY_STORE_LOG_FILE_SYSTEM_H_
#define BACKSTORY_STORE_LOG_FILE_SYSTEM_H_

#include <rocksdb/file_system.h>

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace backstory {

class LogFile;

// Thread-safe.
class LogFileSystem : public rocksdb::FileSystemWrapper {
 public:
  // Logs are those in `directory` itself: copies that a checkpoint makes of them elsewhere are files as any other.
  // Tables fail with "no space" while less than `table_reserve_bytes` are free.
  LogFileSystem(std::shared_ptr<rocksdb::FileSystem> base, const std::string& directory, uint64_t table_reserve_bytes)
      : FileSystemWrapper(std::move(base)),
        directory_((std::filesystem::path(directory) / "log").lexically_normal().parent_path()),  // as of a log's path
        table_reserve_bytes_(table_reserve_bytes) {}
  const char* Name() const override { return "BackstoryLogFileSystem"; }

  // Makes durable whatever RocksDB has appended to any log. After an error nothing is forgotten: call again.
  rocksdb::IOStatus SyncLogs() { return SyncLogsBefore(UINT64_MAX); }
  // OK if the operating system has all of it: what survives the end of the process, if not of the machine.
  rocksdb::IOStatus LogHealth() const;
  // Of the disk that holds `path`; UINT64_MAX if it cannot be known.
  uint64_t FreeBytes(const std::string& path);

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;

 private:
  class Table;
  rocksdb::IOStatus SyncLogsBefore(uint64_t number);
  rocksdb::IOStatus AdmitTableBytes(const std::string& name, uint64_t bytes);
  rocksdb::IOStatus SyncClosedLogs();
  // The number of a log by its name, DIRECTORY/000012.log; 0 for any other file.
  uint64_t LogNumber(const std::string& path) const;

  const std::filesystem::path directory_;
  const uint64_t table_reserve_bytes_;
  mutable std::mutex mutex_;                           // guards logs_
  std::map<uint64_t, std::shared_ptr<LogFile>> logs_;  // by number, unless closed and durable
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_LOG_FILE_SYSTEM_H_
