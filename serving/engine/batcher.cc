#include "serving/engine/batcher.h"

#include <utility>

namespace backstory {

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
  RunBatch(std::unique_ptr<RankJob>(static_cast<RankJob*>(job.release())));
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

// Prepares a job and puts it into the batch. If that would mean waiting, the batch is scored first.
bool Batcher::Add(std::unique_ptr<RankJob> job, std::vector<std::unique_ptr<RankJob>>* batch) {
  if (!hooks_.start(job)) return false;
  absl::StatusOr<Ranker::Prepared> prepared = ranker_->Prepare(&job->rank, /*may_wait=*/batch->empty());
  if (prepared.ok() && *prepared == Ranker::Prepared::kBusy) {
    ScoreAndFinish(batch);
    prepared = ranker_->Prepare(&job->rank, /*may_wait=*/true);
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
