#include "serving/cli/serving_stack.h"

#include <string>
#include <thread>
#include <utility>

#include "serving/embedded/version_loader.h"
#include "serving/engine/experiments/shadow.h"
#include "serving/engine/request_log.h"

namespace backstory {

StoreOptions StoreOptionsOf(const rpc::ServerConfig& config) {
  StoreOptions options;
  options.directory = config.store().directory();
  options.create_if_missing = config.store().create_if_missing();
  options.self = config.store().self();
  for (const auto& range : config.store().slots()) {
    options.slots.push_back({static_cast<int>(range.first()), static_cast<int>(range.last()), range.owner()});
  }
  options.wal_flush_interval = std::chrono::milliseconds(config.store().wal_flush_interval_ms());
  options.block_cache_bytes = config.store().block_cache_bytes();
  options.writer_cache_bytes = config.store().writer_cache_bytes();
  options.background_threads = static_cast<int>(config.store().background_threads());
  return options;
}

absl::StatusOr<EngineOptions> EngineOptionsOf(const rpc::ServerConfig& config) {
  EngineOptions options;
  options.repository.root = config.models().directory();
  options.repository.default_model = config.models().default_model();
  options.parameters.insert(config.parameters().begin(), config.parameters().end());
  for (const auto& quota : config.quotas()) {
    options.quotas.push_back({quota.namespace_(), quota.requests_per_s(), quota.burst()});
  }
  if (config.has_request_log()) {
    auto recorder = JsonLinesRecorder::Open(config.request_log().file(), config.request_log().max_bytes());
    if (!recorder.ok()) return recorder.status();
    options.recorder = *std::move(recorder);
  }
  options.load_at_start = false;
  return options;
}

absl::StatusOr<std::unique_ptr<ServingStack>> ServingStack::Open(const rpc::ServerConfig& config, StackOptions extra) {
  auto options = EngineOptionsOf(config);
  if (!options.ok()) return options.status();
  auto stack = std::make_unique<ServingStack>();
  ParameterSet parameters;
  if (auto s = parameters.SetAll(options->parameters, ParameterSource::kServer); !s.ok()) return s;
  const int64_t threads = parameters.Int("threads");
  stack->pool = std::make_unique<ThreadPool>(threads > 0 ? static_cast<size_t>(threads)
                                                         : std::max<size_t>(1, std::thread::hardware_concurrency()));
  auto device = ScoringDevice::Open(parameters, &stack->metrics, [log = extra.log](const std::string& line) {
    if (log != nullptr) log->Write(rpc::LogLevel::kWarning, "scoring device", {{"what", line}});
  });
  if (!device.ok()) return device.status();
  auto store = OpenStore(StoreOptionsOf(config));
  if (!store.ok()) return store.status();
  stack->store = *std::move(store);
  auto experiments = OpenServingExperiments(config, &stack->metrics, extra.log);
  if (!experiments.ok()) return experiments.status();
  stack->experiments = *std::move(experiments);
  options->repository.keep_choices = extra.keep_choices;
  options->pool = stack->pool.get();
  options->repository.stop_loading = extra.stop_loading;
  options->assigner = extra.assigner != nullptr ? std::move(extra.assigner) : stack->experiments.assigner;
  options->exposure_sink =
      extra.exposure_sink != nullptr ? std::move(extra.exposure_sink) : stack->experiments.exposures;
  auto engine =
      Engine::Create(*std::move(options), stack->store.history.get(), stack->store.catalog.get(),
                     VersionLoader(stack->pool.get(), parameters, *std::move(device)), SystemClock(), &stack->metrics);
  if (!engine.ok()) return engine.status();
  stack->engine = *std::move(engine);
  if (config.has_shadow()) {
    const auto& shadow = config.shadow();
    auto shadowing = MakeShadowingEngine(std::move(stack->engine),
                                         {shadow.model(), shadow.version(), shadow.fraction()}, &stack->metrics);
    if (!shadowing.ok()) return shadowing.status();
    stack->engine = *std::move(shadowing);
  }
  return stack;
}

}  // namespace backstory
