// MANIFEST: the list of every file of a version directory with size and digest. Written last, so its presence says that
// the version is complete; checked first, so that nothing else is read from a damaged or half-copied version.
//
//   backstory-manifest 1 xxh3-128
//   5f2c...32 or 64 hex digits  18342 model.textproto
//
// It protects against damage, not against an attacker: who can write the directory can write the MANIFEST.
#ifndef BACKSTORY_MODELS_MANIFEST_H_
#define BACKSTORY_MODELS_MANIFEST_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/mapped_file.h"

namespace backstory {

inline constexpr std::string_view kManifestName = "MANIFEST";
inline constexpr size_t kManifestBytesMax = 1 << 20;
inline constexpr size_t kManifestFilesMax = 10'000;

// n of "calibration/<n>.textproto", n in [1, 999999999] without leading zeros; 0 for every other path.
uint32_t CalibrationNumber(std::string_view path);

// What a digest is made with. XXH3-128 is what this program writes; SHA-256 is for tools that have nothing else.
enum class DigestKind { kXxh3, kSha256 };

std::string Digest(DigestKind kind, std::span<const uint8_t> bytes);  // lower-case hex

struct ManifestFile {
  std::string path;  // relative, '/' between at most 3 components of [A-Za-z0-9_.-], none beginning with '.'
  uint64_t size = 0;
  std::string digest;
  bool operator==(const ManifestFile&) const = default;
};

struct Manifest {
  DigestKind kind = DigestKind::kXxh3;
  std::vector<ManifestFile> files;  // strictly ascending by path
  bool operator==(const Manifest&) const = default;
};

// DATA_LOSS "source:line: reason".
absl::StatusOr<Manifest> ParseManifest(std::string_view text, std::string_view source);
std::string ManifestToText(const Manifest& manifest);

// The verified content of a version directory. Contents stay mapped as long as this, or a copy of a MappedFile, lives.
struct VerifiedFiles {
  std::string directory;
  std::string hash;                         // 16 hex digits over the MANIFEST: two versions with equal content share it
  std::map<std::string, MappedFile> files;  // by path, MANIFEST excluded
  std::vector<std::string> unlisted_calibrations;  // paths calibration/<n>.textproto that came after the MANIFEST

  // nullptr if absent.
  const MappedFile* Find(const std::string& path) const;
};

// NOT_FOUND: no such directory, or no MANIFEST in it. DATA_LOSS naming the file: listed and missing, not listed,
// another size or digest, a symbolic link or special file, a name outside the alphabet. Only files called
// calibration/<n>.textproto may be there without being listed.
absl::StatusOr<VerifiedFiles> VerifyDirectory(const std::string& directory);

// Lists and digests every file there is and writes MANIFEST. FAILED_PRECONDITION if there is one: versions are
// immutable.
absl::Status WriteManifest(const std::string& directory, DigestKind kind = DigestKind::kXxh3);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_MANIFEST_H_
