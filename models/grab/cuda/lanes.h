// The lanes of a model version on a card: who scores takes one for a launch. Private to model.cc.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_LANES_H_
#define BACKSTORY_MODELS_GRAB_CUDA_LANES_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "models/grab/cuda/network.h"
#include "models/grab/cuda/tokens.h"

namespace backstory::grab {

struct TwoLanes {
  std::unique_ptr<CudaLane> network;
  std::unique_ptr<CudaTokenLane> tokens;  // null: the CPU makes the token rows
};

// The lanes of a model; a caller has one to itself.
class Lanes {
 public:
  void Add(TwoLanes lane) { free_.push_back(std::move(lane)); }
  TwoLanes Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !free_.empty(); });
    auto lane = std::move(free_.back());
    free_.pop_back();
    return lane;
  }
  void Give(TwoLanes lane) {
    {
      std::lock_guard lock(mutex_);
      free_.push_back(std::move(lane));
    }
    changed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<TwoLanes> free_;  // guarded by mutex_
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_LANES_H_
