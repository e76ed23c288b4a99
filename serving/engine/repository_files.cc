#include "serving/engine/repository_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;

constexpr char kLabels[] = "LABELS", kCalibrations[] = "CALIBRATIONS";
constexpr std::string_view kNameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789_-";

// A directory and not a link to one.
bool IsPlainDirectory(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::directory;
}

bool IsPlainFile(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::regular;
}

absl::Status ErrnoStatus(std::string_view what, const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(std::string(what), " ", path, ": ", std::strerror(errno)));
}

absl::Status WriteSynced(const std::string& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("cannot write", path);
  auto close = absl::MakeCleanup([fd] { ::close(fd); });
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("cannot write", path);
    done += static_cast<size_t>(n);
  }
  return ::fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus("cannot sync", path);
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("cannot open", path);
  auto close = absl::MakeCleanup([fd] { ::close(fd); });
  return ::fsync(fd) == 0 ? absl::OkStatus() : ErrnoStatus("cannot sync", path);
}

// Lines of two words, the first ones all different. No file: no lines.
absl::StatusOr<std::map<std::string, std::string>> ReadPairs(
    const fs::path& path, std::string_view expected,
    const std::function<bool(const std::string& first, const std::string& second)>& is_good) {
  std::map<std::string, std::string> pairs;
  if (!IsPlainFile(path)) return pairs;
  std::ifstream file(path);
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    std::istringstream words(line);
    std::string first, second, rest;
    words >> first >> second >> rest;
    if (!rest.empty() || !is_good(first, second) || !pairs.emplace(first, second).second) {
      return absl::InvalidArgumentError(absl::StrCat(path.string(), ":", number, ": expected ", std::string(expected)));
    }
  }
  return pairs;
}

absl::Status WritePairs(const std::string& path, const std::map<std::string, std::string>& pairs) {
  std::string text;
  for (const auto& [first, second] : pairs) absl::StrAppend(&text, first, " ", second, "\n");
  const std::string aside = path + ".new";
  if (absl::Status status = WriteSynced(aside, text); !status.ok()) return status;
  if (std::rename(aside.c_str(), path.c_str()) != 0) return ErrnoStatus("cannot rename to", path);
  // Without this a power loss may bring the old file back after the move was acknowledged.
  return SyncDirectory(fs::path(path).parent_path().string());
}

}  // namespace

bool IsModelName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && name.find_first_not_of(kNameCharacters) == std::string_view::npos;
}

bool IsVersionName(std::string_view name) {
  if (name.empty() || name.size() > 64 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return c == '.' || kNameCharacters.find(c) != std::string_view::npos; });
}

bool VersionLess(std::string_view a, std::string_view b) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (!digit(a[i]) || !digit(b[j])) {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
      continue;
    }
    size_t i_end = i, j_end = j;
    while (i_end < a.size() && digit(a[i_end])) ++i_end;
    while (j_end < b.size() && digit(b[j_end])) ++j_end;
    while (i < i_end && a[i] == '0') ++i;
    while (j < j_end && b[j] == '0') ++j;
    if (i_end - i != j_end - j) return i_end - i < j_end - j;
    const int order = a.substr(i, i_end - i).compare(b.substr(j, j_end - j));
    if (order != 0) return order < 0;
    i = i_end, j = j_end;
  }
  if (i < a.size() || j < b.size()) return j < b.size();
  return a < b;  // "01" and "1"
}

absl::StatusOr<RepositoryListing> ListRepository(const std::string& root) {
  std::error_code error;
  RepositoryListing listing;
  for (fs::directory_iterator models(root, error), end; !error && models != end; models.increment(error)) {
    const std::string model = models->path().filename().string();
    if (!IsModelName(model) || !IsPlainDirectory(models->path())) continue;
    std::error_code inner;
    for (fs::directory_iterator versions(models->path(), inner); !inner && versions != end; versions.increment(inner)) {
      const std::string version = versions->path().filename().string();
      if (IsVersionName(version) && CheckVersionDirectory(root, model, version).ok()) listing[model].push_back(version);
    }
  }
  if (error) return absl::NotFoundError(absl::StrCat("cannot read model repository ", root, ": ", error.message()));
  for (auto& [model, versions] : listing) std::sort(versions.begin(), versions.end(), VersionLess);
  return listing;
}

absl::Status CheckVersionDirectory(const std::string& root, const std::string& model, const std::string& version) {
  const fs::path directory = fs::path(root) / model / version;
  if (!IsPlainDirectory(directory.parent_path()) || !IsPlainDirectory(directory)) {
    return absl::NotFoundError(absl::StrCat("model ", model, " has no version ", version, ": no directory ",
                                            directory.string(), " (links are not followed)"));
  }
  if (!IsPlainFile(directory / "MANIFEST")) {
    return absl::NotFoundError(
        absl::StrCat("model ", model, " version ", version, " is incomplete: no MANIFEST in ", directory.string()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, std::string>> ReadLabels(const std::string& root, const std::string& model) {
  return ReadPairs(fs::path(root) / model / kLabels, "\"<label> <version>\", each label once",
                   [](const std::string& label, const std::string& version) {
                     return IsModelName(label) && IsVersionName(version);
                   });
}

absl::Status WriteLabels(const std::string& root, const std::string& model,
                         const std::map<std::string, std::string>& labels) {
  return WritePairs(absl::StrCat(root, "/", model, "/", kLabels), labels);
}

absl::StatusOr<std::map<std::string, uint32_t>> ReadCalibrationChoices(const std::string& root,
                                                                       const std::string& model) {
  std::map<std::string, uint32_t> choices;
  const auto pairs =
      ReadPairs(fs::path(root) / model / kCalibrations, "\"<version> <calibration>\", each version once",
                [&choices](const std::string& version, const std::string& number) {
                  return IsVersionName(version) && absl::SimpleAtoi(number, &choices[version]) && choices[version] > 0;
                });
  if (!pairs.ok()) return pairs.status();
  return choices;
}

absl::Status WriteCalibrationChoices(const std::string& root, const std::string& model,
                                     const std::map<std::string, uint32_t>& choices) {
  std::map<std::string, std::string> pairs;
  for (const auto& [version, number] : choices) pairs[version] = std::to_string(number);
  return WritePairs(absl::StrCat(root, "/", model, "/", kCalibrations), pairs);
}

}  // namespace backstory
