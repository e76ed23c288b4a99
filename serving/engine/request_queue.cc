#include "serving/engine/request_queue.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace backstory {

std::optional<JobClass> VictimClass(const std::array<size_t, kJobClasses>& waiting, JobClass wanted) {
  for (int c = static_cast<int>(JobClass::kShadow); c > static_cast<int>(wanted); --c) {
    if (waiting[c] > 0) return static_cast<JobClass>(c);
  }
  return std::nullopt;
}

bool NewestFirst(size_t waiting, size_t capacity) { return waiting * 2 > capacity; }

RequestQueue::PushResult RequestQueue::Push(std::unique_ptr<Job>& job) {
  assert(job != nullptr && job->id != 0);
  PushResult result;
  std::unique_lock lock(mutex_);
  if (closed_) return result;
  const JobClass job_class = job->job_class;
  if (job_class == JobClass::kRefresh) {
    if (queues_[static_cast<int>(job_class)].size() >= refresh_capacity_) return result;
  } else if (WaitingLocked() >= capacity_) {
    std::array<size_t, kJobClasses> waiting;
    for (int c = 0; c < kJobClasses; ++c) waiting[c] = queues_[c].size();
    const std::optional<JobClass> victim = VictimClass(waiting, job_class);
    if (!victim.has_value()) return result;
    result.displaced = Take(&queues_[static_cast<int>(*victim)], /*newest=*/true);
  }
  queues_[static_cast<int>(job_class)].push_back(std::move(job));
  ++total_;
  result.accepted = true;
  lock.unlock();  // who wakes up would only wait for it
  ready_.notify_one();
  return result;
}

std::deque<std::unique_ptr<Job>>* RequestQueue::NextClass() {
  const auto it = std::find_if(queues_.begin(), queues_.end(), [](const auto& queue) { return !queue.empty(); });
  return it == queues_.end() ? nullptr : &*it;
}

std::unique_ptr<Job> RequestQueue::Take(std::deque<std::unique_ptr<Job>>* queue, bool newest) {
  std::unique_ptr<Job> job = std::move(newest ? queue->back() : queue->front());
  newest ? queue->pop_back() : queue->pop_front();
  --total_;
  return job;
}

RequestQueue::PopResult RequestQueue::PopLocked(int64_t now_us) {
  PopResult result;
  result.closed = closed_;
  while (auto* queue = NextClass()) {
    std::unique_ptr<Job> job = Take(queue, NewestFirst(WaitingLocked(), capacity_));
    if (job->deadline_us > now_us) {
      result.job = std::move(job);
      break;
    }
    result.expired.push_back(std::move(job));
  }
  return result;
}

RequestQueue::PopResult RequestQueue::TryPop(const void* key, int64_t now_us) {
  PopResult result;
  std::lock_guard lock(mutex_);
  while (auto* queue = NextClass()) {
    const bool newest = NewestFirst(WaitingLocked(), capacity_);
    Job& next = newest ? *queue->back() : *queue->front();
    if (next.deadline_us <= now_us) {
      result.expired.push_back(Take(queue, newest));
      continue;
    }
    if (next.batch_key == nullptr || next.batch_key != key) break;
    result.job = Take(queue, newest);
    break;
  }
  return result;
}

RequestQueue::PopResult RequestQueue::TryPopAny(int64_t now_us) {
  std::lock_guard lock(mutex_);
  return PopLocked(now_us);
}

RequestQueue::PopResult RequestQueue::TryPopReady(int64_t now_us) {
  PopResult result;
  std::lock_guard lock(mutex_);
  result.closed = closed_;
  auto& online = queues_[static_cast<int>(JobClass::kOnline)];
  for (auto it = online.begin(); it != online.end();) {
    if ((*it)->is_long || (*it)->batch_key == nullptr) {
      ++it;
      continue;
    }
    std::unique_ptr<Job> job = std::move(*it);
    it = online.erase(it);
    --total_;
    if (job->deadline_us > now_us) {
      result.job = std::move(job);
      break;
    }
    result.expired.push_back(std::move(job));
  }
  return result;
}

bool RequestQueue::PutBack(std::unique_ptr<Job>& job) {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  job->started = true;
  auto& queue = queues_[static_cast<int>(job->job_class)];
  queue.push_front(std::move(job));
  ++total_;
  ready_.notify_one();
  return true;
}

std::unique_ptr<Job> RequestQueue::Remove(uint64_t id) {
  std::lock_guard lock(mutex_);
  for (auto& queue : queues_) {
    const auto it = std::find_if(queue.begin(), queue.end(), [id](const auto& job) { return job->id == id; });
    if (it == queue.end()) continue;
    std::unique_ptr<Job> job = std::move(*it);
    queue.erase(it);
    --total_;
    return job;
  }
  return nullptr;
}

std::vector<std::unique_ptr<Job>> RequestQueue::Close() {
  std::vector<std::unique_ptr<Job>> left;
  std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& queue : queues_) {
    for (auto& job : queue) left.push_back(std::move(job));
    queue.clear();
  }
  total_ = 0;
  ready_.notify_all();
  return left;
}

size_t RequestQueue::Waiting() const {
  std::lock_guard lock(mutex_);
  return WaitingLocked();
}

size_t RequestQueue::Ahead(JobClass job_class) const {
  std::lock_guard lock(mutex_);
  size_t ahead = 0;
  for (int c = 0; c <= static_cast<int>(job_class); ++c) ahead += queues_[c].size();
  return ahead;
}

size_t RequestQueue::WaitingRefreshes() const {
  std::lock_guard lock(mutex_);
  return queues_[static_cast<int>(JobClass::kRefresh)].size();
}

}  // namespace backstory
