// Offline care of a store: check it, put a backup in its place, save what is readable. No process may have it open for
// writing. Nothing is ever deleted: repair moves the damaged directory aside.
#ifndef BACKSTORY_STORE_MAINTENANCE_H_
#define BACKSTORY_STORE_MAINTENANCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace backstory {

struct VerifyReport {
  uint64_t users = 0, aliases = 0, events = 0, tombstones = 0, blocks = 0, tail_records = 0, items = 0, sst_files = 0;
  std::vector<std::string> problems;  // each names a file or a record; empty = sound. At most 100.
};

// Read-only. Integrity record, checksums of every block of every file, then the logic: every record decodes, blocks are
// in order, heads agree with their events, item statistics with all events. An error only where checking is impossible
// (NOT_FOUND, FAILED_PRECONDITION if in use); damage is a problem in the report.
absl::StatusOr<VerifyReport> VerifyStore(const std::string& directory);

struct RepairReport {
  std::string damaged_moved_to;  // where the old directory is now
  uint64_t users = 0, events = 0, items = 0;
  uint64_t unreadable = 0;  // records that could not be read or attributed to a user
  std::vector<std::string> notes;
};

// Puts a copy of `checkpoint` (verified first, kept) in the store's place. What was acknowledged after it is not in it;
// the damaged directory is kept beside it.
absl::StatusOr<RepairReport> RepairFromBackup(const std::string& directory, const std::string& checkpoint);

// Builds a new store from every record that can still be read. What was lost is counted as far as it can be known;
// events may be missing without being counted where a log or a file list was cut.
absl::StatusOr<RepairReport> SalvageStore(const std::string& directory);

}  // namespace backstory

#endif  // BACKSTORY_STORE_MAINTENANCE_H_
