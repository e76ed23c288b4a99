// Time as the engine sees it: injected, so that tests move it by hand and timeouts never follow the wall clock.
#ifndef BACKSTORY_SERVING_ENGINE_CLOCK_H_
#define BACKSTORY_SERVING_ENGINE_CLOCK_H_

#include <atomic>
#include <cstdint>

namespace backstory {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Microseconds since the Unix epoch; may jump either way. Used for event times and ingest times only.
  virtual int64_t WallMicros() const = 0;
  // Microseconds since some fixed point; never runs back. Used for deadlines, queues, quotas and stage timings.
  virtual int64_t MonotonicMicros() const = 0;
};

// The machine's clock; lives for the whole process.
Clock* SystemClock();

// Moves only when told to.
class ManualClock : public Clock {
 public:
  explicit ManualClock(int64_t wall_us = 0, int64_t monotonic_us = 0)
      : wall_us_(wall_us), monotonic_us_(monotonic_us) {}
  int64_t WallMicros() const override { return wall_us_.load(std::memory_order_relaxed); }
  int64_t MonotonicMicros() const override { return monotonic_us_.load(std::memory_order_relaxed); }
  void SetWall(int64_t us) { wall_us_.store(us, std::memory_order_relaxed); }
  // Advances both.
  void Advance(int64_t us) {
    wall_us_.fetch_add(us, std::memory_order_relaxed);
    monotonic_us_.fetch_add(us, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> wall_us_;
  std::atomic<int64_t> monotonic_us_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_CLOCK_H_
