// The output of a scoring run: parts that appear whole or not at all, and a manifest that says whose they are. What a
// killed run left can be gone on with; the result is the same, byte for byte.
#ifndef BACKSTORY_SERVING_CLI_SCORE_PARTS_H_
#define BACKSTORY_SERVING_CLI_SCORE_PARTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace backstory {

struct ScoreCounts {
  uint64_t rows = 0, scored = 0, bad = 0, unknown_users = 0, unknown_items = 0;
  void Add(const ScoreCounts& other);
};

// One process holds the folder at a time, as long as the object lives.
class ScoreParts {
 public:
  // FAILED_PRECONDITION naming what is in the way: another run in the folder; a run already there and not `resume`;
  // something in `manifest` that has changed since; files that are not ours. Errors of the file system.
  static absl::StatusOr<ScoreParts> Open(const std::string& directory, const nlohmann::json& manifest,
                                         const std::string& extension, bool resume);
  ~ScoreParts();
  ScoreParts(ScoreParts&& other) noexcept;
  ScoreParts& operator=(ScoreParts&&) = delete;

  // What a part held when it was written; nothing if it is not there.
  std::optional<ScoreCounts> Find(size_t part) const;
  // The part is there once this returns OK, and not before. `bad_rows` may be empty: no such file.
  absl::Status Write(size_t part, const std::string& rows, const std::string& bad_rows,
                     const ScoreCounts& counts) const;
  // The folder is complete.
  absl::Status Succeed(const nlohmann::json& summary) const;
  // Puts parts [0, n) together into `file`, their bad rows into `file`.bad-rows.EXT, and removes the folder. Parts
  // begin with headers of these lengths, of which the first is kept.
  absl::Status Join(size_t parts, const std::string& file, size_t header_bytes, size_t bad_header_bytes);

 private:
  ScoreParts(std::string directory, std::string extension, int lock)
      : directory_(std::move(directory)), extension_(std::move(extension)), lock_(lock) {}
  std::string PathOf(const char* prefix, size_t part, const std::string& extension) const;

  std::string directory_, extension_;
  int lock_ = -1;  // descriptor of the folder
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SCORE_PARTS_H_
