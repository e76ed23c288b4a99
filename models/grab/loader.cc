#include "models/grab/loader.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/manifest.h"

namespace backstory::grab {

std::shared_ptr<const Calibration> LoadedGrab::calibration() const {
  if (calibrations.empty()) return std::make_shared<const Calibration>();
  return calibrations.rbegin()->second;
}

absl::StatusOr<std::shared_ptr<const LoadedGrab>> LoadGrabVersion(const std::string& path, const LoadOptions& options) {
  auto files = ReadVersion(path);
  if (!files.ok()) return files.status();
  if (!options.expected_name.empty() && files->config.name != options.expected_name) {
    return absl::InvalidArgumentError(absl::StrCat(path, "/model.textproto: name: expected \"", options.expected_name,
                                                   "\", found \"", files->config.name, "\""));
  }
  auto model = CreateModel(files->config, files->tensors, options.pool);
  if (!model.ok()) return absl::Status(model.status().code(), absl::StrCat(path, ": ", model.status().message()));
  auto report = CheckGoldens(**model, files->goldens);
  if (!report.ok()) return absl::Status(report.status().code(), absl::StrCat(path, ": ", report.status().message()));

  auto loaded = std::make_shared<LoadedGrab>();
  loaded->name = files->config.name;
  loaded->version = std::move(files->version);
  loaded->hash = std::move(files->hash);
  loaded->config = std::move(files->config);
  loaded->model = *std::move(model);
  loaded->calibrations = std::move(files->calibrations);
  loaded->goldens = *std::move(report);
  return loaded;
}

absl::Status SealVersion(const std::string& path, const LoadOptions& options) {
  if (absl::Status s = WriteManifest(path); !s.ok()) return s;
  const auto loaded = LoadGrabVersion(path, options);
  if (loaded.ok()) return absl::OkStatus();
  std::error_code ignored;
  std::filesystem::remove(absl::StrCat(path, "/", std::string(kManifestName)), ignored);
  return loaded.status();
}

}  // namespace backstory::grab
