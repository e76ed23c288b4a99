#include "serving/cli/serving_experiments.h"

#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

absl::Status OpenExposures(const config::v1::ExperimentFiles& files, Metrics* metrics, rpc::Log* log,
                           ServingExperiments* out) {
  std::ifstream key_file(files.unit_key_file());
  ExposureLogOptions options;
  std::getline(key_file, options.key);
  if (options.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("experiments.unit_key_file ", files.unit_key_file(), ": cannot be read or its first line is empty"));
  }
  if (files.segment_max_bytes() > 0) options.files.segment_bytes_max = files.segment_max_bytes();
  if (files.segment_max_s() > 0) options.files.segment_us_max = int64_t{files.segment_max_s()} * 1'000'000;
  if (files.queue_records_max() > 0) options.queue_records_max = files.queue_records_max();
  options.on_health = [log](const absl::Status& status) {
    if (log == nullptr) return;
    log->Write(status.ok() ? rpc::LogLevel::kInfo : rpc::LogLevel::kError,
               status.ok() ? "exposure log works again" : "exposure log failing", {{"status", status.ToString()}});
  };
  auto directory = OpenLogDirectory(files.exposure_dir());
  if (!directory.ok()) return directory.status();
  out->directory = *std::move(directory);
  auto exposures = ExposureLog::Open(std::move(options), out->directory.get(), SystemClock(), metrics);
  if (!exposures.ok()) return exposures.status();
  out->exposures = *std::move(exposures);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ServingExperiments> OpenServingExperiments(const rpc::ServerConfig& config, Metrics* metrics, rpc::Log* log) {
  ServingExperiments out;
  const auto& files = config.experiments();
  if (files.file().empty()) return out;
  if (!files.exposure_dir().empty()) {
    if (auto s = OpenExposures(files, metrics, log, &out); !s.ok()) return s;
  }
  out.assigner = std::make_shared<ExperimentAssigner>();
  rpc::ExperimentControlOptions options;
  options.file = files.file();
  options.on_change = [log](const std::string& version, const absl::Status& status) {
    if (log == nullptr) return;
    log->Write(status.ok() ? rpc::LogLevel::kInfo : rpc::LogLevel::kError,
               status.ok() ? "experiments applied" : "experiments refused, the last good ones stay",
               {{"version", version}, {"status", status.ToString()}});
  };
  auto control = rpc::ExperimentControl::Open(std::move(options), out.assigner, metrics);
  if (!control.ok()) return control.status();
  out.control = *std::move(control);
  return out;
}

}  // namespace backstory
