#include "serving/engine/batcher.h"

#include <utility>

#include "serving/engine/shed.h"

namespace backstory {

namespace {

// Events whose state is built amid other work, in the time of a few steps of a long one.
constexpr size_t kQuickEvents = 2'048;

}  // namespace

void Batcher::Start(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

void Batcher::Join() { threads_.clear(); }

void Batcher::Work() {
  while (true) {
    RequestQueue::PopResult next = queue_->Pop([this] { return clock_->MonotonicMicros(); });
    Expire(std::move(next.expired));
    if (next.job != nullptr) Run(std::move(next.job));
    if (next.closed) return;
  }
}

bool Batcher::RunOne() {
  RequestQueue::PopResult next = queue_->TryPopAny(clock_->MonotonicMicros());
  const bool worked = next.job != nullptr || !next.expired.empty();
  Expire(std::move(next.expired));
  if (next.job != nullptr) Run(std::move(next.job));
  return worked;
}

void Batcher::Expire(std::vector<std::unique_ptr<Job>> jobs) {
  for (std::unique_ptr<Job>& job : jobs) hooks_.expired(std::move(job));
}

void Batcher::Run(std::unique_ptr<Job> job) {
  if (auto* prefetch = dynamic_cast<PrefetchJob*>(job.get()); prefetch != nullptr) {
    job.release();  // NOLINT(bugprone-unused-return-value): owned by the next line
    hooks_.prefetch(std::unique_ptr<PrefetchJob>(prefetch));
    return;
  }
  if (auto* recommend = dynamic_cast<RecommendJob*>(job.get()); recommend != nullptr) {
    job.release();  // NOLINT(bugprone-unused-return-value): owned by the next line
    hooks_.recommend(std::unique_ptr<RecommendJob>(recommend));
    return;
  }
  std::unique_ptr<RankJob> rank(static_cast<RankJob*>(job.release()));
  rank->rank.served->model->lanes() > 0 ? RunInLanes(std::move(rank)) : RunBatch(std::move(rank));
}

// Prepares a request, and scores what is prepared as long as this thread has a lane.
void Batcher::RunInLanes(std::unique_ptr<RankJob> job) {
  const std::shared_ptr<const ServedModel> served = job->rank.served;
  std::vector<std::unique_ptr<RankJob>> batch;
  if (!Add(std::move(job), &batch) || !prepared_.Put(std::move(batch.front()))) return;
  while (true) {
    LaneQueue::Batch next = prepared_.Take(served.get(), clock_->MonotonicMicros());
    if (next.empty()) return;
    for (std::unique_ptr<RankJob>& late : next.expired) hooks_.expired(std::move(late));
    if (!next.jobs.empty()) ScoreAndFinish(&next.jobs);
  }
}

void Batcher::RunBatch(std::unique_ptr<RankJob> first) {
  const void* key = first->batch_key;
  std::vector<std::unique_ptr<RankJob>> batch;
  size_t candidates = 0;
  size_t requests = 0;
  std::unique_ptr<RankJob> job = std::move(first);
  while (job != nullptr) {
    const size_t size = job->rank.query.candidates.item_ids.size();
    if (Add(std::move(job), &batch)) ++requests, candidates += size;
    job = nullptr;
    if (requests >= limits_.requests || candidates >= limits_.candidates) break;
    RequestQueue::PopResult next = queue_->TryPop(key, clock_->MonotonicMicros());
    Expire(std::move(next.expired));
    job.reset(static_cast<RankJob*>(next.job.release()));
  }
  ScoreAndFinish(&batch);
}

void Batcher::ServeReady() {
  std::vector<std::unique_ptr<Job>> put_off;
  for (size_t i = 0; i < limits_.requests; ++i) {
    RequestQueue::PopResult next = queue_->TryPopReady(clock_->MonotonicMicros());
    Expire(std::move(next.expired));
    if (next.job == nullptr) break;
    std::unique_ptr<RankJob> job(static_cast<RankJob*>(next.job.release()));
    if (!hooks_.start(job)) continue;
    absl::StatusOr<Ranker::Prepared> prepared = ranker_->PrepareQuickly(&job->rank, kQuickEvents);
    if (!prepared.ok()) {
      hooks_.finish(std::move(job), prepared.status());
    } else if (*prepared != Ranker::Prepared::kReady) {
      job->is_long = *prepared == Ranker::Prepared::kLong;
      put_off.push_back(std::move(job));
    } else {
      std::vector<std::unique_ptr<RankJob>> batch;
      batch.push_back(std::move(job));
      ScoreAndFinish(&batch);
    }
  }
  for (auto job = put_off.rbegin(); job != put_off.rend(); ++job) {
    if (queue_->PutBack(*job)) continue;
    hooks_.finish(std::unique_ptr<RankJob>(static_cast<RankJob*>(job->release())),
                  ShedStatus("server is shutting down", 1000));
  }
}

// Prepares a job and puts it into the batch. If that would mean waiting, the batch is scored first.
bool Batcher::Add(std::unique_ptr<RankJob> job, std::vector<std::unique_ptr<RankJob>>* batch) {
  if (!hooks_.start(job)) return false;
  const BetweenSteps between = [this, &job] {
    const int64_t start_us = clock_->MonotonicMicros();
    ServeReady();
    job->lent_us += clock_->MonotonicMicros() - start_us;
  };
  absl::StatusOr<Ranker::Prepared> prepared = ranker_->Prepare(&job->rank, /*may_wait=*/batch->empty(), between);
  if (prepared.ok() && *prepared != Ranker::Prepared::kReady) {
    ScoreAndFinish(batch);
    prepared = ranker_->Prepare(&job->rank, /*may_wait=*/true, between);
  }
  if (!prepared.ok()) {
    hooks_.finish(std::move(job), prepared.status());
    return false;
  }
  batch->push_back(std::move(job));
  return true;
}

void Batcher::ScoreAndFinish(std::vector<std::unique_ptr<RankJob>>* batch) {
  std::vector<PreparedRank*> ranks;
  for (const auto& job : *batch) ranks.push_back(&job->rank);
  const absl::Status status = ranker_->Score(ranks);
  for (std::unique_ptr<RankJob>& job : *batch) {
    job->scored_with = static_cast<int64_t>(batch->size());
    const absl::Status own = status.ok() ? job->rank.status : status;
    hooks_.finish(std::move(job), own);
  }
  batch->clear();
}

}  // namespace backstory
