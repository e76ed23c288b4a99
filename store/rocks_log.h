// RocksDB's own log of what it does (LOG in the store's directory, text, for people).
#ifndef BACKSTORY_STORE_ROCKS_LOG_H_
#define BACKSTORY_STORE_ROCKS_LOG_H_

#include <memory>
#include <string>

namespace rocksdb {
class Logger;
}  // namespace rocksdb

namespace backstory {

// Appends to directory/LOG; at 1 MiB, and when made, the file becomes LOG.old. What cannot be written is dropped:
// RocksDB's own writer of LOG aborts the process, where assertions are on, at the second line after a disk was full.
std::shared_ptr<rocksdb::Logger> NewRocksLog(const std::string& directory);

// Writes nothing: where RocksDB only reads, the directory must not change.
std::shared_ptr<rocksdb::Logger> NewSilentLog();

}  // namespace backstory

#endif  // BACKSTORY_STORE_ROCKS_LOG_H_
