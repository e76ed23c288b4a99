#include "store/log_file_system.h"

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

namespace backstory {
namespace {

using rocksdb::FileOptions;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

constexpr size_t kUnsyncedBytesMax = size_t{16} << 20;     // bounds the memory of a log that nobody syncs
constexpr size_t kPreallocatedBytesMax = size_t{1} << 20;  // RocksDB would take a whole write buffer from a small disk

}  // namespace

// One log. It remembers the bytes since the last successful sync, because after a failed one nobody knows which of them
// the operating system still has: they are all written again, at their old places.
class LogFile {
 public:
  LogFile(rocksdb::FileSystem* base, std::string name, const FileOptions& options)
      : base_(base), name_(std::move(name)), options_(options) {
    std::lock_guard<std::mutex> lock(mutex_);
    Create();
  }

  void Append(const Slice& data) {
    bool sync = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const uint64_t at = durable_ + unsynced_.size();
      unsynced_.append(data.data(), data.size());
      if (error_.ok()) error_ = file_->PositionedAppend(data, at, IOOptions(), nullptr);
      sync = unsynced_.size() > kUnsyncedBytesMax && error_.ok();
    }
    if (sync) Sync().PermitUncheckedError();
  }

  IOStatus Sync() {
    std::lock_guard<std::mutex> one_at_a_time(sync_mutex_);
    uint64_t end = 0;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_.ok() && !Rewrite().ok()) return error_;
      if (unsynced_.empty()) return IOStatus::OK();
      end = durable_ + unsynced_.size();
    }
    IOStatus synced = file_->Sync(IOOptions(), nullptr);  // appends go on meanwhile
    if (synced.ok() && !entry_durable_) synced = SyncDirectoryEntry();
    std::lock_guard<std::mutex> lock(mutex_);
    if (!synced.ok()) {
      error_ = synced;
    } else {
      unsynced_.erase(0, end - durable_);
      durable_ = end;
    }
    return error_;
  }

  IOStatus health() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return error_;
  }
  uint64_t size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return durable_ + unsynced_.size();
  }
  // RocksDB writes no more of it, and all it wrote is durable.
  bool finished() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return closed_ && unsynced_.empty() && error_.ok();
  }
  void PrepareWrite(size_t offset, size_t bytes, const IOOptions& options, IODebugContext* debug) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (error_.ok()) file_->PrepareWrite(offset, bytes, options, debug);
  }
  void SetPreallocationBlockSize(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (file_ != nullptr) file_->SetPreallocationBlockSize(std::min(bytes, kPreallocatedBytesMax));
  }
  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }

 private:
  // A new log must be found after a power loss. Called with sync_mutex_.
  IOStatus SyncDirectoryEntry() {
    std::unique_ptr<rocksdb::FSDirectory> directory;
    const size_t slash = name_.rfind('/');
    const std::string path = slash == std::string::npos ? "." : name_.substr(0, slash);
    IOStatus status = base_->NewDirectory(path, IOOptions(), &directory, nullptr);
    if (status.ok()) status = directory->FsyncWithDirOptions(IOOptions(), nullptr, rocksdb::DirFsyncOptions());
    entry_durable_ = status.ok();
    return status;
  }
  void Create() {
    error_ = base_->NewWritableFile(name_, options_, &file_, nullptr);
    if (!error_.ok()) file_.reset();
  }
  IOStatus Rewrite() {
    uint64_t free = 0;
    const IOStatus known = base_->GetFreeSpace(name_, IOOptions(), &free, nullptr);
    if (known.ok() && free < unsynced_.size()) return error_;  // sure to fail: spare the disk the attempt
    if (file_ == nullptr) Create();
    if (file_ != nullptr) error_ = file_->PositionedAppend(unsynced_, durable_, IOOptions(), nullptr);
    return error_;
  }

  rocksdb::FileSystem* const base_;
  const std::string name_;
  const FileOptions options_;
  std::mutex sync_mutex_;                 // held before mutex_; guards entry_durable_
  bool entry_durable_ = false;            // the directory was synced since the file was made
  mutable std::mutex mutex_;              // guards what follows; file_ is set once and synced without it
  std::unique_ptr<FSWritableFile> file_;  // null while it could not be created
  uint64_t durable_ = 0;                  // bytes that were synced
  std::string unsynced_;                  // the bytes after them
  IOStatus error_;                        // not OK: the file may lack some of unsynced_
  bool closed_ = false;
};

namespace {

// What RocksDB holds of a log. Never fails.
class LogHandle : public FSWritableFile {
 public:
  explicit LogHandle(std::shared_ptr<LogFile> log) : log_(std::move(log)) {}
  ~LogHandle() override { Close(IOOptions(), nullptr).PermitUncheckedError(); }

  using FSWritableFile::Append;
  IOStatus Append(const Slice& data, const IOOptions& /*options*/, IODebugContext* /*debug*/) override {
    log_->Append(data);
    return IOStatus::OK();
  }
  IOStatus Flush(const IOOptions& /*options*/, IODebugContext* /*debug*/) override { return IOStatus::OK(); }
  IOStatus Sync(const IOOptions& /*options*/, IODebugContext* /*debug*/) override {
    log_->Sync().PermitUncheckedError();  // tables ask again before they become durable
    return IOStatus::OK();
  }
  IOStatus Close(const IOOptions& /*options*/, IODebugContext* /*debug*/) override {
    log_->Close();
    return IOStatus::OK();
  }
  bool IsSyncThreadSafe() const override { return true; }
  uint64_t GetFileSize(const IOOptions& /*options*/, IODebugContext* /*debug*/) override { return log_->size(); }
  void PrepareWrite(size_t offset, size_t bytes, const IOOptions& options, IODebugContext* debug) override {
    log_->PrepareWrite(offset, bytes, options, debug);
  }
  void SetPreallocationBlockSize(size_t bytes) override { log_->SetPreallocationBlockSize(bytes); }

 private:
  const std::shared_ptr<LogFile> log_;
};

}  // namespace

class LogFileSystem::Table : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  Table(std::unique_ptr<FSWritableFile>&& file, std::string name, LogFileSystem* system)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), system_(system) {}
  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    const IOStatus admitted = system_->AdmitTableBytes(name_, data.size());
    return admitted.ok() ? FSWritableFileOwnerWrapper::Append(data, options, debug) : admitted;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo& info,
                  IODebugContext* debug) override {
    const IOStatus admitted = system_->AdmitTableBytes(name_, data.size());
    return admitted.ok() ? FSWritableFileOwnerWrapper::Append(data, options, info, debug) : admitted;
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    const IOStatus logs = system_->SyncClosedLogs();
    return logs.ok() ? FSWritableFileOwnerWrapper::Sync(options, debug) : logs;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    const IOStatus logs = system_->SyncClosedLogs();
    return logs.ok() ? FSWritableFileOwnerWrapper::Fsync(options, debug) : logs;
  }

 private:
  const std::string name_;
  LogFileSystem* const system_;
};

IOStatus LogFileSystem::SyncLogsBefore(uint64_t number) {
  std::vector<std::pair<uint64_t, std::shared_ptr<LogFile>>> logs;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& entry : logs_) {
      if (entry.first < number) logs.push_back(entry);
    }
  }
  for (const auto& [log_number, log] : logs) {
    if (IOStatus synced = log->Sync(); !synced.ok()) return synced;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  std::erase_if(logs_, [](const auto& entry) { return entry.second->finished(); });
  return IOStatus::OK();
}

IOStatus LogFileSystem::SyncClosedLogs() {
  uint64_t open = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!logs_.empty()) open = logs_.rbegin()->first;
  }
  return SyncLogsBefore(open);
}

IOStatus LogFileSystem::LogHealth() const {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [number, log] : logs_) {
    if (IOStatus health = log->health(); !health.ok()) return health;
  }
  return IOStatus::OK();
}

uint64_t LogFileSystem::LogNumber(const std::string& path) const {
  if (!path.ends_with(".log")) return 0;
  const std::filesystem::path file = std::filesystem::path(path).lexically_normal();
  if (file.parent_path() != directory_) return 0;  // a checkpoint's copy of a log, which may fail as any file
  const std::string name = file.filename().string();
  const char* const end = name.data() + name.size() - 4;
  uint64_t number = 0;
  const auto [stop, error] = std::from_chars(name.data(), end, number);
  return error == std::errc() && stop == end ? number : 0;
}

uint64_t LogFileSystem::FreeBytes(const std::string& path) {
  uint64_t bytes = 0;
  return GetFreeSpace(path, IOOptions(), &bytes, nullptr).ok() ? bytes : UINT64_MAX;
}

IOStatus LogFileSystem::AdmitTableBytes(const std::string& name, uint64_t bytes) {
  if (FreeBytes(name) >= table_reserve_bytes_ + bytes) return IOStatus::OK();
  return IOStatus::NoSpace("the last bytes of the disk are kept for logs");
}

IOStatus LogFileSystem::NewWritableFile(const std::string& name, const FileOptions& options,
                                        std::unique_ptr<FSWritableFile>* file, IODebugContext* debug) {
  if (const uint64_t number = LogNumber(name); number > 0) {
    auto log = std::make_shared<LogFile>(target(), name, options);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      logs_[number] = log;
    }
    *file = std::make_unique<LogHandle>(std::move(log));
    return IOStatus::OK();
  }
  const IOStatus made = FileSystemWrapper::NewWritableFile(name, options, file, debug);
  if (made.ok() && name.ends_with(".sst")) *file = std::make_unique<Table>(std::move(*file), name, this);
  return made;
}

IOStatus LogFileSystem::DeleteFile(const std::string& name, const IOOptions& options, IODebugContext* debug) {
  if (const uint64_t number = LogNumber(name); number > 0) {  // all it held is in tables
    std::lock_guard<std::mutex> lock(mutex_);
    logs_.erase(number);
  }
  return FileSystemWrapper::DeleteFile(name, options, debug);
}

}  // namespace backstory
