#include "models/version_files.h"

#include <cstdio>
#include <filesystem>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "models/mapped_file.h"
#include "models/safetensors.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightsPrefix = "weights-";
constexpr int kWeightsFilesMax = 99'999;

}  // namespace

std::string WeightsFileName(int index, int count) {
  char name[64];
  std::snprintf(name, sizeof(name), "weights-%05d-of-%05d.safetensors", index, count);
  return name;
}

std::string VersionNameOf(const std::string& path) {
  const fs::path absolute = (fs::absolute(path) / ".").lexically_normal();
  return absolute.parent_path().filename().string();
}

absl::StatusOr<const MappedFile*> RequiredFile(const VerifiedFiles& files, const std::string& name) {
  const MappedFile* file = files.Find(name);
  if (file != nullptr) return file;
  return absl::InvalidArgumentError(absl::StrCat(files.directory, "/", name, ": missing"));
}

absl::Status ReadWeightFiles(const VerifiedFiles& files, TensorMap* tensors) {
  int count = 0;
  for (const auto& [name, file] : files.files) count += name.starts_with(kWeightsPrefix);
  if (count == 0) return absl::InvalidArgumentError(absl::StrCat(files.directory, ": no weights-*.safetensors"));
  if (count > kWeightsFilesMax) {
    return absl::InvalidArgumentError(absl::StrCat(files.directory, ": too many weight files"));
  }
  for (int i = 1; i <= count; ++i) {
    // Another number of files, or another name, shows here as one that is missing.
    const std::string name = WeightsFileName(i, count);
    const auto mapped = RequiredFile(files, name);
    if (!mapped.ok()) return mapped.status();
    const std::string path = absl::StrCat(files.directory, "/", name);
    const auto parsed = SafetensorsFile::Parse((*mapped)->owner, (*mapped)->size, path);
    if (!parsed.ok()) return parsed.status();
    if (absl::Status s = parsed->AddTo(tensors); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace backstory
