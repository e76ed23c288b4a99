#include "store/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "store/kill_point.h"

namespace backstory {
namespace fs = std::filesystem;

absl::Status FileError(int error, std::string_view operation, const std::string& path) {
  const std::string message = absl::StrCat(std::string(operation), " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return FileError(errno, "open", path);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (in.bad()) return FileError(EIO, "read", path);
  return bytes.str();
}

absl::Status SyncDirectory(const std::string& directory) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "open", directory);
  const int failed = fsync(fd) != 0 ? errno : 0;
  close(fd);
  return failed != 0 ? FileError(failed, "fsync", directory) : absl::OkStatus();
}

absl::Status ReplaceFile(const std::string& path, std::string_view bytes) {
  const std::string temporary = path + ".tmp";
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "create", temporary);
  int failed = 0;
  while (!bytes.empty() && failed == 0) {
    const ssize_t n = write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno != EINTR) failed = errno;
    if (n > 0) bytes.remove_prefix(static_cast<size_t>(n));
  }
  if (failed == 0 && fsync(fd) != 0) failed = errno;
  close(fd);
  PassKillPoint(KillPoint::kRecordBeforeRename);
  if (failed == 0 && rename(temporary.c_str(), path.c_str()) != 0) failed = errno;
  if (failed != 0) {
    unlink(temporary.c_str());
    return FileError(failed, "write", path);
  }
  PassKillPoint(KillPoint::kRecordAfterRename);
  return SyncDirectory(fs::path(path).parent_path().string());
}

absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return FileError(error.value(), "list", directory);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status CopyStoreDirectory(const std::string& from, const std::string& to) {
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(from);
  if (!names.ok()) return names.status();
  std::error_code error;
  if (!fs::create_directories(to, error)) return FileError(error ? error.value() : EEXIST, "create directory", to);
  for (const std::string& name : *names) {
    const fs::path source = fs::path(from) / name, target = fs::path(to) / name;
    if (name == "LOCK" || name == "PROCESS_LOCK" || !fs::is_regular_file(source, error)) continue;
    if (name.ends_with(".sst")) {
      fs::create_hard_link(source, target, error);
      if (!error) continue;  // another file system: copy below
    }
    error.clear();
    fs::copy_file(source, target, error);
    if (error) return FileError(error.value(), "copy", source.string());
    const int fd = open(target.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return FileError(errno, "open", target.string());
    fsync(fd);
    close(fd);
  }
  return SyncDirectory(to);
}

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) close(fd_);
}

absl::Status DirectoryLock::Acquire(const std::string& directory, bool exclusive) {
  const std::string path = directory + "/PROCESS_LOCK";
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0 && !exclusive) return absl::OkStatus();  // a reader of a read-only medium needs no lock
  if (fd_ < 0) return FileError(errno, "open", path);
  if (flock(fd_, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0) {
    if (!exclusive) return absl::OkStatus();
    const std::string pid = absl::StrCat(getpid(), "\n");
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, pid.data(), pid.size(), 0) < 0) {
      // Who holds it is only told in messages: a full disk must not keep the store from opening.
    }
    return absl::OkStatus();
  }
  char holder[32] = {};
  const ssize_t n = pread(fd_, holder, sizeof(holder) - 1, 0);
  std::string pid(holder, n > 0 ? static_cast<size_t>(n) : 0);
  while (!pid.empty() && pid.back() == '\n') pid.pop_back();
  return absl::FailedPreconditionError(absl::StrCat("store ", directory, " is in use by process ",
                                                    pid.empty() ? "(unknown)" : pid,
                                                    "; stop it or open another directory"));
}

}  // namespace backstory
