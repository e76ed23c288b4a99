#include "serving/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/engine_impl.h"
#include "serving/engine/shed.h"

namespace backstory {
namespace {

absl::Status CheckQuotas(const std::vector<NamespaceQuota>& quotas) {
  std::set<std::string> seen;
  for (const NamespaceQuota& quota : quotas) {
    if (absl::Status status = ValidateNamespace(quota.ns); !status.ok()) return status;
    if (!(quota.requests_per_s > 0) || !std::isfinite(quota.requests_per_s) || !(quota.burst >= 0) ||
        !std::isfinite(quota.burst)) {
      return absl::InvalidArgumentError(
          absl::StrCat("quota of namespace ", quota.ns, ": requests_per_s must be > 0 and burst >= 0"));
    }
    if (!seen.insert(quota.ns).second) {
      return absl::InvalidArgumentError(absl::StrCat("quota of namespace ", quota.ns, " is given twice"));
    }
  }
  return absl::OkStatus();
}

JobClass ClassOf(Criticality criticality) {
  switch (criticality) {
    case Criticality::kOnline:
      return JobClass::kOnline;
    case Criticality::kBatch:
      return JobClass::kBatch;
    case Criticality::kShadow:
      return JobClass::kShadow;
  }
  return JobClass::kOnline;
}

std::string ClassName(JobClass job_class) {
  switch (job_class) {
    case JobClass::kOnline:
      return "online";
    case JobClass::kPrefetch:
      return "prefetch";
    case JobClass::kBatch:
      return "batch";
    case JobClass::kShadow:
      return "shadow";
    case JobClass::kRefresh:
      return "refresh";
  }
  return "";
}

WarmUpOptions WarmUpOptionsOf(const ParameterSet& launch) {
  // What the next version's states take, the present one's lose: neither may have more than half.
  constexpr int64_t kShareOfCache = 2;
  return {.share = launch.Int("refresh_queue") == 0 ? 0 : launch.Real("release_warm_share"),
          .rows_per_s = static_cast<double>(launch.Int("release_warm_rows_per_s")),
          .time_max_us = launch.Int("release_warm_s_max") * 1'000'000,
          .bytes_max = static_cast<size_t>(launch.Int("cache_bytes") / kShareOfCache),
          .cache_bytes = static_cast<size_t>(launch.Int("cache_bytes"))};
}

absl::Status DeadlinePassed() { return absl::DeadlineExceededError("deadline passed before the request was computed"); }

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options, HistoryStore* store, Catalog* catalog,
                                                       ModelLoader loader, Clock* clock, Metrics* metrics) {
  ParameterSet parameters;
  if (absl::Status status = parameters.SetAll(options.parameters, ParameterSource::kServer); !status.ok()) {
    return status;
  }
  if (parameters.Int("concurrency_limit_min") > parameters.Int("concurrency_limit_max")) {
    return absl::InvalidArgumentError("parameter concurrency_limit_min is above concurrency_limit_max");
  }
  if (absl::Status status = CheckQuotas(options.quotas); !status.ok()) return status;
  int threads = static_cast<int>(parameters.Int("threads"));
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const bool load = options.load_at_start;
  auto engine = std::make_unique<EngineImpl>(std::move(options), std::move(parameters), threads, store, catalog,
                                             std::move(loader), clock, metrics);
  if (load) {
    if (absl::Status status = engine->LoadModels(); !status.ok()) return status;
  }
  return engine;
}

EngineImpl::EngineImpl(EngineOptions options, ParameterSet parameters, int threads, HistoryStore* store,
                       Catalog* catalog, ModelLoader loader, Clock* clock, Metrics* metrics)
    : options_([&] {
        if (options.assigner == nullptr) options.assigner = std::make_shared<LaunchDefaults>();
        return std::move(options);
      }()),
      launch_(std::move(parameters)),
      threads_(threads),
      store_(store),
      catalog_(catalog),
      clock_(clock),
      metrics_(metrics),
      refresh_dropped_metric_(metrics->GetCounter("backstory_refresh_dropped_total",
                                                  "Refreshes after an append that found their queue full")),
      cache_(static_cast<size_t>(launch_.Int("cache_bytes"))),
      states_(store, catalog, &cache_, clock, metrics),
      generative_states_(store, catalog, &cache_, clock, metrics),
      ranker_(store, catalog, &states_, options_.pool, clock, metrics),
      recommender_(&generative_states_, catalog, &ranker_, clock, metrics),
      models_(
          options_.repository, std::move(loader),
          [this](const std::shared_ptr<const ServedModel>& served) { return WarmUp(served); },
          [this](const ServedModel& served) { DropStatesOf(served); }, metrics),
      gate_(launch_, options_.quotas, std::max(1, threads), clock, metrics),
      queue_(static_cast<size_t>(launch_.Int("queue_requests")), static_cast<size_t>(launch_.Int("refresh_queue"))),
      release_(WarmUpOptionsOf(launch_), &cache_, clock, metrics,
               [this](const UserKey& user, const std::shared_ptr<const ServedModel>& served) {
                 return WarmUser(user, served);
               }),
      batcher_(&queue_, &ranker_, clock,
               {.requests = static_cast<size_t>(launch_.Int("batch_users")),
                .candidates = static_cast<size_t>(launch_.Int("batch_candidates")),
                .lane_candidates = static_cast<size_t>(launch_.Int("device_batch_candidates"))},
               {[this](std::unique_ptr<RankJob>& job) { return StartJob(job); },
                [this](std::unique_ptr<RankJob> job, absl::Status status) { FinishRank(std::move(job), status); },
                [this](std::unique_ptr<PrefetchJob> job) { RunPrefetch(std::move(job)); },
                [this](std::unique_ptr<RecommendJob> job) { RunRecommend(std::move(job)); },
                [this](std::unique_ptr<Job> job) { FinishAny(std::move(job), DeadlinePassed()); }}) {
  batcher_.Start(threads);
}

EngineImpl::~EngineImpl() {
  gate_.StartDrain();
  release_.Stop();
  std::vector<std::unique_ptr<Job>> left = queue_.Close();
  batcher_.Join();
  for (std::unique_ptr<Job>& job : left) FinishAny(std::move(job), ShedStatus("server is shutting down", 1000));
  release_.Join();
}

void EngineImpl::Begin(RankQuery query, RankJob* job) {
  job->entered_us = clock_->MonotonicMicros();
  job->id = next_id_++;
  job->job_class = ClassOf(query.criticality);
  job->deadline_us = query.deadline_us;
  job->rank.query = std::move(query);
  job->rank.parameters = launch_;
}

void EngineImpl::Rank(RankQuery query, RankCallback done) {
  auto job = std::make_unique<RankJob>();
  Begin(std::move(query), job.get());
  job->done = std::move(done);
  absl::Status status = Admit(job.get());
  if (status.ok()) status = Enqueue(job);
  if (status.ok()) return;
  FinishExposure(*job, status);
  job->Answer(status);
}

// Everything that can be refused before the queue; the job holds no slot yet.
absl::Status EngineImpl::Admit(RankJob* job) {
  PreparedRank& rank = job->rank;
  if (absl::Status status = ValidateRankQuery(rank.query); !status.ok()) return status;
  if (absl::Status status = AdmitRequest(job); !status.ok()) return status;
  ModelChoice choice = rank.query.model;
  if (choice.version.empty() && choice.label.empty()) choice.version = rank.parameters.Text("model_version");
  absl::StatusOr<std::shared_ptr<const ServedModel>> served = models_.Resolve(choice);
  if (!served.ok()) return served.status();
  rank.served = *std::move(served);
  rank.reply.config_version = absl::StrCat(rank.served->calibration.config_version(), "/", rank.reply.config_version);
  job->batch_key = rank.served.get();
  return absl::OkStatus();
}

absl::Status EngineImpl::AdmitRequest(RankJob* job) {
  PreparedRank& rank = job->rank;
  RankQuery& query = rank.query;
  if (absl::Status status = gate_.CheckQuota(query.ns); !status.ok()) return status;
  if (query.cancel != nullptr && query.cancel->cancelled()) return absl::CancelledError("cancelled by the caller");
  if (query.deadline_us <= clock_->MonotonicMicros()) return DeadlinePassed();
  if (query.now_us == 0) query.now_us = clock_->WallMicros();
  rank.reply.config_version = AssignExperiments(job);
  if (absl::Status status = rank.parameters.SetAll(query.parameters, ParameterSource::kRequest); !status.ok()) {
    // A caller cannot tell a parameter from a field: an unknown one is a bad request, not a missing thing.
    return absl::InvalidArgumentError(absl::StrCat("parameters: ", std::string(status.message())));
  }
  return absl::OkStatus();
}

// Applies the layers in order and writes the exposures, before anything that an arm decided can shed the request.
// Returns the version of the experiment configuration.
std::string EngineImpl::AssignExperiments(RankJob* job) const {
  const RankQuery& query = job->rank.query;
  const Assignment assignment = options_.assigner->Assign(query.ns, query.scene, query.units, query.features);
  std::vector<Exposure> exposures;
  for (const LayerAssignment& layer : assignment.layers) {
    ParameterSet with_layer = job->rank.parameters;
    if (!with_layer.SetAll(layer.parameters, ParameterSource::kExperiment).ok()) {
      metrics_->GetCounter("backstory_experiment_layer_errors_total", "Layers skipped for an invalid parameter")->Add();
      continue;
    }
    job->rank.parameters = std::move(with_layer);
    exposures.insert(exposures.end(), layer.exposures.begin(), layer.exposures.end());
  }
  if (exposures.empty() || query.suppress_exposure || query.criticality == Criticality::kShadow) {
    return assignment.config_version;
  }
  if (options_.exposure_sink != nullptr) {
    ExposureRecord record;
    record.ns = query.ns;
    record.scene = query.scene;
    record.units = query.units;
    record.request_id = query.request_id;
    record.now_us = query.now_us;
    record.config_version = assignment.config_version;
    record.exposures = exposures;
    record.id = job->id;
    record.model = query.model.model;
    record.version =
        query.model.version.empty() ? job->rank.parameters.Text(job->version_parameter()) : query.model.version;
    options_.exposure_sink->Write(record);
    job->exposed = true;
  }
  job->rank.reply.exposures = std::move(exposures);
  return assignment.config_version;
}

void EngineImpl::FinishExposure(const RankJob& job, const absl::Status& status) const {
  if (!job.exposed) return;
  ExposureFinal final_record;
  final_record.id = job.id;
  final_record.status = absl::StatusCodeToString(status.code());
  if (job.rank.served != nullptr) {
    final_record.model = job.rank.served->name;
    final_record.version = job.rank.served->version;
  }
  final_record.parameters = job.rank.parameters.Report();
  final_record.degrade_step = job.rank.reply.degrade_step;
  options_.exposure_sink->Finish(final_record);
}

// Takes a slot and a place in the queue. On failure the job is still the caller's and holds nothing.
absl::Status EngineImpl::Enqueue(std::unique_ptr<RankJob>& job) {
  gate_.Observe(queue_.Waiting(), queue_.capacity());
  const absl::StatusOr<int64_t> in_flight = gate_.Enter(job->job_class, queue_.Ahead(job->job_class), job->deadline_us);
  if (!in_flight.ok()) return in_flight.status();
  job->in_flight = *in_flight;
  job->enqueued_us = clock_->MonotonicMicros();
  const uint64_t id = job->id;
  const JobClass job_class = job->job_class;
  const std::shared_ptr<CancelToken> cancel = job->rank.query.cancel;
  const auto take_back = [this, id] {
    if (std::unique_ptr<Job> waiting = queue_.Remove(id)) {
      FinishAny(std::move(waiting), absl::CancelledError("cancelled by the caller"));
    }
  };
  if (cancel != nullptr) cancel->SetHook(take_back);  // FinishRank takes it back
  std::unique_ptr<Job> entering = std::move(job);
  RequestQueue::PushResult pushed = queue_.Push(entering);
  if (pushed.displaced != nullptr) {
    FinishAny(std::move(pushed.displaced), gate_.QueueFull("displaced", queue_.capacity()));
  }
  if (!pushed.accepted) {
    job.reset(static_cast<RankJob*>(entering.release()));
    if (cancel != nullptr) cancel->SetHook(nullptr);
    gate_.Leave(job_class);
    return gate_.QueueFull("queue_full", queue_.capacity());
  }
  // A cancel between SetHook and Push found nothing to take back.
  if (cancel != nullptr && cancel->cancelled()) take_back();
  return absl::OkStatus();
}

bool EngineImpl::StartJob(std::unique_ptr<RankJob>& job) {
  PreparedRank& rank = job->rank;
  job->started_us = clock_->MonotonicMicros();
  rank.reply.timings.clear();  // of a first start, before it was put back
  if (rank.query.cancel != nullptr && rank.query.cancel->cancelled()) {
    FinishRank(std::move(job), absl::CancelledError("cancelled by the caller"));
    return false;
  }
  if (gate_.Hopeless(job->deadline_us)) {
    FinishRank(std::move(job), DeadlinePassed());
    return false;
  }
  const DegradeStep step = gate_.Observe(queue_.Waiting(), queue_.capacity());
  if (step >= DegradeStep::kShortHistory) {
    rank.parameters.Lower("history_rows", rank.parameters.Int("degrade_history_rows"));
  }
  rank.reply.degrade_step = static_cast<int>(step);
  rank.reply.parameters = rank.parameters.Report();
  rank.reply.timings.push_back({"queue", job->started_us - job->enqueued_us});
  if (job->started) return true;  // counted at its first start
  metrics_
      ->GetHistogram("backstory_stage_seconds", "Time of one request in one stage", LatencyBoundsSeconds(),
                     {{"stage", "queue"}})
      ->Observe(static_cast<double>(job->started_us - job->enqueued_us) * 1e-6);
  return true;
}

void EngineImpl::CountOutcome(const RankJob& job, const absl::Status& status, int64_t latency_us) {
  const std::string criticality = ClassName(job.job_class);
  metrics_
      ->GetCounter(absl::StrCat("backstory_", std::string(job.operation()), "_requests_total"),
                   "Requests that entered the queue, by outcome",
                   {{"criticality", criticality}, {"code", absl::StatusCodeToString(status.code())}})
      ->Add();
  metrics_
      ->GetHistogram(absl::StrCat("backstory_", std::string(job.operation()), "_seconds"), "Time from call to answer",
                     LatencyBoundsSeconds(), {{"criticality", criticality}})
      ->Observe(static_cast<double>(latency_us) * 1e-6);
  metrics_->GetGauge("backstory_queue_waiting", "Requests that wait")->Set(static_cast<double>(queue_.Waiting()));
  metrics_->GetGauge("backstory_concurrency_limit", "Adaptive limit of requests in flight")
      ->Set(static_cast<double>(gate_.limit()));
  metrics_->GetGauge("backstory_cache_bytes", "Memory of cached user states")->Set(static_cast<double>(cache_.bytes()));
}

void EngineImpl::FinishRank(std::unique_ptr<RankJob> job, absl::Status status) {
  PreparedRank& rank = job->rank;
  rank.pin.Release();
  if (rank.query.cancel != nullptr) {
    if (status.ok() && rank.query.cancel->cancelled()) status = absl::CancelledError("cancelled by the caller");
    rank.query.cancel->SetHook(nullptr);
  }
  const int64_t now_us = clock_->MonotonicMicros();
  if (status.ok()) {
    gate_.Sample(now_us - job->entered_us, now_us - job->started_us - job->lent_us, job->scored_with, job->in_flight);
  }
  CountOutcome(*job, status, now_us - job->entered_us);
  FinishExposure(*job, status);
  if (status.ok() && job->done && options_.recorder != nullptr &&
      InSample(rank.query, launch_.Real("request_log_fraction"))) {
    job->done(rank.reply);
    options_.recorder->Record(rank.query, rank.reply);
  } else {
    job->Answer(status);
  }
  gate_.Leave(job->job_class);
}

void EngineImpl::FinishPrefetch(std::unique_ptr<PrefetchJob> job, absl::StatusOr<std::vector<CacheReport>> result) {
  if (job->warmed) return job->warmed(std::move(result));
  if (!job->done) return;  // a refresh: nobody waits, and it holds no slot
  job->done(std::move(result));
  gate_.Leave(job->job_class);
}

void EngineImpl::FinishAny(std::unique_ptr<Job> job, absl::Status status) {
  if (dynamic_cast<RankJob*>(job.get()) != nullptr) {
    return FinishRank(std::unique_ptr<RankJob>(static_cast<RankJob*>(job.release())), std::move(status));
  }
  FinishPrefetch(std::unique_ptr<PrefetchJob>(static_cast<PrefetchJob*>(job.release())), std::move(status));
}

EngineStats EngineImpl::Stats() const {
  EngineStats stats;
  stats.queued = queue_.Waiting();
  stats.running = static_cast<uint64_t>(std::max<int64_t>(0, gate_.in_flight() - static_cast<int64_t>(stats.queued)));
  const UserStateCache::Stats cache = cache_.GetStats();
  stats.cached_users = cache.users;
  stats.cached_states = cache.states;
  stats.cached_bytes = cache.bytes;
  stats.cache_bytes_max = cache.bytes_max;
  stats.evictions = cache.evictions;
  const UserStateProvider::Totals& totals = states_.totals();
  stats.hits = totals.hit;
  stats.extends = totals.extend;
  stats.truncates = totals.truncate;
  stats.rebuilds = totals.rebuild;
  stats.uncached = totals.uncached;
  stats.refresh_dropped = refresh_dropped_;
  stats.degrade_step = static_cast<int>(gate_.step());
  stats.concurrency_limit = gate_.limit();
  stats.draining = gate_.draining();
  return stats;
}

absl::Status EngineImpl::Drain(int64_t timeout_us) {
  gate_.StartDrain();
  release_.Stop();
  if (gate_.WaitIdle(timeout_us)) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("drain: ", gate_.in_flight(), " requests are still in flight"));
}

}  // namespace backstory
