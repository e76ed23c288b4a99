// Everything a server needs below its transport, opened from one configuration: store, models, engine.
#ifndef BACKSTORY_SERVING_CLI_SERVING_STACK_H_
#define BACKSTORY_SERVING_CLI_SERVING_STACK_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "serving/cli/serving_experiments.h"
#include "serving/engine/engine.h"
#include "serving/engine/prometheus_metrics.h"
#include "serving/rpc/server_config.h"
#include "store/rocksdb_history_store.h"

namespace backstory {

StoreOptions StoreOptionsOf(const rpc::ServerConfig& config);
absl::StatusOr<EngineOptions> EngineOptionsOf(const rpc::ServerConfig& config);

// What a tool puts in place of the configuration's experiments, and who hears of them.
struct StackOptions {
  std::shared_ptr<const Assigner> assigner;
  std::shared_ptr<ExposureSink> exposure_sink;
  rpc::Log* log = nullptr;
  bool keep_choices = true;            // of RepositoryOptions
  std::function<bool()> stop_loading;  // of RepositoryOptions
};

// Members are destroyed in reverse order: the engine first, the store last.
struct ServingStack {
  PrometheusMetrics metrics;
  std::unique_ptr<ThreadPool> pool;
  Store store;
  ServingExperiments experiments;
  std::unique_ptr<Engine> engine;

  // Opens the store and starts the engine; models are not loaded yet (engine->LoadModels()). `config` is filled and has
  // no problems.
  static absl::StatusOr<std::unique_ptr<ServingStack>> Open(const rpc::ServerConfig& config, StackOptions options = {});
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SERVING_STACK_H_
