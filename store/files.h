// The few file operations the store does besides RocksDB.
#ifndef BACKSTORY_STORE_FILES_H_
#define BACKSTORY_STORE_FILES_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

// errno of a failed operation as a status: RESOURCE_EXHAUSTED for a full disk, NOT_FOUND, PERMISSION_DENIED, else
// UNAVAILABLE.
absl::Status FileError(int error, std::string_view operation, const std::string& path);

absl::StatusOr<std::string> ReadWholeFile(const std::string& path);
// Write to path.tmp, fsync, rename, fsync the directory.
absl::Status ReplaceFile(const std::string& path, std::string_view bytes);
absl::Status SyncDirectory(const std::string& directory);
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& directory);  // sorted names
// Hard links what never changes (SST files), copies and fsyncs the rest. `to` must not exist.
absl::Status CopyStoreDirectory(const std::string& from, const std::string& to);

// An advisory lock held as long as the object lives; released by the kernel if the process dies.
class DirectoryLock {
 public:
  DirectoryLock() = default;
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  // FAILED_PRECONDITION naming the process that holds it.
  absl::Status Acquire(const std::string& directory, bool exclusive);

 private:
  int fd_ = -1;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_FILES_H_
