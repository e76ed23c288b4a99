// The part of the engine that keeps user states in step with the store and with the models.
#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/engine_impl.h"
#include "serving/engine/shed.h"

namespace backstory {

absl::StatusOr<AppendResult> EngineImpl::Append(const UserKey& user, std::span<const Event> events,
                                                Durability durability) {
  if (absl::Status status = gate_.CheckQuota(user.ns); !status.ok()) return status;
  absl::StatusOr<AppendResult> result = store_->Append(user, events, clock_->WallMicros(), durability);
  if (result.ok() && result->accepted > 0) QueueRefresh(user);
  return result;
}

absl::StatusOr<std::vector<AppendResult>> EngineImpl::AppendMany(std::span<const HistoryStore::UserBatch> batches,
                                                                 Durability durability) {
  std::set<std::string> namespaces;
  for (const HistoryStore::UserBatch& batch : batches) namespaces.insert(batch.user.ns);
  for (const std::string& ns : namespaces) {
    if (absl::Status status = gate_.CheckQuota(ns); !status.ok()) return status;
  }
  absl::StatusOr<std::vector<AppendResult>> results = store_->AppendMany(batches, clock_->WallMicros(), durability);
  if (!results.ok()) return results;
  for (size_t i = 0; i < batches.size(); ++i) {
    if ((*results)[i].accepted > 0) QueueRefresh(batches[i].user);
  }
  return results;
}

absl::StatusOr<uint64_t> EngineImpl::Delete(const UserKey& user, const DeleteSelector& what) {
  absl::StatusOr<uint64_t> deleted = store_->Delete(user, what, clock_->WallMicros());
  // Also after a failure: what was committed before it must not be served from memory.
  cache_.EraseUser(user);
  return deleted;
}

absl::StatusOr<UserHead> EngineImpl::Merge(const UserKey& alias, const UserKey& primary) {
  const absl::Status status = store_->Merge(alias, primary, clock_->WallMicros());
  cache_.EraseUser(alias);
  cache_.EraseUser(primary);
  if (!status.ok()) return status;
  return store_->Head(primary);
}

std::string EngineImpl::StateKeyOf(const ServedModel& served) const {
  return served.kind() == ModelKind::kGenerative
             ? GenerativeStateProvider::StateKey(*served.generative, launch_.StateHash())
             : UserStateProvider::StateKey(served, launch_.StateHash());
}

std::vector<std::shared_ptr<const ServedModel>> EngineImpl::ModelsWithStateOf(const UserKey& user) const {
  std::vector<std::string> keys = cache_.StateKeysOf(user);
  for (std::string& key : keys) key.erase(std::min(key.find('@'), key.size()));  // whatever the anchor
  std::vector<std::shared_ptr<const ServedModel>> models;
  if (keys.empty()) return models;
  std::set<std::string> taken;  // versions that share state are served by one of them
  for (const std::shared_ptr<const ServedModel>& served : models_.Ready()) {
    const std::string key = StateKeyOf(*served);
    if (std::find(keys.begin(), keys.end(), key) != keys.end() && taken.insert(key).second) models.push_back(served);
  }
  return models;
}

// States with STATE parameters other than the launch values (an experiment's) are extended when next asked for.
void EngineImpl::QueueRefresh(const UserKey& user) {
  if (launch_.Int("refresh_queue") == 0) return;
  auto job = std::make_unique<PrefetchJob>();
  job->models = ModelsWithStateOf(user);
  if (job->models.empty()) return;
  {
    std::lock_guard lock(refresh_mutex_);
    if (!refreshing_.insert(user).second) return;  // the one in the queue will see these events too
  }
  job->id = next_id_++;
  job->job_class = JobClass::kRefresh;
  job->user = user;
  std::unique_ptr<Job> entering = std::move(job);
  if (queue_.Push(entering).accepted) return;
  ++refresh_dropped_;
  refresh_dropped_metric_->Add();
  std::lock_guard lock(refresh_mutex_);
  refreshing_.erase(user);
}

void EngineImpl::Prefetch(const UserKey& user, const std::vector<ModelChoice>& models, int64_t deadline_us,
                          PrefetchCallback done) {
  absl::Status status = ValidateNamespace(user.ns);
  if (status.ok()) status = ValidateUser(user.user);
  if (status.ok()) status = gate_.CheckQuota(user.ns);
  auto job = std::make_unique<PrefetchJob>();
  if (status.ok() && models.empty()) {
    job->models = ModelsWithStateOf(user);
    if (auto served = models_.Resolve({}); served.ok()) {
      if (std::find(job->models.begin(), job->models.end(), *served) == job->models.end()) {
        job->models.push_back(*std::move(served));
      }
    } else if (job->models.empty()) {
      status = served.status();
    }
  }
  for (const ModelChoice& choice : models) {
    absl::StatusOr<std::shared_ptr<const ServedModel>> served = models_.Resolve(choice, ModelKind::kRanking);
    if (!served.ok()) served = models_.Resolve(choice, ModelKind::kGenerative);
    status.Update(served.status());
    if (served.ok()) job->models.push_back(*std::move(served));
  }
  if (!status.ok()) return done(status);
  const absl::StatusOr<int64_t> in_flight =
      gate_.Enter(JobClass::kPrefetch, queue_.Ahead(JobClass::kPrefetch), deadline_us);
  if (!in_flight.ok()) return done(in_flight.status());
  job->id = next_id_++;
  job->job_class = JobClass::kPrefetch;
  job->deadline_us = deadline_us;
  job->enqueued_us = clock_->MonotonicMicros();
  job->user = user;
  job->done = std::move(done);
  std::unique_ptr<Job> entering = std::move(job);
  RequestQueue::PushResult pushed = queue_.Push(entering);
  if (pushed.displaced != nullptr) {
    FinishAny(std::move(pushed.displaced), gate_.QueueFull("displaced", queue_.capacity()));
  }
  if (!pushed.accepted) FinishAny(std::move(entering), gate_.QueueFull("queue_full", queue_.capacity()));
}

void EngineImpl::RunPrefetch(std::unique_ptr<PrefetchJob> job) {
  if (job->job_class == JobClass::kRefresh && !job->warmed) {
    // From here on a further append queues a further refresh.
    std::lock_guard lock(refresh_mutex_);
    refreshing_.erase(job->user);
  }
  absl::StatusOr<std::vector<CacheReport>> reports = BringUpToDate(*job);
  metrics_
      ->GetCounter("backstory_prefetch_total", "User states brought up to date ahead of a request",
                   {{"trigger", job->warmed                            ? "release"
                                : job->job_class == JobClass::kRefresh ? "append"
                                                                       : "call"},
                    {"code", absl::StatusCodeToString(reports.status().code())}})
      ->Add();
  FinishPrefetch(std::move(job), std::move(reports));
}

absl::StatusOr<std::vector<CacheReport>> EngineImpl::BringUpToDate(const PrefetchJob& job) {
  std::vector<CacheReport> reports;
  for (const std::shared_ptr<const ServedModel>& served : job.models) {
    absl::StatusOr<CacheReport> report = BringUpToDate(job.user, *served);
    if (!report.ok()) return report.status();
    reports.push_back(*std::move(report));
  }
  return reports;
}

absl::StatusOr<CacheReport> EngineImpl::BringUpToDate(const UserKey& user, const ServedModel& served) {
  const int64_t events_max = launch_.Int("state_events_max");
  if (served.kind() == ModelKind::kGenerative) {
    GenerativeStateRequest request;
    request.user = user;
    request.model = served.generative.get();
    request.events_max = events_max;
    request.parameter_hash = launch_.StateHash();
    request.view_us = clock_->WallMicros();
    absl::StatusOr<GenerativeStateAnswer> answer = generative_states_.Acquire(request);
    if (!answer.ok()) return answer.status();
    return std::move(answer->report);
  }
  StateRequest request;
  request.user = user;
  request.served = &served;
  request.events_max = events_max;
  request.parameter_hash = launch_.StateHash();
  request.view_us = clock_->WallMicros();
  request.between = [this] { batcher_.ServeReady(); };
  absl::StatusOr<StateAnswer> answer = states_.Acquire(request);
  if (!answer.ok()) return answer.status();
  return std::move(answer->report);
}

// A version is ready once a made-up request and the recorded ones of <root>/<model>/warmup.jsonl gave finite scores.
// Recorded requests that fail for another reason (a user whose slot has moved, say) are no fault of the model.
absl::Status EngineImpl::WarmUp(const std::shared_ptr<const ServedModel>& served) {
  if (absl::Status status = ScoreRecorded(served); !status.ok()) return status;
  if (const auto present = Labelled(served->name, "stable"); present != nullptr && present->kind() == served->kind()) {
    release_.Start(served, StateKeyOf(*served), StateKeyOf(*present));
  }
  return absl::OkStatus();
}

std::shared_ptr<const ServedModel> EngineImpl::Labelled(const std::string& model, const std::string& label) const {
  for (const ModelKind kind : {ModelKind::kRanking, ModelKind::kGenerative}) {
    if (auto served = models_.Resolve({model, "", label}, kind); served.ok()) return *std::move(served);
  }
  return nullptr;
}

absl::StatusOr<Engine::LabelMove> EngineImpl::MoveLabel(const std::string& model, const std::string& label,
                                                        const std::string& version, bool at_once) {
  LabelMove move{.reason = "at_once"};
  std::shared_ptr<const ServedModel> next;
  for (const ModelKind kind : {ModelKind::kRanking, ModelKind::kGenerative}) {
    if (auto served = models_.Resolve({model, version, ""}, kind); served.ok()) next = *std::move(served);
  }
  const std::shared_ptr<const ServedModel> present = label.empty() ? nullptr : Labelled(model, label);
  if (!at_once && next != nullptr && present != nullptr && next->kind() == present->kind()) {
    WarmUpResult warmed = release_.Wait(next, StateKeyOf(*next), StateKeyOf(*present));
    if (warmed.reason == "stopped" && gate_.draining()) return ShedStatus("server is shutting down", 1000);
    move.warm_share = warmed.share;
    move.reason = std::move(warmed.reason);
  }
  auto previous = models_.SetLabel(model, label, version);  // checks everything: a version may be gone by now
  if (!previous.ok()) return previous.status();
  move.previous = *std::move(previous);
  return move;
}

// One user of a release: behind every request, in steps, as a refresh.
absl::StatusOr<uint64_t> EngineImpl::WarmUser(const UserKey& user, const std::shared_ptr<const ServedModel>& served) {
  std::promise<absl::StatusOr<std::vector<CacheReport>>> answer;
  auto reports = answer.get_future();
  auto job = std::make_unique<PrefetchJob>();
  job->id = next_id_++;
  job->job_class = JobClass::kRefresh;
  job->user = user;
  job->models = {served};
  job->warmed = [&answer](absl::StatusOr<std::vector<CacheReport>> built) { answer.set_value(std::move(built)); };
  std::unique_ptr<Job> entering = std::move(job);
  if (!queue_.Push(entering).accepted) return absl::ResourceExhaustedError("the queue of refreshes is full");
  const absl::StatusOr<std::vector<CacheReport>> built = reports.get();
  if (!built.ok()) return built.status();
  return built->front().rows_computed;
}

absl::Status EngineImpl::ScoreRecorded(const std::shared_ptr<const ServedModel>& served) {
  if (served->kind() == ModelKind::kGenerative) return recommender_.Probe(*served->generative);
  if (absl::Status status = ranker_.Probe(served); !status.ok()) return status;
  const size_t records_max = static_cast<size_t>(launch_.Int("warmup_requests_max"));
  if (options_.repository.root.empty() || records_max == 0) return absl::OkStatus();
  size_t unreadable = 0;
  absl::StatusOr<std::vector<RankQuery>> queries = ReadRequestLog(
      absl::StrCat(options_.repository.root, "/", served->name, "/warmup.jsonl"), records_max, &unreadable);
  if (absl::IsNotFound(queries.status())) return absl::OkStatus();
  if (!queries.ok()) return queries.status();
  // A line that a dying server left half written says nothing about this version.
  metrics_->GetCounter("backstory_warmup_lines_unreadable_total", "Lines of warmup.jsonl passed over in a load")
      ->Add(static_cast<double>(unreadable));
  for (RankQuery& query : *queries) {
    PreparedRank rank;
    rank.query = std::move(query);
    if (rank.query.now_us == 0) rank.query.now_us = clock_->WallMicros();
    rank.served = served;
    rank.parameters = launch_;
    absl::StatusOr<Ranker::Prepared> prepared = ranker_.Prepare(&rank, /*may_wait=*/true);
    absl::Status status = prepared.status();
    PreparedRank* const ranks[] = {&rank};
    if (status.ok()) status = ranker_.Score(ranks);
    if (status.ok()) status = rank.status;
    if (absl::IsInternal(status)) return status;
    metrics_
        ->GetCounter("backstory_warmup_requests_total", "Recorded requests scored before a version was ready",
                     {{"code", absl::StatusCodeToString(status.code())}})
        ->Add();
  }
  return absl::OkStatus();
}

void EngineImpl::DropStatesOf(const ServedModel& unloaded) {
  release_.Forget(unloaded);
  for (const std::shared_ptr<const ServedModel>& served : models_.Ready()) {
    if (served->state_id() == unloaded.state_id()) return;  // shared with a version that still serves
  }
  cache_.EraseStateKeys(unloaded.state_id() + ":");
}

}  // namespace backstory
