// The experiments of a server: configuration file, assigner and exposure log, opened from the server's configuration.
#ifndef BACKSTORY_SERVING_CLI_SERVING_EXPERIMENTS_H_
#define BACKSTORY_SERVING_CLI_SERVING_EXPERIMENTS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "serving/engine/experiments/assigner.h"
#include "serving/engine/experiments/exposure_log.h"
#include "serving/engine/metrics.h"
#include "serving/rpc/experiment_control.h"
#include "serving/rpc/log.h"
#include "serving/rpc/server_config.h"

namespace backstory {

// All null if the configuration names no experiment file. Members are destroyed in reverse order.
struct ServingExperiments {
  std::unique_ptr<LogDirectory> directory;
  std::shared_ptr<ExposureLog> exposures;  // null without experiments.exposure_dir
  std::shared_ptr<ExperimentAssigner> assigner;
  std::unique_ptr<rpc::ExperimentControl> control;
};

// INVALID_ARGUMENT with every problem of the file, or what is wrong with the key or the directory. `log` (may be null) hears
// of every change, and of an exposure log that fails or works again.
absl::StatusOr<ServingExperiments> OpenServingExperiments(const rpc::ServerConfig& config, Metrics* metrics, rpc::Log* log);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SERVING_EXPERIMENTS_H_
