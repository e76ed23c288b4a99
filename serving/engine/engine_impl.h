// How the engine is wired: see engine.h for what it promises.
#ifndef BACKSTORY_SERVING_ENGINE_ENGINE_IMPL_H_
#define BACKSTORY_SERVING_ENGINE_ENGINE_IMPL_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "serving/engine/admission_gate.h"
#include "serving/engine/batcher.h"
#include "serving/engine/engine.h"
#include "serving/engine/jobs.h"
#include "serving/engine/ranker.h"
#include "serving/engine/recommend/generative_state_provider.h"
#include "serving/engine/recommend/recommender.h"
#include "serving/engine/release_warm_up.h"
#include "serving/engine/request_log.h"
#include "serving/engine/request_queue.h"
#include "serving/engine/user_state_cache.h"
#include "serving/engine/user_state_provider.h"

namespace backstory {

class EngineImpl : public Engine {
 public:
  // `parameters` are the validated launch values; threads 0 starts no worker (tests call RunOne).
  EngineImpl(EngineOptions options, ParameterSet parameters, int threads, HistoryStore* store, Catalog* catalog,
             ModelLoader loader, Clock* clock, Metrics* metrics);
  ~EngineImpl() override;

  void Rank(RankQuery query, RankCallback done) override;
  void Recommend(RecommendQuery query, RecommendCallback done) override;
  absl::StatusOr<std::vector<EncodedItem>> UpsertItems(const std::string& ns, std::span<const Item> items) override;
  absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events,
                                      Durability durability) override;
  absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const HistoryStore::UserBatch> batches,
                                                       Durability durability) override;
  absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what) override;
  absl::StatusOr<UserHead> Merge(const UserKey& alias, const UserKey& primary) override;
  void Prefetch(const UserKey& user, const std::vector<ModelChoice>& models, int64_t deadline_us,
                PrefetchCallback done) override;
  absl::Status LoadModels() override { return models_.LoadAtStart(); }
  absl::StatusOr<LabelMove> MoveLabel(const std::string& model, const std::string& label, const std::string& version,
                                      bool at_once) override;
  ModelRepository& models() override { return models_; }
  HistoryStore& store() override { return *store_; }
  Catalog& catalog() override { return *catalog_; }
  const ParameterSet& parameters() const override { return launch_; }
  EngineStats Stats() const override;
  absl::Status Drain(int64_t timeout_us) override;

  // One job on the calling thread; false if nothing waits. Only with 0 threads.
  bool RunOne() { return batcher_.RunOne(); }
  UserStateCache& cache_for_test() { return cache_; }

 private:
  void Begin(RankQuery query, RankJob* job);
  absl::Status Admit(RankJob* job);
  absl::Status AdmitRecommend(RecommendJob* job);
  // What Rank and Recommend ask of a request alike: quota, time, experiments, parameters.
  absl::Status AdmitRequest(RankJob* job);
  std::string AssignExperiments(RankJob* job) const;
  void FinishExposure(const RankJob& job, const absl::Status& status) const;
  absl::Status Enqueue(std::unique_ptr<RankJob>& job);
  bool StartJob(std::unique_ptr<RankJob>& job);
  void FinishRank(std::unique_ptr<RankJob> job, absl::Status status);
  void FinishPrefetch(std::unique_ptr<PrefetchJob> job, absl::StatusOr<std::vector<CacheReport>> result);
  void FinishAny(std::unique_ptr<Job> job, absl::Status status);
  void RunPrefetch(std::unique_ptr<PrefetchJob> job);
  void RunRecommend(std::unique_ptr<RecommendJob> job);
  absl::StatusOr<CacheReport> BringUpToDate(const UserKey& user, const ServedModel& served);
  absl::StatusOr<std::vector<CacheReport>> BringUpToDate(const PrefetchJob& job);
  void QueueRefresh(const UserKey& user);
  std::string StateKeyOf(const ServedModel& served) const;
  std::vector<std::shared_ptr<const ServedModel>> ModelsWithStateOf(const UserKey& user) const;
  absl::Status WarmUp(const std::shared_ptr<const ServedModel>& served);
  absl::Status ScoreRecorded(const std::shared_ptr<const ServedModel>& served);
  absl::StatusOr<uint64_t> WarmUser(const UserKey& user, const std::shared_ptr<const ServedModel>& served);
  std::shared_ptr<const ServedModel> Labelled(const std::string& model, const std::string& label) const;
  void DropStatesOf(const ServedModel& unloaded);
  void CountOutcome(const RankJob& job, const absl::Status& status, int64_t latency_us);

  const EngineOptions options_;
  const ParameterSet launch_;
  const int threads_;
  HistoryStore* const store_;
  Catalog* const catalog_;
  Clock* const clock_;
  Metrics* const metrics_;
  Counter* const refresh_dropped_metric_;

  UserStateCache cache_;
  UserStateProvider states_;
  GenerativeStateProvider generative_states_;
  Ranker ranker_;
  Recommender recommender_;
  ModelRepository models_;
  AdmissionGate gate_;
  RequestQueue queue_;
  std::atomic<uint64_t> next_id_{1};
  std::atomic<uint64_t> refresh_dropped_{0};
  std::mutex refresh_mutex_;
  std::set<UserKey> refreshing_;  // guarded by refresh_mutex_: users with a refresh in the queue
  ReleaseWarmUp release_;         // Stop, then the workers' end, then Join: it waits for jobs
  Batcher batcher_;               // last: its threads end before anything they use
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_ENGINE_IMPL_H_
