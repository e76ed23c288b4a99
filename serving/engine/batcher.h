// Worker threads: take jobs from the queue in order, prepare them, and score what shares a model version in one call.
#ifndef BACKSTORY_SERVING_ENGINE_BATCHER_H_
#define BACKSTORY_SERVING_ENGINE_BATCHER_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "serving/engine/jobs.h"
#include "serving/engine/lane_queue.h"
#include "serving/engine/ranker.h"
#include "serving/engine/request_queue.h"

namespace backstory {

struct BatchLimits {
  size_t requests = 8;      // per call of the model
  size_t candidates = 512;  // a batch takes no further request from here on
  // The same of a model that has lanes (grab::Model::lanes); here a batch never has more.
  size_t lane_requests = 64;
  size_t lane_candidates = 8192;
};

// A worker waits for a user's state only while it holds none itself: what it has prepared is scored first. So no two
// workers wait for each other, and a cold user delays nobody who is ready: building a long state is interrupted for
// them.
class Batcher {
 public:
  struct Hooks {
    // Right before a job is prepared; may lower its parameters. False: it is dead (expired, cancelled) and was
    // answered.
    std::function<bool(std::unique_ptr<RankJob>&)> start;
    // Answers a job, exactly once.
    std::function<void(std::unique_ptr<RankJob>, absl::Status)> finish;
    std::function<void(std::unique_ptr<PrefetchJob>)> prefetch;
    std::function<void(std::unique_ptr<RecommendJob>)> recommend;
    std::function<void(std::unique_ptr<Job>)> expired;
  };
  Batcher(RequestQueue* queue, const Ranker* ranker, const Clock* clock, BatchLimits limits, Hooks hooks)
      : queue_(queue),
        ranker_(ranker),
        clock_(clock),
        limits_(limits),
        hooks_(std::move(hooks)),
        prepared_(limits.lane_requests, limits.lane_candidates) {}
  ~Batcher() { Join(); }

  void Start(int threads);
  // Returns once all workers have ended, which they do when the queue is closed.
  void Join();
  // For a worker between two steps of long work: scores up to a batch of waiting ONLINE requests whose state is at hand
  // or soon built (2,048 events), one by one, not in batches. Those with more to build go back to the queue for a
  // worker that may wait, those whose state is in use for the next pause. Never waits.
  void ServeReady();
  // One job (and what joins its batch) on the calling thread; false if nothing waits. For tests without workers.
  bool RunOne();

 private:
  void Work();
  void Run(std::unique_ptr<Job> job);
  void RunBatch(std::unique_ptr<RankJob> first);
  void RunInLanes(std::unique_ptr<RankJob> job);
  void Expire(std::vector<std::unique_ptr<Job>> jobs);
  bool Add(std::unique_ptr<RankJob> job, std::vector<std::unique_ptr<RankJob>>* batch);
  void ScoreAndFinish(std::vector<std::unique_ptr<RankJob>>* batch);

  RequestQueue* const queue_;
  const Ranker* const ranker_;
  const Clock* const clock_;
  const BatchLimits limits_;
  const Hooks hooks_;
  LaneQueue prepared_;
  std::vector<std::jthread> threads_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_BATCHER_H_
