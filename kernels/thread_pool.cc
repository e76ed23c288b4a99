#include "kernels/thread_pool.h"

#include <algorithm>
#include <atomic>

namespace backstory {

// `fn` belongs to the caller, which stays until `done` == n, so no thread touches it later: a thread that finds no
// index left does not call it.
struct ThreadPool::Loop {
  Loop(size_t n, const std::function<void(size_t)>* fn) : n(n), fn(fn) {}

  // Runs indices until none is left to start; true if it ran the last one to finish.
  bool Run() {
    size_t ran = 0;
    for (size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
      (*fn)(i);
      ++ran;
    }
    return ran > 0 && done.fetch_add(ran) + ran == n;
  }

  const size_t n;
  const std::function<void(size_t)>* const fn;
  std::atomic<size_t> next{0};
  std::atomic<size_t> done{0};
};

ThreadPool::ThreadPool(size_t threads) {
  for (size_t i = 1; i < threads; ++i) {
    workers_.emplace_back([this](std::stop_token stop) { Work(stop); });
  }
}

ThreadPool::~ThreadPool() {
  for (std::jthread& worker : workers_) worker.request_stop();
  wake_.notify_all();
}

void ThreadPool::Work(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  while (wake_.wait(lock, stop, [this] { return !loops_.empty(); })) {
    const std::shared_ptr<Loop> loop = loops_.front();
    lock.unlock();
    if (loop->Run()) loop->done.notify_all();
    lock.lock();
    const auto it = std::find(loops_.begin(), loops_.end(), loop);
    if (it != loops_.end()) loops_.erase(it);
  }
}

void ThreadPool::ParallelFor(size_t n, const std::function<void(size_t)>& fn) {
  if (n <= 1 || workers_.empty()) {
    for (size_t i = 0; i < n; ++i) fn(i);
    return;
  }
  const auto loop = std::make_shared<Loop>(n, &fn);
  {
    std::lock_guard lock(mutex_);
    loops_.push_back(loop);
  }
  // A short loop wakes no more threads than it can use: each takes the caller a while.
  if (n > workers_.size()) {
    wake_.notify_all();
  } else {
    for (size_t i = 1; i < n; ++i) wake_.notify_one();
  }
  loop->Run();
  {
    std::lock_guard lock(mutex_);
    const auto it = std::find(loops_.begin(), loops_.end(), loop);
    if (it != loops_.end()) loops_.erase(it);
  }
  for (size_t done = loop->done.load(); done != n; done = loop->done.load()) loop->done.wait(done);
}

}  // namespace backstory
