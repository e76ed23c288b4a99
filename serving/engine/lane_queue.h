// Prepared requests of models that score a few batches at a time (those on a card). Whoever prepared a request scores
// it at once if a lane is free; else it waits for the next pass, which takes along all that wait. So nobody waits for a
// batch to fill, and batches grow with the load.
#ifndef BACKSTORY_SERVING_ENGINE_LANE_QUEUE_H_
#define BACKSTORY_SERVING_ENGINE_LANE_QUEUE_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "serving/engine/jobs.h"

namespace backstory {

// Thread-safe. A request that waits here pins its user's state; nobody who takes one may wait for a state.
class LaneQueue {
 public:
  // Of one pass; a single request may have more candidates.
  LaneQueue(size_t requests_max, size_t candidates_max)
      : requests_max_(requests_max), candidates_max_(candidates_max) {}

  // Takes a prepared job over. True: a lane of its model is the caller's, who calls Take, scores, and so on until Take
  // gives nothing. False: others will score it. Waits while a full pass waits already: to prepare more would only pin
  // more states, and take requests out of the queue that may shed them.
  bool Put(std::unique_ptr<RankJob> job);

  struct Batch {
    std::vector<std::unique_ptr<RankJob>> jobs;     // of one model version, oldest first
    std::vector<std::unique_ptr<RankJob>> expired;  // their deadline has passed
    bool empty() const { return jobs.empty() && expired.empty(); }
  };
  // For the holder of a lane. Empty: nothing waits, and the lane is given back. `model`: the served version.
  Batch Take(const void* model, int64_t now_us);

 private:
  struct Waiting {
    std::deque<std::unique_ptr<RankJob>> jobs;
    size_t candidates = 0;  // of them all
    int lanes_used = 0;
  };

  const size_t requests_max_;
  const size_t candidates_max_;
  std::mutex mutex_;
  std::condition_variable taken_;
  std::map<const void*, Waiting> waiting_;  // guarded by mutex_; by served version, none without a lane in use
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_LANE_QUEUE_H_
