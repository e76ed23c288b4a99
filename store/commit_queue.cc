#include "store/commit_queue.h"

#include <vector>

namespace backstory {
namespace {
constexpr size_t kGroupWeightMax = 65'536;  // bounds the wait of the first caller and the memory of a group
}  // namespace

CommitQueue::CommitQueue(Committer* committer) : committer_(committer), thread_([this] { Loop(); }) {}

CommitQueue::~CommitQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

absl::Status CommitQueue::Run(const Change& change, bool sync, size_t weight) {
  Waiting waiting{.change = &change, .sync = sync, .weight = weight};
  std::unique_lock<std::mutex> lock(mutex_);
  queue_.push_back(&waiting);
  work_.notify_one();
  waiting.wake.wait(lock, [&waiting] { return waiting.done; });
  return waiting.status;
}

void CommitQueue::Loop() {
  std::vector<Waiting*> group;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    group.clear();
    for (size_t weight = 0; !queue_.empty() && (group.empty() || weight + queue_.front()->weight <= kGroupWeightMax);) {
      weight += queue_.front()->weight;
      group.push_back(queue_.front());
      queue_.pop_front();
    }
    lock.unlock();
    bool sync = false;
    for (Waiting* waiting : group) {
      waiting->status = (*waiting->change)();
      sync |= waiting->sync;
    }
    const absl::Status committed = committer_->Commit(sync);
    lock.lock();
    for (Waiting* waiting : group) {
      if (waiting->status.ok()) waiting->status = committed;
      waiting->done = true;
      waiting->wake.notify_one();
    }
  }
}

}  // namespace backstory
