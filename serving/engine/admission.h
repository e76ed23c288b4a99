// Who may enter, and how good an answer they get. Pure policies: a snapshot in, a decision out; the engine acts on
// them.
#ifndef BACKSTORY_SERVING_ENGINE_ADMISSION_H_
#define BACKSTORY_SERVING_ENGINE_ADMISSION_H_

#include <cstddef>
#include <cstdint>

namespace backstory {

// A quota: `rate` tokens a second up to `burst`. Not thread-safe. Never unlimited: use no bucket for that.
class TokenBucket {
 public:
  TokenBucket(double rate_per_s, double burst, int64_t now_us);
  // Takes one token, or returns false and leaves the bucket as it was. `now_us` monotonic.
  bool Take(int64_t now_us);
  // Milliseconds until one token is there; 0 if one is.
  int64_t WaitMs(int64_t now_us) const;

 private:
  double Filled(int64_t now_us) const;
  double rate_per_s_;
  double burst_;
  double tokens_;
  int64_t filled_us_;
};

// Adaptive limit of requests in flight, after Netflix's gradient limits: latency beyond a few service times is
// queueing, and the limit shrinks by that ratio, plus headroom of sqrt(limit). Service time is measured, not guessed
// from the lowest latency, so neither a mix of cheap and dear requests nor a long overload misleads it. Not
// thread-safe.
class GradientLimit {
 public:
  static constexpr double kTolerance = 3;    // latency up to this many service times is no queueing
  static constexpr double kSmoothing = 0.2;  // weight of a new limit
  static constexpr double kAverage = 0.1;    // weight of a new latency and service time
  GradientLimit(int64_t min, int64_t max);
  // One answered request: its whole latency, the part of it that a worker spent, and how many were in flight when it
  // entered. Samples taken while less than half of the limit was used say nothing about it.
  void Sample(int64_t latency_us, int64_t service_us, int64_t in_flight);
  int64_t limit() const { return static_cast<int64_t>(limit_); }

 private:
  double min_, max_, limit_;
  double latency_us_ = 0;
  double service_us_ = 0;
};

// What pressure looks like.
struct Pressure {
  double queue_fill = 0;  // waiting, as a fraction of what may wait
};

// The ladder: each step includes the ones before it.
enum class DegradeStep : int { kNone = 0, kShortHistory = 1, kShedBatch = 2 };
struct DegradeThresholds {
  double short_history = 0.5;  // queue fill
  double shed_batch = 0.75;    // queue fill
};
// Climbs at once; comes down one step at a time, once the fill is below half of the step's threshold.
DegradeStep NextDegradeStep(DegradeStep now, const Pressure& pressure, const DegradeThresholds& thresholds);

// Whether work of a deadline is worth starting: not if it has passed, nor if even the fastest recent service would miss
// it.
bool CannotFinish(int64_t now_us, int64_t deadline_us, int64_t fastest_service_us);

// Whether a request would wait for more than `fraction` of the time until its deadline: `ahead` requests of which each
// keeps one of `threads` workers for `cost_us`. Without a deadline (INT64_MAX) never.
bool WaitsTooLong(int64_t now_us, int64_t deadline_us, size_t ahead, double cost_us, int threads, double fraction);

// When a shed client should come back: the time the present queue takes to drain, 10 ms .. 10 s.
int64_t PushbackMs(size_t waiting, int64_t mean_service_us, int threads);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_ADMISSION_H_
