#include "serving/cli/open_loop.h"

#include <sys/prctl.h>

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

namespace backstory {
namespace {

using Clock = std::chrono::steady_clock;

int64_t MicrosSince(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

}  // namespace

std::vector<int64_t> PoissonArrivalsUs(double rate_per_s, double seconds, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> arrivals;
  double at_s = 0;
  while (true) {
    // Own transform of the generator's bits: std::exponential_distribution differs between libraries.
    const double uniform = (static_cast<double>(random() >> 11) + 1) * 0x1p-53;
    at_s -= std::log(uniform) / rate_per_s;
    if (at_s >= seconds) return arrivals;
    arrivals.push_back(static_cast<int64_t>(at_s * 1e6));
  }
}

LoadResult RunOpenLoop(double rate_per_s, double seconds, double warmup_s, uint64_t seed, size_t in_flight_max,
                       const IssueRequest& issue) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    size_t in_flight = 0;
    LoadResult result;
    LatencyHistogram late;
  } shared;
  const std::vector<int64_t> arrivals = PoissonArrivalsUs(rate_per_s, seconds + warmup_s, seed);
  const auto warmup_us = static_cast<int64_t>(warmup_s * 1e6);
  prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);  // nanoseconds; else each sleep ends up to 50 us late
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < arrivals.size(); ++i) {
    std::this_thread::sleep_until(start + std::chrono::microseconds(arrivals[i]));
    const bool counted = arrivals[i] >= warmup_us;
    {
      std::lock_guard lock(shared.mutex);
      if (counted) {
        ++shared.result.arrivals;
        shared.late.Add(MicrosSince(start) - arrivals[i]);
      }
      if (shared.in_flight >= in_flight_max) {
        if (counted) ++shared.result.errors["generator overflow"];
        continue;
      }
      ++shared.in_flight;
    }
    issue(i, [&shared, start, intended_us = arrivals[i], counted](std::string error) {
      const int64_t latency_us = MicrosSince(start) - intended_us;
      std::lock_guard lock(shared.mutex);
      if (counted && error.empty()) {
        ++shared.result.ok;
        shared.result.latency.Add(latency_us);
      } else if (counted) {
        ++shared.result.errors[error];
      }
      --shared.in_flight;
      shared.changed.notify_all();
    });
  }
  std::unique_lock lock(shared.mutex);
  shared.changed.wait(lock, [&] { return shared.in_flight == 0; });
  shared.result.seconds = seconds;
  shared.result.offered_per_s = static_cast<double>(shared.result.arrivals) / seconds;
  shared.result.goodput_per_s = static_cast<double>(shared.result.ok) / seconds;
  shared.result.late_start_p99_us = shared.late.QuantileUs(0.99);
  return shared.result;
}

bool MeetsSlo(const LoadResult& result, double slo_ms) {
  return result.arrivals > 0 && static_cast<double>(result.ok) >= 0.99 * static_cast<double>(result.arrivals) &&
         1e-3 * static_cast<double>(result.latency.QuantileUs(0.99)) <= slo_ms;
}

KneeReport FindKnee(double first_rate, double max_rate, double slo_ms, int steps,
                    const std::function<LoadResult(double)>& measure) {
  KneeReport report;
  const auto passes = [&](double rate) {
    report.runs.push_back(measure(rate));
    return MeetsSlo(report.runs.back(), slo_ms);
  };
  double good = 0, bad = first_rate;
  while (bad <= max_rate && passes(bad)) {
    good = bad;
    bad *= 2;
  }
  for (int i = 0; i < steps && good > 0 && bad <= max_rate; ++i) {
    const double middle = std::sqrt(good * bad);
    (passes(middle) ? good : bad) = middle;
  }
  report.knee_per_s = good;
  return report;
}

}  // namespace backstory
