// A fixed pool for calls that block (an append waits for its fsync): gRPC's own threads are few and must not wait.
#ifndef BACKSTORY_SERVING_RPC_EXECUTOR_H_
#define BACKSTORY_SERVING_RPC_EXECUTOR_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace backstory::rpc {

// Thread-safe. Tasks start in the order submitted. The destructor runs what was accepted, then joins.
class Executor {
 public:
  // `queue_max` bounds tasks that wait for a thread.
  Executor(size_t threads, size_t queue_max);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False: the queue is full, the task was not taken.
  bool Submit(std::function<void()> task);

 private:
  void Work();

  const size_t queue_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;  // guarded by mutex_
  bool stop_ = false;                        // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_EXECUTOR_H_
