#include "models/manifest.h"

#include <openssl/sha.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "backstory-manifest 1 ";
constexpr size_t kComponentsMax = 3;
constexpr size_t kComponentBytesMax = 128;
constexpr uint32_t kCalibrationNumberMax = 999'999'999;

bool IsComponent(std::string_view name) {
  if (name.empty() || name.size() > kComponentBytesMax || name.front() == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '-';
  });
}

bool IsPath(std::string_view path) {
  size_t components = 1;
  for (size_t slash; (slash = path.find('/')) != std::string_view::npos; path.remove_prefix(slash + 1)) {
    if (!IsComponent(path.substr(0, slash)) || ++components > kComponentsMax) return false;
  }
  return IsComponent(path);
}

absl::Status Damaged(const std::string& file, std::string_view why) {
  return absl::DataLossError(absl::StrCat(file, ": ", std::string(why)));
}

// A name for messages: it may come from a damaged MANIFEST or a hostile directory.
std::string Printable(std::string_view name) {
  return absl::CHexEscape(std::string(name.substr(0, 2 * kComponentBytesMax)));
}

size_t DigestHexBytes(DigestKind kind) { return kind == DigestKind::kXxh3 ? 32 : 64; }
std::string_view DigestKindName(DigestKind kind) { return kind == DigestKind::kXxh3 ? "xxh3-128" : "sha256"; }

bool IsLowerHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// "digest size path" -> file; nothing else on the line, one space between.
absl::StatusOr<ManifestFile> ParseLine(const std::string& line, DigestKind kind) {
  const std::vector<std::string> parts = absl::StrSplit(line, ' ');
  if (parts.size() != 3) return absl::DataLossError("is not \"digest size path\"");
  ManifestFile file{.path = parts[2], .digest = parts[0]};
  if (file.digest.size() != DigestHexBytes(kind) || !IsLowerHex(file.digest)) {
    return absl::DataLossError(absl::StrCat("digest is not ", DigestHexBytes(kind), " lower-case hex digits"));
  }
  const bool number = absl::SimpleAtoi(parts[1], &file.size);
  if (!number || parts[1] != absl::StrCat(file.size)) return absl::DataLossError("size is not a decimal number");
  if (!IsPath(file.path)) return absl::DataLossError(absl::StrCat("path \"", Printable(file.path), "\" is refused"));
  return file;
}

// Every file below `directory` as a relative path. Links, special files and names outside the alphabet are errors.
absl::StatusOr<std::set<std::string>> ListFiles(const std::string& directory) {
  std::set<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator it(directory, error), end;
  if (error) return absl::NotFoundError(absl::StrCat(directory, ": ", error.message()));
  for (; it != end; it.increment(error)) {
    const std::string path = it->path().lexically_relative(directory).generic_string();
    const std::string shown = absl::StrCat(directory, "/", Printable(path));
    const fs::file_status status = it->symlink_status(error);
    if (error) return absl::UnavailableError(absl::StrCat(shown, ": ", error.message()));
    if (fs::is_symlink(status)) return Damaged(shown, "is a symbolic link, which is refused");
    if (!IsPath(path)) return Damaged(shown, "name is refused (at most 3 components of [A-Za-z0-9_.-])");
    if (fs::is_directory(status)) continue;
    if (!fs::is_regular_file(status)) return Damaged(shown, "is neither a regular file nor a directory");
    if (found.size() == kManifestFilesMax) {
      return Damaged(directory, absl::StrCat("has more than ", kManifestFilesMax, " files"));
    }
    found.insert(path);
  }
  if (error) return absl::UnavailableError(absl::StrCat(directory, ": ", error.message()));
  return found;
}

absl::StatusOr<MappedFile> VerifyFile(const std::string& path, const ManifestFile& expected, DigestKind kind) {
  auto mapped = MapFile(path);
  if (!mapped.ok()) {
    if (absl::IsNotFound(mapped.status())) return Damaged(path, "missing, but listed in MANIFEST");
    return mapped.status();
  }
  if (mapped->size != expected.size) {
    return Damaged(path, absl::StrCat("size is ", mapped->size, ", MANIFEST says ", expected.size));
  }
  if (Digest(kind, mapped->bytes()) != expected.digest) {
    return Damaged(path, "content does not have the digest that MANIFEST lists; copy the version again");
  }
  return mapped;
}

}  // namespace

uint32_t CalibrationNumber(std::string_view path) {
  constexpr std::string_view kPrefix = "calibration/", kSuffix = ".textproto";
  if (!path.starts_with(kPrefix) || !path.ends_with(kSuffix) || path.size() <= kPrefix.size() + kSuffix.size())
    return 0;
  path.remove_prefix(kPrefix.size());
  path.remove_suffix(kSuffix.size());
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), number);
  const bool whole = error == std::errc() && end == path.data() + path.size() && path.front() != '0';
  return whole && number <= kCalibrationNumberMax ? number : 0;
}

std::string Digest(DigestKind kind, std::span<const uint8_t> bytes) {
  if (kind == DigestKind::kXxh3) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
    return absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(canonical.digest), sizeof(canonical.digest)));
  }
  unsigned char sha[SHA256_DIGEST_LENGTH];
  SHA256(bytes.data(), bytes.size(), sha);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(sha), sizeof(sha)));
}

absl::StatusOr<Manifest> ParseManifest(std::string_view text, std::string_view source) {
  const std::string name(source);
  if (text.size() > kManifestBytesMax) return Damaged(name, absl::StrCat("exceeds ", kManifestBytesMax, " bytes"));
  if (!text.ends_with('\n')) return Damaged(name, "does not end with a line break: it was cut short");
  text.remove_suffix(1);
  const std::vector<std::string> lines = absl::StrSplit(absl::string_view(text.data(), text.size()), '\n');
  Manifest manifest;
  if (lines[0] == absl::StrCat(std::string(kMagic), "sha256")) {
    manifest.kind = DigestKind::kSha256;
  } else if (lines[0] != absl::StrCat(std::string(kMagic), "xxh3-128")) {
    return Damaged(absl::StrCat(name, ":1"), "is neither \"backstory-manifest 1 xxh3-128\" nor \"... sha256\"");
  }
  if (lines.size() - 1 > kManifestFilesMax)
    return Damaged(name, absl::StrCat("lists over ", kManifestFilesMax, " files"));
  for (size_t i = 1; i < lines.size(); ++i) {
    auto file = ParseLine(lines[i], manifest.kind);
    const std::string where = absl::StrCat(name, ":", i + 1);
    if (!file.ok()) return Damaged(where, std::string(file.status().message()));
    if (!manifest.files.empty() && manifest.files.back().path >= file->path) {
      return Damaged(where, absl::StrCat("path ", file->path, " is not after the one before"));
    }
    manifest.files.push_back(*std::move(file));
  }
  return manifest;
}

std::string ManifestToText(const Manifest& manifest) {
  std::string text = absl::StrCat(std::string(kMagic), std::string(DigestKindName(manifest.kind)), "\n");
  for (const ManifestFile& file : manifest.files) {
    absl::StrAppend(&text, file.digest, " ", file.size, " ", file.path, "\n");
  }
  return text;
}

const MappedFile* VerifiedFiles::Find(const std::string& path) const {
  const auto it = files.find(path);
  return it == files.end() ? nullptr : &it->second;
}

absl::StatusOr<VerifiedFiles> VerifyDirectory(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) return absl::NotFoundError(absl::StrCat(directory, ": is no directory"));
  const std::string manifest_path = absl::StrCat(directory, "/", std::string(kManifestName));
  auto manifest_file = MapFile(manifest_path);
  if (absl::IsNotFound(manifest_file.status())) {
    return absl::NotFoundError(absl::StrCat(manifest_path, ": missing: the version was not completed"));
  }
  if (!manifest_file.ok()) return manifest_file.status();
  auto manifest = ParseManifest(manifest_file->text(), manifest_path);
  if (!manifest.ok()) return manifest.status();
  auto present = ListFiles(directory);
  if (!present.ok()) return present.status();
  present->erase(std::string(kManifestName));

  VerifiedFiles verified{.directory = directory};
  for (const ManifestFile& listed : manifest->files) {
    auto mapped = VerifyFile(absl::StrCat(directory, "/", listed.path), listed, manifest->kind);
    if (!mapped.ok()) return mapped.status();
    verified.files.emplace(listed.path, *std::move(mapped));
    present->erase(listed.path);
  }
  for (const std::string& path : *present) {
    if (CalibrationNumber(path) == 0) {
      return Damaged(absl::StrCat(directory, "/", path), "is not listed in MANIFEST; remove it");
    }
    verified.unlisted_calibrations.push_back(path);
  }
  verified.hash = Digest(DigestKind::kXxh3, manifest_file->bytes()).substr(0, 16);
  return verified;
}

absl::Status WriteManifest(const std::string& directory, DigestKind kind) {
  auto present = ListFiles(directory);
  if (!present.ok()) return present.status();
  if (present->contains(std::string(kManifestName))) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, "/", std::string(kManifestName), ": exists; a version is immutable, make a new one"));
  }
  Manifest manifest{.kind = kind};
  for (const std::string& path : *present) {
    auto mapped = MapFile(absl::StrCat(directory, "/", path));
    if (!mapped.ok()) return mapped.status();
    manifest.files.push_back({path, mapped->size, Digest(kind, mapped->bytes())});
  }
  return WriteFileAtomically(absl::StrCat(directory, "/", std::string(kManifestName)), ManifestToText(manifest));
}

}  // namespace backstory
