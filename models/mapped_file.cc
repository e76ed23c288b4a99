#include "models/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

absl::Status ErrnoStatus(const std::string& path, const char* what, int error) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case ELOOP:
      return absl::InvalidArgumentError(absl::StrCat(path, ": is a symbolic link, which is refused"));
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::Status WriteAll(int fd, const std::string& path, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(path, "write", errno);
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(folder, "open", errno);
  const int failed = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  return failed == 0 ? absl::OkStatus() : ErrnoStatus(folder, "fsync", failed);
}

absl::Status WriteAndSync(const std::string& path, std::span<const std::string_view> pieces) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return ErrnoStatus(path, "create", errno);
  absl::Status status;
  for (std::string_view piece : pieces) {
    if (status.ok()) status = WriteAll(fd, path, piece);
  }
  if (status.ok() && ::fsync(fd) != 0) status = ErrnoStatus(path, "fsync", errno);
  if (::close(fd) != 0 && status.ok()) status = ErrnoStatus(path, "close", errno);
  return status;
}

}  // namespace

absl::StatusOr<MappedFile> MapFile(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus(path, "open", errno);
  absl::Cleanup close_fd = [fd] { ::close(fd); };
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus(path, "stat", errno);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  MappedFile file;
  file.size = static_cast<size_t>(info.st_size);
  if (file.size == 0) return file;
  void* memory = ::mmap(nullptr, file.size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (memory == MAP_FAILED) return ErrnoStatus(path, "mmap", errno);
  const size_t size = file.size;
  file.owner = std::shared_ptr<const uint8_t>(static_cast<const uint8_t*>(memory), [size](const uint8_t* bytes) {
    ::munmap(const_cast<uint8_t*>(bytes), size);
  });
  return file;
}

absl::Status WriteFileAtomically(const std::string& path, std::span<const std::string_view> pieces) {
  const std::string temporary = absl::StrCat(path, ".tmp.", ::getpid());
  absl::Status status = WriteAndSync(temporary, pieces);
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) status = ErrnoStatus(path, "rename", errno);
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return status;
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return SyncFolder(folder.empty() ? "." : folder);
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view content) {
  return WriteFileAtomically(path, std::span<const std::string_view>(&content, 1));
}

}  // namespace backstory
