// What `ingest` and `tokenize` share: the flags that say how to read somebody's files, reports of bad rows, exit codes.
#ifndef BACKSTORY_SERVING_CLI_INGEST_COMMON_H_
#define BACKSTORY_SERVING_CLI_INGEST_COMMON_H_

#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/io/import_file.h"

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

// Exit codes of docs/reference/cli.md.
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitConfig = 3;
int ExitCodeOf(const absl::Status& status);

// Prints "backstory <command>: message" on stderr and leaves the command with the status's exit code, or `code` if
// given.
[[noreturn]] void Leave(const std::string& command, const absl::Status& status, int code = 0);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_INGEST_COMMON_H_
