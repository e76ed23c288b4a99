#include "serving/engine/lane_queue.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace backstory {
namespace {

size_t CandidatesOf(const RankJob& job) { return job.rank.query.candidates.item_ids.size(); }

}  // namespace

bool LaneQueue::Put(std::unique_ptr<RankJob> job) {
  const void* model = job->rank.served.get();
  const int lanes = std::max(1, job->rank.served->model->lanes());
  std::unique_lock lock(mutex_);
  Waiting* waiting = &waiting_[model];
  const auto full = [&] { return waiting->jobs.size() >= requests_max_ || waiting->candidates >= candidates_max_; };
  while (waiting->lanes_used >= lanes && full()) {
    taken_.wait(lock);
    waiting = &waiting_[model];  // the last holder of a lane takes the entry away
  }
  waiting->candidates += CandidatesOf(*job);
  waiting->jobs.push_back(std::move(job));
  if (waiting->lanes_used >= lanes) return false;
  ++waiting->lanes_used;
  return true;
}

LaneQueue::Batch LaneQueue::Take(const void* model, int64_t now_us) {
  Batch batch;
  size_t candidates = 0;
  std::lock_guard lock(mutex_);
  const auto found = waiting_.find(model);
  assert(found != waiting_.end() && found->second.lanes_used > 0);
  auto& [jobs, waiting_candidates, lanes_used] = found->second;
  while (!jobs.empty() && batch.jobs.size() < requests_max_) {
    std::unique_ptr<RankJob>& next = jobs.front();
    const size_t more = CandidatesOf(*next);
    if (next->deadline_us <= now_us) {
      batch.expired.push_back(std::move(next));
    } else {
      candidates += more;
      if (!batch.jobs.empty() && candidates > candidates_max_) break;
      batch.jobs.push_back(std::move(next));
    }
    waiting_candidates -= more;
    jobs.pop_front();
  }
  if (batch.empty() && --lanes_used == 0) waiting_.erase(found);
  taken_.notify_all();
  return batch;
}

}  // namespace backstory
