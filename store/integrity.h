// The integrity record: what RocksDB does not notice by itself. RocksDB may open a store whose log or MANIFEST is
// damaged, drop acknowledged data without a word and delete the files it no longer knows. So two small files stand
// beside it:
//
//   INTEGRITY  text, replaced by write-fsync-rename after each flush and compaction: the MANIFEST's name, length and
//              checksum up to that length, every live SST with size and checksum, and the state of the store.
//   WATERMARK  two 64-byte slots written in turn after each log sync: the newest sequence number that was acknowledged.
//
// Both are checked with everything closed, then against a read-only open, before the store is ever opened for writing.
#ifndef BACKSTORY_STORE_INTEGRITY_H_
#define BACKSTORY_STORE_INTEGRITY_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

inline constexpr uint32_t kStoreFormatVersion = 1;
inline constexpr std::string_view kIntegrityFile = "INTEGRITY";
inline constexpr std::string_view kWatermarkFile = "WATERMARK";

struct SstFile {
  uint64_t bytes = 0;
  std::string checksum;  // hex of the file checksum that RocksDB keeps; may be empty
  bool operator==(const SstFile&) const = default;
};

struct IntegrityRecord {
  enum class State { kCreating, kOpening, kOpen, kClosed };
  State state = State::kCreating;
  uint32_t format_version = kStoreFormatVersion;
  uint64_t sequence = 0;  // acknowledged when the record was written
  std::string manifest;   // file name
  uint64_t manifest_bytes = 0;
  uint64_t manifest_hash = 0;  // XXH3-64 of the first manifest_bytes
  std::map<std::string, SstFile> ssts;
};

std::string FormatIntegrity(const IntegrityRecord& record);
// DATA_LOSS if the text is damaged, FAILED_PRECONDITION if its format version is newer than ours.
absl::StatusOr<IntegrityRecord> ParseIntegrity(std::string_view text);

// Durable and atomic: after a crash the old or the new record is there.
absl::Status WriteIntegrity(const std::string& directory, const IntegrityRecord& record);
absl::StatusOr<IntegrityRecord> ReadIntegrity(const std::string& directory);

// XXH3-64 of the first `bytes` of a file; DATA_LOSS naming it if it is shorter or unreadable.
absl::StatusOr<uint64_t> HashFilePrefix(const std::string& path, uint64_t bytes);

// What a directory holds, seen without RocksDB.
enum class DirectoryState { kAbsent, kEmpty, kStore };
absl::StatusOr<DirectoryState> InspectDirectory(const std::string& directory);

// With all files closed: record readable, CURRENT and MANIFEST as recorded, recorded SSTs present with their size.
// Returns the record. Any difference that a crash cannot explain is DATA_LOSS naming the file.
absl::StatusOr<IntegrityRecord> CheckFiles(const std::string& directory);

// After a read-only open: what RocksDB believes to be live, against the record and the watermark.
absl::Status CheckAgainstLive(const std::string& directory, const IntegrityRecord& record,
                              const std::map<std::string, SstFile>& live, uint64_t live_sequence, uint64_t watermark);

// The end of every DATA_LOSS message.
std::string DamageAdvice(const std::string& directory);

// The acknowledged sequence number. Not thread-safe. Written without fsync on each acknowledgement (so a killed process
// loses nothing); Sync is called now and then, which bounds what a power loss hides.
class Watermark {
 public:
  Watermark() = default;
  ~Watermark();
  Watermark(const Watermark&) = delete;
  Watermark& operator=(const Watermark&) = delete;

  absl::Status Open(const std::string& directory);  // creates it durably if absent
  absl::Status Set(uint64_t sequence);
  absl::Status Sync();

  // DATA_LOSS if absent or no slot is intact.
  static absl::StatusOr<uint64_t> Read(const std::string& directory);

 private:
  int fd_ = -1;
  uint64_t writes_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_INTEGRITY_H_
