// What `ingest` and `tokenize` share: the flags that say how to read somebody's files, reports of bad rows, progress.
#ifndef BACKSTORY_SERVING_CLI_INGEST_COMMON_H_
#define BACKSTORY_SERVING_CLI_INGEST_COMMON_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/io/import_file.h"
#include "serving/cli/exit_codes.h"

namespace backstory {

// Values of --preset, --map, --map-items, --default and --time-unit.
struct ImportFlags {
  std::string preset;
  std::vector<std::string> columns, item_columns, constants;
  std::string time_unit;
};

void AddImportFlags(CLI::App* command, ImportFlags* flags);
absl::StatusOr<ImportMappings> MappingsOf(const ImportFlags& flags);

// Prints the first kShown bad rows as "path:line: reason" on stderr and counts all; optionally keeps every one in a
// file.
class BadRowReport {
 public:
  static constexpr uint64_t kShown = 20;
  // `keep_path` may be empty. INVALID_ARGUMENT naming the path if it cannot be written.
  absl::Status Open(const std::string& keep_path);
  void Add(const std::string& path, const BadRow& row);
  // The closing line ("12 more bad rows not shown"), and UNAVAILABLE-free status of the kept file.
  absl::Status Finish();
  uint64_t count() const { return count_; }

 private:
  uint64_t count_ = 0;
  std::string keep_path_;
  std::string kept_;
  bool Flush();
};

// A bar on stderr if that is a terminal, nothing elsewhere.
class ProgressBar {
 public:
  explicit ProgressBar(const char* what);
  void operator()(uint64_t done, uint64_t total);
  void Clear();

 private:
  const char* what_;
  const bool shown_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

// Leaves the command with a message that names it and the status's exit code, or `code` if given.
[[noreturn]] void Leave(const std::string& command, const absl::Status& status, int code = kExitOk);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_INGEST_COMMON_H_
