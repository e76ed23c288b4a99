#include "serving/cli/score_parts.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "store/files.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kManifest[] = "manifest.json", kSuccess[] = "_SUCCESS";

// Names the first thing that decides rows or scores and has changed.
absl::Status SameRun(const std::string& directory, const json& before, const json& now) {
  const json old_leaves = before.flatten(), new_leaves = now.flatten();
  json names = old_leaves;
  names.update(new_leaves);
  for (const auto& [name, unused] : names.items()) {
    const auto was = old_leaves.find(name), is = new_leaves.find(name);
    const std::string was_text = was == old_leaves.end() ? "absent" : was->dump();
    const std::string is_text = is == new_leaves.end() ? "absent" : is->dump();
    if (was_text == is_text) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": cannot go on: ", name.substr(1), " was ", was_text, ", is now ", is_text));
  }
  return absl::OkStatus();
}

// Appends files to one, which appears whole; of all but the first `skip` bytes are left out.
absl::Status JoinFiles(const std::vector<std::string>& sources, size_t skip, const std::string& target) {
  const std::string aside = target + ".tmp";
  const int fd = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "create", aside);
  absl::Status status;
  for (size_t s = 0; s < sources.size() && status.ok(); ++s) {
    const absl::StatusOr<std::string> bytes = ReadWholeFile(sources[s]);
    if (!bytes.ok()) status = bytes.status();
    size_t done = s == 0 ? 0 : skip;
    while (status.ok() && done < bytes->size()) {
      const ssize_t n = ::write(fd, bytes->data() + done, bytes->size() - done);
      if (n < 0 && errno != EINTR) status = FileError(errno, "write", target);
      if (n > 0) done += static_cast<size_t>(n);
    }
  }
  if (status.ok() && ::fsync(fd) != 0) status = FileError(errno, "write", target);
  ::close(fd);
  if (status.ok() && ::rename(aside.c_str(), target.c_str()) != 0) status = FileError(errno, "rename", target);
  if (!status.ok()) ::unlink(aside.c_str());
  if (!status.ok()) return status;
  const std::string folder = fs::path(target).parent_path().string();
  return SyncDirectory(folder.empty() ? "." : folder);
}

}  // namespace

void ScoreCounts::Add(const ScoreCounts& other) {
  rows += other.rows;
  scored += other.scored;
  bad += other.bad;
  unknown_users += other.unknown_users;
  unknown_items += other.unknown_items;
}

ScoreParts::ScoreParts(ScoreParts&& other) noexcept
    : directory_(std::move(other.directory_)),
      extension_(std::move(other.extension_)),
      lock_(std::exchange(other.lock_, -1)) {}

ScoreParts::~ScoreParts() {
  if (lock_ >= 0) ::close(lock_);
}

absl::StatusOr<ScoreParts> ScoreParts::Open(const std::string& directory, const json& manifest,
                                            const std::string& extension, bool resume) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return FileError(error.value(), "create directory", directory);
  const int lock = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0) return FileError(errno, "open", directory);
  ScoreParts parts(directory, extension, lock);
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(directory, ": another run is writing here"));
  }
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(directory);
  if (!names.ok()) return names.status();
  bool known = false;
  for (const std::string& name : *names) {
    known |= name == kManifest;
    if (name.ends_with(".tmp")) fs::remove(fs::path(directory) / name, error);
  }
  const std::string path = absl::StrCat(directory, "/", kManifest);
  if (!known && !names->empty() && *names != std::vector<std::string>{std::string(kManifest) + ".tmp"}) {
    return absl::FailedPreconditionError(absl::StrCat(directory, ": is not empty and holds no scoring run"));
  }
  if (!known) {
    if (auto status = ReplaceFile(path, manifest.dump(2) + "\n"); !status.ok()) return status;
    return parts;
  }
  if (!resume) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": holds a run already; go on with it (--resume), remove it, or name another output"));
  }
  const absl::StatusOr<std::string> text = ReadWholeFile(path);
  if (!text.ok()) return text.status();
  const json before = json::parse(*text, nullptr, false);
  if (!before.is_object()) return absl::FailedPreconditionError(absl::StrCat(path, ": not a JSON object"));
  if (auto status = SameRun(directory, before, manifest); !status.ok()) return status;
  return parts;
}

std::string ScoreParts::PathOf(const char* prefix, size_t part, const std::string& extension) const {
  return absl::StrFormat("%s/%s-%05d%s", directory_, prefix, part, extension);
}

std::optional<ScoreCounts> ScoreParts::Find(size_t part) const {
  std::error_code error;
  if (!fs::exists(PathOf("part", part, extension_), error)) return std::nullopt;
  const absl::StatusOr<std::string> text = ReadWholeFile(PathOf(".part", part, ".json"));
  const json counts = text.ok() ? json::parse(*text, nullptr, false) : json();
  if (!counts.is_object()) return std::nullopt;  // written again: the same bytes
  return ScoreCounts{counts.value("rows", uint64_t{0}), counts.value("scored", uint64_t{0}),
                     counts.value("bad_rows", uint64_t{0}), counts.value("unknown_users", uint64_t{0}),
                     counts.value("unknown_items", uint64_t{0})};
}

absl::Status ScoreParts::Write(size_t part, const std::string& rows, const std::string& bad_rows,
                               const ScoreCounts& counts) const {
  const json about = {{"rows", counts.rows},
                      {"scored", counts.scored},
                      {"bad_rows", counts.bad},
                      {"unknown_users", counts.unknown_users},
                      {"unknown_items", counts.unknown_items}};
  absl::Status status;
  if (!bad_rows.empty()) status = ReplaceFile(PathOf("bad-rows", part, extension_), bad_rows);
  if (status.ok()) status = ReplaceFile(PathOf(".part", part, ".json"), about.dump() + "\n");
  if (status.ok()) status = ReplaceFile(PathOf("part", part, extension_), rows);
  return status;
}

absl::Status ScoreParts::Succeed(const json& summary) const {
  return ReplaceFile(absl::StrCat(directory_, "/", kSuccess), summary.dump(2) + "\n");
}

absl::Status ScoreParts::Join(size_t parts, const std::string& file, size_t header_bytes, size_t bad_header_bytes) {
  std::vector<std::string> rows, bad;
  std::error_code error;
  for (size_t part = 0; part < parts; ++part) {
    rows.push_back(PathOf("part", part, extension_));
    const std::string bad_rows = PathOf("bad-rows", part, extension_);
    if (fs::exists(bad_rows, error)) bad.push_back(bad_rows);
  }
  const std::string bad_file = absl::StrCat(file, ".bad-rows", extension_);
  if (bad.empty()) {
    fs::remove(bad_file, error);  // of an earlier run
  } else if (auto status = JoinFiles(bad, bad_header_bytes, bad_file); !status.ok()) {
    return status;
  }
  if (auto status = JoinFiles(rows, header_bytes, file); !status.ok()) return status;
  // Out of the way at once: a folder that a kill leaves half removed must not look like a run.
  const fs::path gone = fs::path(directory_ + ".done");
  fs::remove_all(gone, error);
  fs::rename(directory_, gone, error);
  if (!error) fs::remove_all(gone, error);
  return error ? FileError(error.value(), "remove", directory_) : absl::OkStatus();
}

}  // namespace backstory
