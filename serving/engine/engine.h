// Start here in serving/engine: ranks candidates against users' whole histories, and recommends from them. Wires store,
// models, user states, queue and workers together; knows no transport.
#ifndef BACKSTORY_SERVING_ENGINE_ENGINE_H_
#define BACKSTORY_SERVING_ENGINE_ENGINE_H_

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/clock.h"
#include "serving/engine/experiment.h"
#include "serving/engine/metrics.h"
#include "serving/engine/model_repository.h"
#include "serving/engine/rank_query.h"
#include "serving/engine/recommend/recommend_query.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

class RequestRecorder;
class ThreadPool;

struct NamespaceQuota {
  std::string ns;
  double requests_per_s = 0;
  double burst = 0;  // 0 = requests_per_s
};

struct EngineOptions {
  RepositoryOptions repository;
  std::map<std::string, std::string> parameters;  // launch values of any scope; see ParameterRegistry::Builtin()
  std::vector<NamespaceQuota> quotas;             // namespaces without one are unlimited
  std::shared_ptr<const Assigner> assigner;       // null: LaunchDefaults
  std::shared_ptr<ExposureSink> exposure_sink;    // may be null
  std::shared_ptr<RequestRecorder> recorder;      // may be null; sampled by parameter request_log_fraction
  bool load_at_start = true;                      // else LoadModels() is called by the owner
  ThreadPool* pool = nullptr;  // shares the work on requests with many candidates; null: one thread does it. Not owned
};

using RankCallback = std::function<void(absl::StatusOr<RankReply>)>;
using PrefetchCallback = std::function<void(absl::StatusOr<std::vector<CacheReport>>)>;

struct EngineStats {
  uint64_t queued = 0, running = 0;
  uint64_t cached_users = 0, cached_states = 0, cached_bytes = 0, cache_bytes_max = 0;
  uint64_t hits = 0, extends = 0, truncates = 0, rebuilds = 0, uncached = 0, evictions = 0;
  uint64_t refresh_dropped = 0;
  int degrade_step = 0;
  int64_t concurrency_limit = 0;
  bool draining = false;
};

// Thread-safe. Store, catalog, clock and metrics must outlive it.
class Engine {
 public:
  // Validates options and starts the workers; loads models unless told not to. Fails with the first problem found.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options, HistoryStore* store, Catalog* catalog,
                                                        ModelLoader loader, Clock* clock, Metrics* metrics);
  virtual ~Engine() = default;  // what still waits is answered UNAVAILABLE

  // Answers exactly once: on the caller's thread if refused at once, else on a worker's. The callback must not block.
  // Errors as documented for Ranking.Rank; a refusal under load carries RetryPushbackMs (shed.h).
  virtual void Rank(RankQuery query, RankCallback done) = 0;
  // The items most likely next, by a generative version. Answers, refuses and exposes as Rank does.
  virtual void Recommend(RecommendQuery query, RecommendCallback done) = 0;

  // Store passthroughs which keep cached states in step: an append queues a refresh of the states this user has
  // (bounded queue, drops counted), a delete or merge drops them at once. Blocking; statuses are the store's, plus
  // RESOURCE_EXHAUSTED of the namespace's quota and UNAVAILABLE while draining.
  virtual absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events,
                                              Durability durability) = 0;
  virtual absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const HistoryStore::UserBatch> batches,
                                                               Durability durability) = 0;
  virtual absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what) = 0;
  virtual absl::StatusOr<UserHead> Merge(const UserKey& alias, const UserKey& primary) = 0;

  // Brings a user's state up to date for these versions, or, if empty, for the default model and every version that has
  // state of this user. Never logs an exposure. Answers once, as Rank does.
  virtual void Prefetch(const UserKey& user, const std::vector<ModelChoice>& models, int64_t deadline_us,
                        PrefetchCallback done) = 0;

  // Stores catalog items. Those with an embedding get a semantic ID from every ready generative version that can encode
  // it and can be recommended from then on. INVALID_ARGUMENT "items[i].embedding ..." if there are such versions and
  // none takes it; else as Catalog::Upsert. Blocking.
  struct EncodedItem {
    uint64_t item_id = 0;
    std::string model, version;
    std::vector<uint32_t> sid;
  };
  virtual absl::StatusOr<std::vector<EncodedItem>> UpsertItems(const std::string& ns, std::span<const Item> items) = 0;

  virtual absl::Status LoadModels() = 0;  // = models().LoadAtStart()
  // Moves a label to a READY version, as ModelRepository::SetLabel does. Unless `at_once`, only when the new version
  // has the states of enough of the present one's users (parameters release_*), or the time limit has passed: blocking.
  // A new label, or one whose versions share state, moves at once. UNAVAILABLE, and nothing has moved: the server shuts
  // down.
  struct LabelMove {
    std::string previous;   // version; "" if the label is new
    double warm_share = 1;  // of the present version's use by users with a state of the new one
    std::string reason;     // why then: "at_once", "warm", "time", "room" (release_warm_up.h)
  };
  virtual absl::StatusOr<LabelMove> MoveLabel(const std::string& model, const std::string& label,
                                              const std::string& version, bool at_once) = 0;
  virtual ModelRepository& models() = 0;
  virtual HistoryStore& store() = 0;
  virtual Catalog& catalog() = 0;
  virtual const ParameterSet& parameters() const = 0;  // launch values
  virtual EngineStats Stats() const = 0;

  // Stops admitting and waits until everything accepted was answered; DEADLINE_EXCEEDED naming what is left if that
  // takes longer than `timeout_us`. Idempotent.
  virtual absl::Status Drain(int64_t timeout_us) = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_ENGINE_H_
