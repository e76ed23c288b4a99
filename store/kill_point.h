// Named places in the store where the crash tests end the process. Test only, and always compiled in, so that what is
// tested is what ships; a pass costs one branch.
#ifndef BACKSTORY_STORE_KILL_POINT_H_
#define BACKSTORY_STORE_KILL_POINT_H_

#include <span>
#include <string_view>

namespace backstory {

enum class KillPoint {
  kBeforeWrite,         // a commit is prepared
  kAfterWrite,          // it is in the log and readable, not yet synced
  kAfterSync,           // the log is synced, the watermark not yet raised
  kAfterWatermark,      // durable, not yet acknowledged
  kRecordBeforeRename,  // the new integrity record is written beside the old
  kRecordAfterRename,   // it is in place, its directory not yet synced
  kOpenMarked,          // the record says that the store is being opened
  kOpenRecovered,       // RocksDB has replayed its logs, the record does not know it yet
  kFlushed,             // RocksDB has written a table, on its thread
  kCompacted,           // it has replaced tables
  kCheckpointMade,      // a checkpoint lies under its temporary name
  kCheckpointAdopted,   // it has its own record, not yet its name
  kImportFrame,         // between two commits of a slot import
  kDeletePrepared,      // each of the rarer changes, before its write
  kDeleteUserPrepared,
  kMergePrepared,
  kRetainPrepared,
  kFoldPrepared,
  kCloseFlushed,  // all is in tables, the record says open
  kCloseDone,     // RocksDB is closed, the record still says open
};

// Every point with its name in BACKSTORY_KILL_POINT, in the order above.
std::span<const std::string_view> KillPointNames();

// Kills the process (SIGKILL) at the nth pass of the point that the environment variable BACKSTORY_KILL_POINT=name:n
// names, n >= 1. Without the variable, or with a name that does not exist, nothing. Thread-safe.
void PassKillPoint(KillPoint point);

}  // namespace backstory

#endif  // BACKSTORY_STORE_KILL_POINT_H_
