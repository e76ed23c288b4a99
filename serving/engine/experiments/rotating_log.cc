#include "serving/engine/experiments/rotating_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace backstory {
namespace {

absl::Status Failed(const std::string& what, const std::string& path, int error) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

class PosixAppendFile : public AppendFile {
 public:
  PosixAppendFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixAppendFile() override { close(fd_); }

  absl::Status Append(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = write(fd_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Failed("cannot write", path_, errno);
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override { return fdatasync(fd_) == 0 ? absl::OkStatus() : Failed("cannot sync", path_, errno); }
  absl::Status Truncate(uint64_t size) override {
    return ftruncate(fd_, static_cast<off_t>(size)) == 0 ? absl::OkStatus() : Failed("cannot cut", path_, errno);
  }

 private:
  const int fd_;
  const std::string path_;
};

class PosixLogDirectory : public LogDirectory {
 public:
  explicit PosixLogDirectory(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<std::unique_ptr<AppendFile>> Create(const std::string& name) override {
    const std::string path = absl::StrCat(path_, "/", name);
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0640);
    if (fd < 0) return Failed("cannot create", path, errno);
    // The name itself has to survive a power loss.
    const int directory = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = directory >= 0 && fsync(directory) == 0;
    const int error = errno;
    if (directory >= 0) close(directory);
    std::unique_ptr<AppendFile> file = std::make_unique<PosixAppendFile>(fd, path);
    if (!synced) return Failed("cannot sync", path_, error);
    return file;
  }

 private:
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LogDirectory>> OpenLogDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::FailedPreconditionError(absl::StrCat("cannot create ", path, ": ", error.message()));
  if (access(path.c_str(), W_OK) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("cannot write to ", path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<LogDirectory>(std::make_unique<PosixLogDirectory>(path));
}

RotatingLog::RotatingLog(LogDirectory* directory, const Clock* clock, RotatingLogOptions options)
    : directory_(directory), clock_(clock), options_(std::move(options)) {}

absl::Status RotatingLog::Append(std::string_view lines) {
  const bool full = bytes_ > 0 && bytes_ + lines.size() > options_.segment_bytes_max;
  const bool old = bytes_ > 0 && clock_->MonotonicMicros() - opened_us_ >= options_.segment_us_max;
  if (file_ == nullptr || full || old) {
    if (const absl::Status status = Rotate(); !status.ok()) return status;
  }
  const absl::Status status = file_->Append(lines);
  if (status.ok()) {
    bytes_ += lines.size();
    return status;
  }
  if (!file_->Truncate(bytes_).ok()) Abandon();
  return status;
}

absl::Status RotatingLog::Sync() { return file_ == nullptr ? absl::OkStatus() : file_->Sync(); }

absl::Status RotatingLog::Rotate() {
  if (file_ != nullptr) {
    // A segment is closed with everything in it on disk.
    if (const absl::Status status = file_->Sync(); !status.ok()) return status;
    Abandon();
  }
  const int64_t now_us = clock_->WallMicros();
  const std::time_t seconds = static_cast<std::time_t>(now_us / 1'000'000);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &utc);
  const std::string name =
      absl::StrFormat("%s-%s-%06d%04d.jsonl", options_.prefix, text, now_us % 1'000'000, segments_ % 10'000);
  auto file = directory_->Create(name);
  ++segments_;
  if (!file.ok()) return file.status();
  file_ = *std::move(file);
  bytes_ = 0;
  opened_us_ = clock_->MonotonicMicros();
  return absl::OkStatus();
}

void RotatingLog::Abandon() {
  file_.reset();
  bytes_ = 0;
}

absl::StatusOr<std::vector<std::string>> ListSegments(const std::string& directory, const std::string& prefix) {
  std::error_code error;
  std::vector<std::string> paths;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(prefix + "-") && name.ends_with(".jsonl")) paths.push_back(it->path().string());
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot list ", directory, ": ", error.message()));
  std::ranges::sort(paths);
  return paths;
}

}  // namespace backstory
