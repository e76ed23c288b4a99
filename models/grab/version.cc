#include "models/grab/version.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/grab/config_text.h"
#include "models/grab/tensors.h"
#include "models/manifest.h"
#include "models/mapped_file.h"
#include "models/version_files.h"

namespace backstory::grab {
namespace {

namespace fs = std::filesystem;

constexpr char kConfigName[] = "model.textproto";
constexpr char kGoldensName[] = "goldens.jsonl";
constexpr std::string_view kCalibrationFolder = "calibration/";

std::string CalibrationPath(uint32_t number) {
  return absl::StrCat(std::string(kCalibrationFolder), number, ".textproto");
}

absl::Status ReadConfig(const VerifiedFiles& files, Config* config) {
  const auto file = RequiredFile(files, kConfigName);
  if (!file.ok()) return file.status();
  auto parsed = ConfigFromText((*file)->text(), absl::StrCat(files.directory, "/", kConfigName));
  if (!parsed.ok()) return parsed.status();
  *config = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status ReadWeights(const VerifiedFiles& files, const Config& config, TensorMap* tensors) {
  if (absl::Status s = ReadWeightFiles(files, tensors); !s.ok()) return s;
  if (absl::Status s = CheckTensors(config, *tensors); !s.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(files.directory, ": ", s.message()));
  }
  return absl::OkStatus();
}

absl::Status ReadGoldens(const VerifiedFiles& files, const Config& config, std::vector<GoldenCase>* goldens) {
  const auto file = RequiredFile(files, kGoldensName);
  if (!file.ok()) return file.status();
  const std::string path = absl::StrCat(files.directory, "/", kGoldensName);
  auto parsed = ParseGoldens((*file)->text(), path);
  if (!parsed.ok()) return parsed.status();
  if (parsed->empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no case, at least one is needed"));
  for (const GoldenCase& golden : *parsed) {
    if (golden.logits.size() == golden.candidates.item_ids.size() * config.tasks.size()) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, ": case \"", golden.name, "\": logits: expected ",
                                                   golden.candidates.item_ids.size(), " x ", config.tasks.size(),
                                                   ", found ", golden.logits.size(), " numbers"));
  }
  *goldens = *std::move(parsed);
  return absl::OkStatus();
}

absl::Status ReadCalibrations(const VerifiedFiles& files, const Config& config, CalibrationMap* out) {
  const auto add = [&](const std::string& name, std::string_view text, bool listed) {
    const uint32_t number = CalibrationNumber(name);
    if (number == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(files.directory, "/", name, ": is not called calibration/<n>.textproto, n >= 1"));
    }
    auto parsed = Calibration::FromText(text, absl::StrCat(files.directory, "/", name), config.tasks, number, !listed);
    if (!parsed.ok()) return parsed.status();
    out->emplace(number, std::make_shared<const Calibration>(*std::move(parsed)));
    return absl::OkStatus();
  };
  for (const auto& [name, file] : files.files) {
    if (!name.starts_with(kCalibrationFolder)) continue;
    if (absl::Status s = add(name, file.text(), true); !s.ok()) return s;
  }
  for (const std::string& name : files.unlisted_calibrations) {
    const auto file = MapFile(absl::StrCat(files.directory, "/", name));
    if (!file.ok()) return file.status();
    if (absl::Status s = add(name, file->text(), false); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VersionFiles> ReadVersion(const std::string& path) {
  const auto files = VerifyDirectory(path);
  if (!files.ok()) return files.status();
  VersionFiles out;
  out.path = path;
  out.version = VersionNameOf(path);
  out.hash = files->hash;
  for (const auto& [name, file] : files->files) out.files.emplace(name, file.size);
  if (absl::Status s = ReadConfig(*files, &out.config); !s.ok()) return s;
  if (absl::Status s = ReadWeights(*files, out.config, &out.tensors); !s.ok()) return s;
  if (absl::Status s = ReadCalibrations(*files, out.config, &out.calibrations); !s.ok()) return s;
  if (absl::Status s = ReadGoldens(*files, out.config, &out.goldens); !s.ok()) return s;
  return out;
}

absl::StatusOr<std::shared_ptr<const Calibration>> ReadCalibration(const std::string& path, uint32_t number,
                                                                   const std::vector<std::string>& tasks) {
  const std::string manifest_path = absl::StrCat(path, "/", std::string(kManifestName));
  const auto manifest_file = MapFile(manifest_path);
  if (!manifest_file.ok()) return manifest_file.status();
  const auto manifest = ParseManifest(manifest_file->text(), manifest_path);
  if (!manifest.ok()) return manifest.status();
  const std::string name = CalibrationPath(number);
  const std::string full = absl::StrCat(path, "/", name);
  const auto file = MapFile(full);
  if (!file.ok()) return file.status();
  bool listed = false;
  for (const ManifestFile& entry : manifest->files) {
    if (entry.path != name) continue;
    listed = true;
    if (entry.size != file->size || entry.digest != Digest(manifest->kind, file->bytes())) {
      return absl::DataLossError(absl::StrCat(full, ": content does not have the size and digest that MANIFEST lists"));
    }
  }
  auto parsed = Calibration::FromText(file->text(), full, tasks, number, !listed);
  if (!parsed.ok()) return parsed.status();
  return std::make_shared<const Calibration>(*std::move(parsed));
}

absl::StatusOr<uint32_t> AddCalibration(const std::string& path, const Calibration::Entries& entries,
                                        const std::vector<std::string>& tasks) {
  std::error_code error;
  if (!fs::exists(absl::StrCat(path, "/", std::string(kManifestName)), error)) {
    return absl::NotFoundError(absl::StrCat(path, "/", std::string(kManifestName), ": missing"));
  }
  const std::string folder = absl::StrCat(path, "/calibration");
  fs::create_directory(folder, error);
  uint32_t newest = 0;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = absl::StrCat(std::string(kCalibrationFolder), it->path().filename().string());
    newest = std::max(newest, CalibrationNumber(name));
  }
  if (error) return absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
  const uint32_t number = newest + 1;
  const std::string name = absl::StrCat(path, "/", CalibrationPath(number));
  const std::string text = Calibration::Make(number, entries).ToText(tasks);
  // Refused here rather than by the server that would read it.
  if (auto parsed = Calibration::FromText(text, name, tasks, number, true); !parsed.ok()) return parsed.status();
  if (absl::Status s = WriteFileAtomically(name, text); !s.ok()) return s;
  return number;
}

}  // namespace backstory::grab
