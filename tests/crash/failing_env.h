// A RocksDB Env whose writes fail on demand: the Nth call once, every call from the Nth on, or all as on a full disk.
#ifndef BACKSTORY_TESTS_CRASH_FAILING_ENV_H_
#define BACKSTORY_TESTS_CRASH_FAILING_ENV_H_

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <utility>

#include "store/store_core.h"

namespace backstory {

class FailingEnv {
 public:
  FailingEnv() : fs_(std::make_shared<Fs>()), env_(rocksdb::NewCompositeEnv(fs_)) {}
  rocksdb::Env* env() { return env_.get(); }
  std::shared_ptr<rocksdb::FileSystem> file_system() const { return fs_; }

  void NoSpace(bool on) { fs_->no_space = on; }
  // The `n`th write call from now fails (0 = never); with `forever` all after it too.
  void FailAt(int64_t n, bool forever) {
    fs_->forever = forever;
    fs_->countdown = n;
  }
  int64_t calls() const { return fs_->calls; }

 private:
  struct Fs : rocksdb::FileSystemWrapper {
    Fs() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
    const char* Name() const override { return "FailingFileSystem"; }

    std::atomic<bool> no_space{false}, forever{false};
    std::atomic<int64_t> countdown{0}, calls{0};

    rocksdb::IOStatus Check() {
      ++calls;
      if (no_space) return rocksdb::IOStatus::NoSpace("injected");
      int64_t left = countdown;
      while (left > 1 && !countdown.compare_exchange_weak(left, left - 1)) {
      }
      if (left != 1) return rocksdb::IOStatus::OK();
      if (!forever) countdown = 0;
      return rocksdb::IOStatus::IOError("injected");
    }

    rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSWritableFile>* file,
                                      rocksdb::IODebugContext* debug) override {
      if (auto status = Check(); !status.ok()) return status;
      auto status = FileSystemWrapper::NewWritableFile(name, options, file, debug);
      if (status.ok()) *file = std::make_unique<File>(std::move(*file), this);
      return status;
    }
    rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to, const rocksdb::IOOptions& options,
                                 rocksdb::IODebugContext* debug) override {
      if (auto status = Check(); !status.ok()) return status;
      return FileSystemWrapper::RenameFile(from, to, options, debug);
    }
    // Recovery from "no space" asks how much there is.
    rocksdb::IOStatus GetFreeSpace(const std::string& path, const rocksdb::IOOptions& options, uint64_t* bytes,
                                   rocksdb::IODebugContext* debug) override {
      if (no_space) {
        *bytes = 0;
        return rocksdb::IOStatus::OK();
      }
      return FileSystemWrapper::GetFreeSpace(path, options, bytes, debug);
    }
  };

  struct File : rocksdb::FSWritableFileOwnerWrapper {
    File(std::unique_ptr<rocksdb::FSWritableFile>&& file, Fs* fs)
        : FSWritableFileOwnerWrapper(std::move(file)), fs_(fs) {}
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* debug) override {
      if (auto status = fs_->Check(); !status.ok()) return status;
      return FSWritableFileOwnerWrapper::Append(data, options, debug);
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo& info, rocksdb::IODebugContext* debug) override {
      if (auto status = fs_->Check(); !status.ok()) return status;
      return FSWritableFileOwnerWrapper::Append(data, options, info, debug);
    }
    rocksdb::IOStatus PositionedAppend(const rocksdb::Slice& data, uint64_t offset, const rocksdb::IOOptions& options,
                                       rocksdb::IODebugContext* debug) override {
      if (auto status = fs_->Check(); !status.ok()) return status;
      return FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, debug);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
      if (auto status = fs_->Check(); !status.ok()) return status;
      return FSWritableFileOwnerWrapper::Sync(options, debug);
    }
    rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* debug) override {
      if (auto status = fs_->Check(); !status.ok()) return status;
      return FSWritableFileOwnerWrapper::Fsync(options, debug);
    }
    Fs* fs_;
  };

  std::shared_ptr<Fs> fs_;
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_CRASH_FAILING_ENV_H_
