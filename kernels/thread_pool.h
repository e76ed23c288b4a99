// A fixed set of threads that share loops. Results never depend on it: work items are independent and their arithmetic
// does not know which thread runs them.
#ifndef BACKSTORY_KERNELS_THREAD_POOL_H_
#define BACKSTORY_KERNELS_THREAD_POOL_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace backstory {

// Thread-safe: several callers may run loops at once; each works on its own loop and idle threads help any of them.
class ThreadPool {
 public:
  // `threads` counts the caller: ThreadPool(1) starts none and runs everything in the calling thread.
  explicit ThreadPool(size_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t threads() const { return workers_.size() + 1; }

  // Calls fn(0) .. fn(n - 1), each once, in any order and thread, and returns when all have returned. Indices are
  // started in ascending order. fn must not throw; it may call ParallelFor again.
  void ParallelFor(size_t n, const std::function<void(size_t)>& fn);

 private:
  struct Loop;
  void Work(std::stop_token stop);

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<std::shared_ptr<Loop>> loops_;  // guarded by mutex_; loops that may still have indices to start
  std::vector<std::jthread> workers_;
};

// A null pool runs in the calling thread.
inline void ParallelFor(ThreadPool* pool, size_t n, const std::function<void(size_t)>& fn) {
  if (pool != nullptr) return pool->ParallelFor(n, fn);
  for (size_t i = 0; i < n; ++i) fn(i);
}

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_THREAD_POOL_H_
