#include "store/integrity.h"

#define XXH_INLINE_ALL
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "store/files.h"

namespace backstory {
namespace fs = std::filesystem;
namespace {

constexpr const char* kStateNames[] = {"creating", "opening", "open", "closed"};
constexpr std::string_view kMagic = "backstory-integrity";
constexpr size_t kRecordBytesMax = size_t{64} << 20;
constexpr size_t kSlotBytes = 64;

std::string Hex(uint64_t v) { return absl::StrCat(absl::Hex(v, absl::kZeroPad16)); }

template <typename T>
bool ParseNumber(std::string_view text, T* v, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *v, base);
  return error == std::errc() && end == text.data() + text.size();
}

std::vector<std::string_view> Words(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t space = std::min(line.find(' '), line.size());
    words.push_back(line.substr(0, space));
    line.remove_prefix(std::min(space + 1, line.size()));
  }
  return words;
}

absl::Status Damaged(const std::string& directory, std::string_view file, std::string_view what) {
  return absl::DataLossError(
      absl::StrCat(directory, "/", std::string(file), ": ", std::string(what), "; ", DamageAdvice(directory)));
}

bool ParseLine(const std::vector<std::string_view>& words, IntegrityRecord* record) {
  if (words.size() == 2 && words[0] == "state") {
    const auto* it = std::find(std::begin(kStateNames), std::end(kStateNames), words[1]);
    if (it == std::end(kStateNames)) return false;
    record->state = static_cast<IntegrityRecord::State>(it - std::begin(kStateNames));
    return true;
  }
  if (words.size() == 2 && words[0] == "sequence") return ParseNumber(words[1], &record->sequence);
  if (words.size() == 4 && words[0] == "manifest") {
    record->manifest = words[1];
    return ParseNumber(words[2], &record->manifest_bytes) && ParseNumber(words[3], &record->manifest_hash, 16);
  }
  if ((words.size() == 3 || words.size() == 4) && words[0] == "sst") {
    SstFile file;
    if (!ParseNumber(words[2], &file.bytes)) return false;
    if (words.size() == 4) file.checksum = words[3];
    return record->ssts.emplace(std::string(words[1]), std::move(file)).second;
  }
  return false;
}

uint64_t ManifestNumber(std::string_view name) {
  uint64_t number = 0;
  const size_t dash = name.find('-');
  if (dash == std::string_view::npos || !ParseNumber(name.substr(dash + 1), &number)) return 0;
  return number;
}

// What CURRENT points to.
absl::StatusOr<std::string> ReadCurrent(const std::string& directory) {
  absl::StatusOr<std::string> current = ReadWholeFile(directory + "/CURRENT");
  if (!current.ok()) return Damaged(directory, "CURRENT", "missing or unreadable");
  if (current->size() < 2 || current->back() != '\n' || !current->starts_with("MANIFEST-")) {
    return Damaged(directory, "CURRENT", "damaged");
  }
  current->pop_back();
  if (ManifestNumber(*current) == 0 || !fs::exists(directory + "/" + *current)) {
    return Damaged(directory, "CURRENT", "names a MANIFEST that does not exist");
  }
  return current;
}

}  // namespace

std::string DamageAdvice(const std::string& directory) {
  return absl::StrCat("nothing was changed; next: backstory store repair --store ", directory,
                      " --from-backup CHECKPOINT (or without --from-backup to salvage what is readable)");
}

std::string FormatIntegrity(const IntegrityRecord& r) {
  std::string text = absl::StrCat(std::string(kMagic), " ", r.format_version, "\nstate ",
                                  kStateNames[static_cast<int>(r.state)], "\nsequence ", r.sequence, "\n");
  if (!r.manifest.empty()) {
    absl::StrAppend(&text, "manifest ", r.manifest, " ", r.manifest_bytes, " ", Hex(r.manifest_hash), "\n");
  }
  for (const auto& [name, file] : r.ssts) {
    absl::StrAppend(&text, "sst ", name, " ", file.bytes, file.checksum.empty() ? "" : " ", file.checksum, "\n");
  }
  absl::StrAppend(&text, "end ", Hex(XXH3_64bits(text.data(), text.size())), "\n");
  return text;
}

absl::StatusOr<IntegrityRecord> ParseIntegrity(std::string_view text) {
  if (text.size() > kRecordBytesMax) return absl::DataLossError("longer than 64 MiB");
  const size_t end = text.rfind("end ");
  uint64_t hash = 0;
  if (end == std::string_view::npos || text.size() != end + 4 + 16 + 1 || text.back() != '\n' ||
      !ParseNumber(text.substr(end + 4, 16), &hash, 16) || hash != XXH3_64bits(text.data(), end)) {
    return absl::DataLossError("checksum does not match");
  }
  IntegrityRecord record;
  bool first = true;
  for (std::string_view rest = text.substr(0, end); !rest.empty();) {
    const size_t newline = std::min(rest.find('\n'), rest.size());
    const std::vector<std::string_view> words = Words(rest.substr(0, newline));
    rest.remove_prefix(std::min(newline + 1, rest.size()));
    if (first) {
      if (words.size() != 2 || words[0] != kMagic || !ParseNumber(words[1], &record.format_version)) {
        return absl::DataLossError("not an integrity record");
      }
      if (record.format_version > kStoreFormatVersion) {
        return absl::FailedPreconditionError(absl::StrCat("store format version ", record.format_version,
                                                          " is newer than this binary supports (", kStoreFormatVersion,
                                                          ")"));
      }
      first = false;
    } else if (!ParseLine(words, &record)) {
      return absl::DataLossError("malformed line");
    }
  }
  if (first) return absl::DataLossError("empty");
  return record;
}

absl::Status WriteIntegrity(const std::string& directory, const IntegrityRecord& record) {
  return ReplaceFile(absl::StrCat(directory, "/", std::string(kIntegrityFile)), FormatIntegrity(record));
}

absl::StatusOr<IntegrityRecord> ReadIntegrity(const std::string& directory) {
  absl::StatusOr<std::string> text = ReadWholeFile(absl::StrCat(directory, "/", std::string(kIntegrityFile)));
  if (!text.ok()) return Damaged(directory, kIntegrityFile, "missing or unreadable");
  absl::StatusOr<IntegrityRecord> record = ParseIntegrity(*text);
  if (absl::IsDataLoss(record.status())) {
    return Damaged(directory, kIntegrityFile, std::string(record.status().message()));
  }
  return record;
}

absl::StatusOr<uint64_t> HashFilePrefix(const std::string& path, uint64_t bytes) {
  std::ifstream in(path, std::ios::binary);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  std::vector<char> buffer(size_t{1} << 16);
  uint64_t left = bytes;
  while (left > 0 && in) {
    in.read(buffer.data(), static_cast<std::streamsize>(std::min<uint64_t>(left, buffer.size())));
    XXH3_64bits_update(&state, buffer.data(), static_cast<size_t>(in.gcount()));
    left -= static_cast<uint64_t>(in.gcount());
  }
  if (left > 0) return absl::DataLossError(absl::StrCat(path, ": shorter than the ", bytes, " bytes recorded"));
  return XXH3_64bits_digest(&state);
}

absl::StatusOr<DirectoryState> InspectDirectory(const std::string& directory) {
  std::error_code error;
  if (!fs::exists(directory, error)) return DirectoryState::kAbsent;
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(directory);
  if (!names.ok()) return names.status();
  const bool empty = std::all_of(names->begin(), names->end(), [](const std::string& name) {
    // A process that died before a new store had its first record leaves no more than these.
    return name == "PROCESS_LOCK" || name == "lost+found" || name == absl::StrCat(std::string(kIntegrityFile), ".tmp");
  });
  return empty ? DirectoryState::kEmpty : DirectoryState::kStore;
}

absl::StatusOr<IntegrityRecord> CheckFiles(const std::string& directory) {
  absl::StatusOr<IntegrityRecord> record = ReadIntegrity(directory);
  if (!record.ok() || record->state == IntegrityRecord::State::kCreating) return record;
  absl::StatusOr<std::string> current = ReadCurrent(directory);
  if (!current.ok()) return current.status();
  const bool same_manifest = *current == record->manifest;
  if (!same_manifest && ManifestNumber(*current) < ManifestNumber(record->manifest)) {
    return Damaged(directory, "CURRENT", absl::StrCat("names ", *current, " but ", record->manifest, " was in use"));
  }
  if (!same_manifest && record->state == IntegrityRecord::State::kClosed) {
    return Damaged(directory, "CURRENT",
                   absl::StrCat("names ", *current, " but the store was closed with ", record->manifest));
  }
  if (same_manifest) {
    const std::string path = directory + "/" + *current;
    absl::StatusOr<uint64_t> hash = HashFilePrefix(path, record->manifest_bytes);
    if (!hash.ok())
      return Damaged(directory, *current, absl::StrCat("shorter than the ", record->manifest_bytes, " bytes recorded"));
    if (*hash != record->manifest_hash) return Damaged(directory, *current, "differs from the recorded checksum");
    std::error_code error;
    const uint64_t bytes = fs::file_size(path, error);
    if (record->state == IntegrityRecord::State::kClosed && bytes != record->manifest_bytes) {
      return Damaged(directory, *current, "is longer than when the store was closed");
    }
    if (bytes == record->manifest_bytes) {
      for (const auto& [name, file] : record->ssts) {
        const uint64_t size = fs::file_size(directory + "/" + name, error);
        if (error) return Damaged(directory, name, "missing");
        if (size != file.bytes)
          return Damaged(directory, name, absl::StrCat(size, " bytes, ", file.bytes, " recorded"));
      }
    }
  }
  return record;
}

absl::Status CheckAgainstLive(const std::string& directory, const IntegrityRecord& record,
                              const std::map<std::string, SstFile>& live, uint64_t live_sequence, uint64_t watermark) {
  const uint64_t acknowledged = std::max(record.sequence, watermark);
  if (live_sequence < acknowledged) {
    return Damaged(directory, "*.log",
                   absl::StrCat("the write-ahead log ends at sequence ", live_sequence, " but ", acknowledged,
                                " was acknowledged"));
  }
  std::error_code error;
  absl::StatusOr<std::string> current = ReadCurrent(directory);
  if (!current.ok()) return current.status();
  const bool same_manifest = *current == record.manifest;
  const bool exact = same_manifest && fs::file_size(directory + "/" + *current, error) == record.manifest_bytes;
  // A longer MANIFEST has edits made after the record, which its own checksums guard. A newer MANIFEST starts with all
  // that was live, so it must name every recorded file: none is compacted away before the record follows.
  if (same_manifest && !exact) return absl::OkStatus();
  for (const auto& [name, file] : record.ssts) {
    const auto it = live.find(name);
    if (it == live.end()) return Damaged(directory, *current, absl::StrCat("no longer names ", name));
    if (it->second.bytes != file.bytes) return Damaged(directory, name, "size differs from the record");
  }
  if (exact && live.size() != record.ssts.size())
    return Damaged(directory, *current, "names files that were not recorded");
  return absl::OkStatus();
}

Watermark::~Watermark() {
  if (fd_ >= 0) close(fd_);
}

absl::Status Watermark::Open(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", std::string(kWatermarkFile));
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) return FileError(errno, "open", path);
  struct stat info {};
  if (fstat(fd_, &info) != 0) return FileError(errno, "stat", path);
  if (info.st_size >= static_cast<off_t>(2 * kSlotBytes)) return absl::OkStatus();
  for (int i = 0; i < 2; ++i) {
    if (absl::Status status = Set(0); !status.ok()) return status;
  }
  if (absl::Status status = Sync(); !status.ok()) return status;
  return SyncDirectory(directory);
}

absl::Status Watermark::Set(uint64_t sequence) {
  char slot[kSlotBytes + 1];
  std::snprintf(slot, sizeof(slot), "watermark %020" PRIu64, sequence);
  const uint64_t hash = XXH3_64bits(slot, 30);
  std::snprintf(slot + 30, sizeof(slot) - 30, " %016" PRIx64 "%16s\n", hash, "");
  const off_t at = static_cast<off_t>(writes_++ % 2 * kSlotBytes);
  if (pwrite(fd_, slot, kSlotBytes, at) != static_cast<ssize_t>(kSlotBytes))
    return FileError(errno, "write", "WATERMARK");
  return absl::OkStatus();
}

absl::Status Watermark::Sync() {
  return fdatasync(fd_) == 0 ? absl::OkStatus() : FileError(errno, "fsync", "WATERMARK");
}

absl::StatusOr<uint64_t> Watermark::Read(const std::string& directory) {
  absl::StatusOr<std::string> bytes = ReadWholeFile(absl::StrCat(directory, "/", std::string(kWatermarkFile)));
  if (!bytes.ok()) return Damaged(directory, kWatermarkFile, "missing or unreadable");
  bool found = false;
  uint64_t newest = 0;
  for (size_t slot = 0; slot < 2 && bytes->size() == 2 * kSlotBytes; ++slot) {
    const std::string_view text = std::string_view(*bytes).substr(slot * kSlotBytes, kSlotBytes);
    uint64_t sequence = 0, hash = 0;
    if (!text.starts_with("watermark ") || !ParseNumber(text.substr(10, 20), &sequence) ||
        !ParseNumber(text.substr(31, 16), &hash, 16) || hash != XXH3_64bits(text.data(), 30)) {
      continue;
    }
    found = true;
    newest = std::max(newest, sequence);
  }
  if (!found) return Damaged(directory, kWatermarkFile, "damaged");
  return newest;
}

}  // namespace backstory
