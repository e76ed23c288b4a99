#include "store/rocks_log.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <utility>

namespace backstory {
namespace {

constexpr size_t kLogBytesMax = size_t{1} << 20;
constexpr size_t kLineBytesMax = 4096;

class RocksLog : public rocksdb::Logger {
 public:
  explicit RocksLog(std::string path) : path_(std::move(path)) { Rotate(); }
  ~RocksLog() override {
    if (fd_ >= 0) close(fd_);
  }

  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char line[kLineBytesMax];
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    tm utc{};
    gmtime_r(&now.tv_sec, &utc);
    size_t size = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &utc);
    size += static_cast<size_t>(std::snprintf(line + size, sizeof(line) - size, ".%06ldZ ", now.tv_nsec / 1000));
    const int text = std::vsnprintf(line + size, sizeof(line) - size, format, arguments);
    if (text < 0) return;
    size = std::min(size + static_cast<size_t>(text), sizeof(line) - 2);  // longer lines are cut
    if (line[size - 1] != '\n') line[size++] = '\n';
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ + size > kLogBytesMax) Rotate();
    if (fd_ < 0 || write(fd_, line, size) < 0) return;
    bytes_ += size;
  }
  size_t GetLogFileSize() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 protected:
  rocksdb::Status CloseImpl() override { return rocksdb::Status::OK(); }

 private:
  void Rotate() {
    if (fd_ >= 0) close(fd_);
    (void)std::rename(path_.c_str(), (path_ + ".old").c_str());
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    bytes_ = 0;
  }

  const std::string path_;
  mutable std::mutex mutex_;  // guards what follows
  int fd_ = -1;
  size_t bytes_ = 0;
};

class SilentLog : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char* /*format*/, va_list /*arguments*/) override {}

 protected:
  rocksdb::Status CloseImpl() override { return rocksdb::Status::OK(); }
};

}  // namespace

std::shared_ptr<rocksdb::Logger> NewRocksLog(const std::string& directory) {
  return std::make_shared<RocksLog>(directory + "/LOG");
}

std::shared_ptr<rocksdb::Logger> NewSilentLog() { return std::make_shared<SilentLog>(); }

}  // namespace backstory
