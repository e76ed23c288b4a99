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

namespace {

struct Checked {
  std::unique_ptr<Model> model;
  GoldenReport goldens;
};

absl::StatusOr<Checked> CreateAndCheck(const std::string& path, const VersionFiles& files, ThreadPool* pool,
                                       Dtype precision, const ModelFactory& factory = {}) {
  const auto in_path = [&](const absl::Status& s) {
    return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
  };
  auto model = factory ? factory(files.config, files.tensors, pool, precision)
                       : CreateModel(files.config, files.tensors, pool, precision);
  if (!model.ok()) return in_path(model.status());
  const bool rounded = precision == Dtype::kBf16 || factory;
  auto report = CheckGoldens(**model, files.goldens, rounded ? kGoldenToleranceBf16 : 0);
  if (!report.ok()) return in_path(report.status());
  return Checked{*std::move(model), *std::move(report)};
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LoadedGrab>> LoadGrabVersion(const std::string& path, const LoadOptions& options) {
  auto files = ReadVersion(path);
  if (!files.ok()) return files.status();
  if (!options.expected_name.empty() && files->config.name != options.expected_name) {
    return absl::InvalidArgumentError(absl::StrCat(path, "/model.textproto: name: expected \"", options.expected_name,
                                                   "\", found \"", files->config.name, "\""));
  }
  auto checked = CreateAndCheck(path, *files, options.pool, Dtype::kF32);
  if (!checked.ok()) return checked.status();
  if (options.precision != Dtype::kF32 || options.serve_with) {
    checked->model.reset();
    checked = CreateAndCheck(path, *files, options.pool, options.precision, options.serve_with);
    if (!checked.ok()) return checked.status();
  }

  auto loaded = std::make_shared<LoadedGrab>();
  loaded->name = files->config.name;
  loaded->version = std::move(files->version);
  loaded->hash = std::move(files->hash);
  loaded->config = std::move(files->config);
  loaded->precision = options.precision;
  loaded->model = std::move(checked->model);
  loaded->calibrations = std::move(files->calibrations);
  loaded->goldens = std::move(checked->goldens);
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
