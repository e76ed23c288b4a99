#include "serving/embedded/embedded_engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/thread_pool.h"
#include "models/glass/loader.h"
#include "serving/embedded/grab_loader.h"
#include "serving/engine/repository_files.h"
#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

// Which version a choice means, as ModelRepository would resolve it after it loaded everything: but only this one is
// loaded.
absl::StatusOr<ModelChoice> ExactVersion(const std::string& root, ModelChoice choice) {
  absl::StatusOr<RepositoryListing> listing = ListRepository(root);
  if (!listing.ok()) return listing.status();
  // Models that recommend cannot score a table; they are left out where none is named.
  std::erase_if(*listing, [&](const auto& model) {
    return model.first != choice.model &&
           glass::IsGlassVersion(absl::StrCat(root, "/", model.first, "/", model.second.back()));
  });
  if (choice.model.empty()) {
    if (listing->size() != 1) {
      std::string names;
      for (const auto& [name, versions] : *listing) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
      return absl::NotFoundError(absl::StrCat(root, " has ", listing->size(), " models (", names, "): name one"));
    }
    choice.model = listing->begin()->first;
  }
  const auto found = listing->find(choice.model);
  if (found == listing->end()) {
    return absl::NotFoundError(absl::StrCat("model \"", choice.model, "\" has no complete version in ", root));
  }
  if (!choice.version.empty()) return ModelChoice{choice.model, choice.version, ""};
  const absl::StatusOr<std::map<std::string, std::string>> labels = ReadLabels(root, choice.model);
  if (!labels.ok()) return labels.status();
  const auto label = labels->find(choice.label.empty() ? "stable" : choice.label);
  if (label != labels->end()) return ModelChoice{choice.model, label->second, ""};
  if (!choice.label.empty() && choice.label != "stable") {
    return absl::NotFoundError(absl::StrCat("model ", choice.model, " has no label \"", choice.label, "\""));
  }
  return ModelChoice{choice.model, *std::max_element(found->second.begin(), found->second.end(), VersionLess), ""};
}

// Nothing may shorten a history or refuse work: there is no other load to protect.
std::map<std::string, std::string> LaunchParameters(const EmbeddedOptions& options) {
  std::map<std::string, std::string> parameters = options.parameters;
  parameters.try_emplace("threads", absl::StrCat(options.threads));
  parameters.try_emplace("cache_bytes", absl::StrCat(options.cache_bytes));
  parameters.try_emplace("concurrency_adaptive", "false");
  parameters.try_emplace("concurrency_limit_max", "1024");
  parameters.try_emplace("queue_requests", "1024");
  parameters.try_emplace("queue_wait_fraction", "1");
  parameters.try_emplace("batch_limit_fraction", "1");
  parameters.try_emplace("degrade_queue_fill", "1");
  parameters.try_emplace("shed_batch_queue_fill", "1");
  parameters.try_emplace("refresh_queue", "0");
  parameters.try_emplace("warmup_requests_max", "0");
  parameters.try_emplace("device", "cpu");  // many processes of a batch job would each take a card's memory
  return parameters;
}

// Members are destroyed in reverse order: the engine first, the store last.
class EmbeddedEngineImpl : public EmbeddedEngine {
 public:
  absl::Status Start(const EmbeddedOptions& options) {
    const std::map<std::string, std::string> launch = LaunchParameters(options);
    ParameterSet parameters;
    if (auto status = parameters.SetAll(launch, ParameterSource::kServer); !status.ok()) return status;
    ModelChoice choice = options.model;
    if (choice.version.empty() && choice.label.empty()) choice.version = parameters.Text("model_version");
    absl::StatusOr<ModelChoice> exact = ExactVersion(options.models, choice);
    if (!exact.ok()) return exact.status();
    model_ = *std::move(exact);

    StoreOptions store_options;
    store_options.directory = options.store;
    store_options.read_only = true;
    store_options.create_if_missing = false;
    store_options.block_cache_bytes = options.block_cache_bytes;
    absl::StatusOr<Store> store = OpenStore(store_options);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);

    const int64_t threads = parameters.Int("threads");
    pool_ = std::make_unique<ThreadPool>(threads > 0 ? static_cast<size_t>(threads)
                                                     : std::max<size_t>(1, std::thread::hardware_concurrency()));
    auto device = ScoringDevice::Open(parameters, &metrics_, {});
    if (!device.ok()) return device.status();
    EngineOptions engine_options;
    engine_options.pool = pool_.get();
    engine_options.repository = {options.models, model_.model};
    engine_options.repository.keep_choices = false;
    engine_options.parameters = launch;
    engine_options.load_at_start = false;
    auto engine = Engine::Create(std::move(engine_options), store_.history.get(), store_.catalog.get(),
                                 GrabLoader(pool_.get(), parameters, *std::move(device)), SystemClock(), &metrics_);
    if (!engine.ok()) return engine.status();
    engine_ = *std::move(engine);
    if (auto status = engine_->models().Load(model_.model, model_.version); !status.ok()) return status;
    const auto served = engine_->models().Resolve(model_);
    if (!served.ok()) return served.status();
    content_hash_ = (*served)->content_hash;
    return absl::OkStatus();
  }

  Engine* engine() override { return engine_.get(); }
  const ModelChoice& model() const override { return model_; }
  const std::string& content_hash() const override { return content_hash_; }

 private:
  ModelChoice model_;
  std::string content_hash_;
  MemoryMetrics metrics_;
  std::unique_ptr<ThreadPool> pool_;
  Store store_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EmbeddedEngine>> EmbeddedEngine::Open(const EmbeddedOptions& options) {
  auto engine = std::make_unique<EmbeddedEngineImpl>();
  if (auto status = engine->Start(options); !status.ok()) return status;
  return std::unique_ptr<EmbeddedEngine>(std::move(engine));
}

}  // namespace backstory
