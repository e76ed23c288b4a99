// Warms a version before a label moves to it: the states of the users who were hottest under the label's present
// version are built for the new one, at a bounded rate, behind all requests. Without it a release makes every user's
// next request build a whole history.
#ifndef BACKSTORY_SERVING_ENGINE_RELEASE_WARM_UP_H_
#define BACKSTORY_SERVING_ENGINE_RELEASE_WARM_UP_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "serving/engine/clock.h"
#include "serving/engine/metrics.h"
#include "serving/engine/served_model.h"
#include "serving/engine/user_state_cache.h"

namespace backstory {

// Which users to warm. Pure.
struct WarmUpPlan {
  double share = 1;  // of the present version's heat that belongs to users who are warm already; 1 if there is none
  std::vector<UserKey> users;  // to warm until the share is `share_wanted`, hottest first
};
// `present`: users with a state of the present version, any order. `warm`: users with a state of the next one. `tried`:
// users whose state could not be built; they count as cold and are not planned again. The plan stops before the
// planned users' present states exceed `bytes_max`.
WarmUpPlan PlanWarmUp(std::vector<UserStateCache::UserHeat> present, const std::set<UserKey>& warm,
                      const std::set<UserKey>& tried, double share_wanted, size_t bytes_max);

struct WarmUpOptions {
  double share = 0.9;          // of the present version's heat, 0..1; 0: labels move at once
  double rows_per_s = 20'000;  // K/V rows computed, every channel's
  int64_t time_max_us = 60'000'000;
  // Of the next version's states, once somebody waits for them: what they take, users of other versions may lose.
  // Before that they take only what is free of the cache: not every version that is loaded gets a label.
  size_t bytes_max = 0;
  size_t cache_bytes = 0;  // the cache's budget
};

struct WarmUpResult {
  double share = 1;  // reached
  // "at_once" (share 0 wanted), "warm" (share reached), "time" (limit passed), "room" (states of the next version take
  // bytes_max, or no further user's could be built), "stopped" (unloaded, or shutdown).
  std::string reason = "warm";
};

// One thread, one version at a time. Thread-safe.
class ReleaseWarmUp {
 public:
  // Brings a user's state of a version up to date behind all requests and waits; how many rows it computed.
  // RESOURCE_EXHAUSTED: there was no place in the queue, try again.
  using Build = std::function<absl::StatusOr<uint64_t>(const UserKey&, const std::shared_ptr<const ServedModel>&)>;
  ReleaseWarmUp(WarmUpOptions options, UserStateCache* cache, const Clock* clock, Metrics* metrics, Build build);
  ~ReleaseWarmUp();

  // Begins in the background. The keys are those of the versions' states (UserStateCache).
  void Start(std::shared_ptr<const ServedModel> next, std::string next_key, std::string present_key);
  // Begins, or joins what has begun, and waits until it ends; returns at once if the share is reached.
  WarmUpResult Wait(std::shared_ptr<const ServedModel> next, std::string next_key, std::string present_key);
  // A version that is no more: whoever waits for it is answered.
  void Forget(const ServedModel& unloaded);
  // Nothing is begun from here on. What runs ends after the user at hand; Join waits for that.
  void Stop();
  void Join();

 private:
  struct Task {
    std::shared_ptr<const ServedModel> next;
    std::string next_key, present_key;
    int64_t deadline_us = 0;
    std::atomic<bool> cancelled{false};
    std::atomic<bool> awaited{false};   // somebody waits
    std::atomic<bool> had_room{false};  // and the last plan knew it
    bool done = false;                  // guarded by mutex_
    WarmUpResult result;                // guarded by mutex_ until done
  };
  std::shared_ptr<Task> Enqueue(std::shared_ptr<const ServedModel> next, std::string next_key, std::string present_key,
                                bool first);
  void Work();
  WarmUpResult Run(Task* task);
  // Whether to end, and why. `pause_us`: waits so long first.
  bool Over(const Task& task, int64_t pause_us, WarmUpResult* result);
  WarmUpPlan Plan(const Task& task, const std::set<UserKey>& tried) const;

  const WarmUpOptions options_;
  UserStateCache* const cache_;
  const Clock* const clock_;
  const Build build_;
  Gauge* const share_metric_;
  Counter *const users_built_, *const users_failed_, *const rows_;
  Metrics* const metrics_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> tasks_;  // guarded by mutex_; the first one runs
  bool stopped_ = false;                     // guarded by mutex_
  std::thread thread_;                       // guarded by mutex_: started by the first task
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RELEASE_WARM_UP_H_
