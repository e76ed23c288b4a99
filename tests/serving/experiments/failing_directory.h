// Log segments in memory whose disk fills up, heals, and refuses to cut, when told to.
#ifndef BACKSTORY_TESTS_SERVING_EXPERIMENTS_FAILING_DIRECTORY_H_
#define BACKSTORY_TESTS_SERVING_EXPERIMENTS_FAILING_DIRECTORY_H_

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "serving/engine/experiments/rotating_log.h"

namespace backstory {

// Thread-safe.
class FailingDirectory : public LogDirectory {
 public:
  absl::StatusOr<std::unique_ptr<AppendFile>> Create(const std::string& name) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (left_ == 0) return absl::ResourceExhaustedError("cannot create " + name + ": disk full");
    if (!files_.emplace(name, "").second) return absl::InternalError(name + " exists");
    std::unique_ptr<AppendFile> file = std::make_unique<File>(this, name);
    return file;
  }

  void FailAfterBytes(uint64_t left) { Set([&] { left_ = left; }); }
  void FailTruncate(bool fail) { Set([&] { truncate_fails_ = fail; }); }
  void Heal() { Set([&] { left_ = UINT64_MAX, truncate_fails_ = false; }); }
  std::map<std::string, std::string> files() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return files_;
  }
  std::string all() const {
    std::string text;
    for (const auto& [name, content] : files()) text += content;
    return text;
  }
  uint64_t synced_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    uint64_t bytes = 0;
    for (const auto& [name, size] : synced_) bytes += size;
    return bytes;
  }

 private:
  class File : public AppendFile {
   public:
    File(FailingDirectory* directory, std::string name) : directory_(directory), name_(std::move(name)) {}
    absl::Status Append(std::string_view bytes) override {
      const std::lock_guard<std::mutex> lock(directory_->mutex_);
      const size_t take = std::min<uint64_t>(bytes.size(), directory_->left_);
      directory_->files_[name_].append(bytes.substr(0, take));
      if (directory_->left_ != UINT64_MAX) directory_->left_ -= take;
      return take == bytes.size() ? absl::OkStatus() : absl::ResourceExhaustedError("cannot write " + name_ + ": disk full");
    }
    absl::Status Sync() override {
      const std::lock_guard<std::mutex> lock(directory_->mutex_);
      directory_->synced_[name_] = directory_->files_[name_].size();
      return absl::OkStatus();
    }
    absl::Status Truncate(uint64_t size) override {
      const std::lock_guard<std::mutex> lock(directory_->mutex_);
      if (directory_->truncate_fails_) return absl::InternalError("cannot cut");
      directory_->files_[name_].resize(size);
      return absl::OkStatus();
    }

   private:
    FailingDirectory* const directory_;
    const std::string name_;
  };

  template <typename Change>
  void Set(const Change& change) {
    const std::lock_guard<std::mutex> lock(mutex_);
    change();
  }

  mutable std::mutex mutex_;
  std::map<std::string, std::string> files_;
  std::map<std::string, uint64_t> synced_;
  uint64_t left_ = UINT64_MAX;
  bool truncate_fails_ = false;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SERVING_EXPERIMENTS_FAILING_DIRECTORY_H_
