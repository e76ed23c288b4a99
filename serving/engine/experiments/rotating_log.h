// Segments of lines in a directory: appended whole or not at all, rotated by size and age, never rewritten.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ROTATING_LOG_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ROTATING_LOG_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/clock.h"

namespace backstory {

// One file being appended to. Not thread-safe.
class AppendFile {
 public:
  virtual ~AppendFile() = default;
  // RESOURCE_EXHAUSTED if the disk is full, else INTERNAL; a part of `bytes` may have been written.
  virtual absl::Status Append(std::string_view bytes) = 0;
  virtual absl::Status Sync() = 0;
  virtual absl::Status Truncate(uint64_t size) = 0;
};

// Where segments lie; tests put a failing one here.
class LogDirectory {
 public:
  virtual ~LogDirectory() = default;
  // Fails if `name` exists.
  virtual absl::StatusOr<std::unique_ptr<AppendFile>> Create(const std::string& name) = 0;
};
// Creates the directory (and its parents) if it does not exist.
absl::StatusOr<std::unique_ptr<LogDirectory>> OpenLogDirectory(const std::string& path);

struct RotatingLogOptions {
  std::string prefix = "exposures";
  uint64_t segment_bytes_max = uint64_t{64} << 20;    // a segment is closed before it would exceed this
  int64_t segment_us_max = int64_t{3600} * 1'000'000;  // and once it is this old
};

// Not thread-safe. Segments are named <prefix>-<UTC time of opening, yyyymmddThhmmssZ>-<microseconds><sequence>.jsonl, so that
// names sort by time. A process never appends to a segment of an earlier one: only the last line of a segment can be torn.
class RotatingLog {
 public:
  RotatingLog(LogDirectory* directory, const Clock* clock, RotatingLogOptions options);
  // Whole lines, the last one ended. On failure the segment is cut back to what it was, and if that fails too it is left
  // behind for a new one, so that no half line is ever followed by another.
  absl::Status Append(std::string_view lines);
  // What was appended is on disk when this returns OK.
  absl::Status Sync();
  uint64_t segments() const { return segments_; }

 private:
  absl::Status Rotate();
  void Abandon();

  LogDirectory* const directory_;
  const Clock* const clock_;
  const RotatingLogOptions options_;
  std::unique_ptr<AppendFile> file_;
  uint64_t bytes_ = 0;
  int64_t opened_us_ = 0;
  uint64_t segments_ = 0;
};

// The segments of a directory with this prefix, oldest first. NOT_FOUND if there is no such directory.
absl::StatusOr<std::vector<std::string>> ListSegments(const std::string& directory, const std::string& prefix);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ROTATING_LOG_H_
