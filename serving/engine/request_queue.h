// The bounded, deadline-aware queue between callers and workers. ONLINE goes before prefetches, those before BATCH,
// then SHADOW, then refreshes. Thread-safe; holds jobs, never runs them.
#ifndef BACKSTORY_SERVING_ENGINE_REQUEST_QUEUE_H_
#define BACKSTORY_SERVING_ENGINE_REQUEST_QUEUE_H_

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace backstory {

// Served in this order.
enum class JobClass : int { kOnline = 0, kPrefetch = 1, kBatch = 2, kShadow = 3, kRefresh = 4 };
inline constexpr int kJobClasses = 5;

// A unit of work. Whoever takes it out of the queue owns it and finishes it.
class Job {
 public:
  virtual ~Job() = default;
  uint64_t id = 0;  // unique, not 0
  JobClass job_class = JobClass::kOnline;
  int64_t deadline_us = INT64_MAX;  // monotonic
  int64_t enqueued_us = 0;          // monotonic
  bool started = false;             // a worker had it, and put it back
  bool is_long = false;             // and found that it starts with long work
  const void* batch_key = nullptr;  // equal keys may share a batch; null: never
};

// Which class gives up its newest job so that one of `wanted` may enter a full queue: the least important one that is
// strictly less important, or none. `waiting`: jobs per class.
std::optional<JobClass> VictimClass(const std::array<size_t, kJobClasses>& waiting, JobClass wanted);

// Whether to serve the newest waiting job of a class first: under pressure (over half of the queue used) old jobs are
// the likeliest to miss their deadline anyway, and serving newest first keeps some of them in time.
bool NewestFirst(size_t waiting, size_t capacity);

class RequestQueue {
 public:
  // `capacity` bounds all classes but refreshes, `refresh_capacity` those.
  RequestQueue(size_t capacity, size_t refresh_capacity) : capacity_(capacity), refresh_capacity_(refresh_capacity) {}

  struct PushResult {
    bool accepted = false;           // else the job was left where it is
    std::unique_ptr<Job> displaced;  // a less important job that had to leave; the caller answers it
  };
  PushResult Push(std::unique_ptr<Job>& job);

  struct PopResult {
    std::unique_ptr<Job> job;                   // null: closed, nothing fits, or everything had expired
    std::vector<std::unique_ptr<Job>> expired;  // their deadline had passed; no compute is spent on them
    bool closed = false;
  };
  // Waits for a job. `now_us` gives the monotonic time.
  template <typename NowFn>
  PopResult Pop(const NowFn& now_us) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return closed_ || total_ > 0; });
    return PopLocked(now_us());
  }
  // The next job in order if its batch_key is `key`, without waiting.
  PopResult TryPop(const void* key, int64_t now_us);
  // Whatever is next, without waiting.
  PopResult TryPopAny(int64_t now_us);
  // The next ONLINE job that shares batches (it has a batch_key) and is not known to be long, without waiting. Others
  // may need a second user state while their worker still builds one. Oldest first, also where Pop takes the newest.
  PopResult TryPopReady(int64_t now_us);
  // A job that was taken but cannot run yet: it is the next of its class. False if the queue is closed; the caller then
  // answers it.
  bool PutBack(std::unique_ptr<Job>& job);

  // Takes one job back (a cancelled request); null if it is not here any more.
  std::unique_ptr<Job> Remove(uint64_t id);
  // Wakes all waiters for good and hands back what still waits.
  std::vector<std::unique_ptr<Job>> Close();

  size_t Waiting() const;  // without refreshes
  // Those that are served before a new job of `job_class`, the waiting ones of its class included.
  size_t Ahead(JobClass job_class) const;
  size_t WaitingRefreshes() const;
  size_t capacity() const { return capacity_; }

 private:
  PopResult PopLocked(int64_t now_us);
  std::deque<std::unique_ptr<Job>>* NextClass();
  std::unique_ptr<Job> Take(std::deque<std::unique_ptr<Job>>* queue, bool newest);
  size_t WaitingLocked() const { return total_ - queues_[static_cast<int>(JobClass::kRefresh)].size(); }

  const size_t capacity_;
  const size_t refresh_capacity_;
  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::array<std::deque<std::unique_ptr<Job>>, kJobClasses> queues_;  // guarded by mutex_
  size_t total_ = 0;                                                  // guarded by mutex_
  bool closed_ = false;                                               // guarded by mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_REQUEST_QUEUE_H_
