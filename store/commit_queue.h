// Group commit: one thread carries out the changes of many callers and makes them durable with one fsync.
#ifndef BACKSTORY_STORE_COMMIT_QUEUE_H_
#define BACKSTORY_STORE_COMMIT_QUEUE_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"

namespace backstory {

// What the queue drives. Called on the commit thread only.
class Committer {
 public:
  virtual ~Committer() = default;
  // Makes what the changes since the last call have prepared visible, and durable if `sync`. After an error nothing of
  // the group counts as acknowledged, and the committer has forgotten whatever it assumed of it.
  virtual absl::Status Commit(bool sync) = 0;
};

// Thread-safe. While one group is being synced the next one gathers, so throughput grows with the number of callers.
class CommitQueue {
 public:
  // A change prepares its writes on the commit thread. Its error is its caller's alone: it must then have prepared
  // nothing.
  using Change = std::function<absl::Status()>;

  explicit CommitQueue(Committer* committer);
  ~CommitQueue();  // carries out what is queued
  CommitQueue(const CommitQueue&) = delete;
  CommitQueue& operator=(const CommitQueue&) = delete;

  // Waits until the change is committed. `weight` (events) bounds the size of a group.
  absl::Status Run(const Change& change, bool sync, size_t weight);

 private:
  struct Waiting {
    const Change* change;
    bool sync;
    size_t weight;
    bool done = false;
    absl::Status status;
    std::condition_variable wake;
  };
  void Loop();

  Committer* const committer_;
  std::mutex mutex_;  // guards what follows, and done/status of what is queued
  std::condition_variable work_;
  std::deque<Waiting*> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace backstory

#endif  // BACKSTORY_STORE_COMMIT_QUEUE_H_
