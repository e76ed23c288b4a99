// Open-loop load: requests start when their time has come, whether or not earlier ones were answered, and latency counts
// from the time a request should have started. A closed loop would hide overload (coordinated omission).
#ifndef BACKSTORY_SERVING_CLI_OPEN_LOOP_H_
#define BACKSTORY_SERVING_CLI_OPEN_LOOP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "serving/cli/latency_histogram.h"

namespace backstory {

// Start times in microseconds from 0, exponential gaps of mean 1 / rate, all below `seconds`. Deterministic by seed.
std::vector<int64_t> PoissonArrivalsUs(double rate_per_s, double seconds, uint64_t seed);

struct LoadResult {
  double offered_per_s = 0;  // arrivals / duration
  double goodput_per_s = 0;  // answered OK / duration
  uint64_t arrivals = 0, ok = 0;
  std::map<std::string, uint64_t> errors;  // by name; "generator overflow": in_flight_max was reached
  LatencyHistogram latency;                // of OK answers
  double seconds = 0;
  int64_t late_start_p99_us = 0;           // how late the generator itself was: large = it, not the server, is the limit
};

// Starts request i; must not block, and calls `done("")` or done(error name) once, from any thread.
using IssueRequest = std::function<void(size_t i, std::function<void(std::string)> done)>;

// Blocks until everything was answered. Arrivals in the first `warmup_s` are issued but not counted.
LoadResult RunOpenLoop(double rate_per_s, double seconds, double warmup_s, uint64_t seed, size_t in_flight_max,
                       const IssueRequest& issue);

// The highest rate that meets `slo_ms` at p99 with at least 99 % OK: doubles from `first_rate` until it fails, then halves
// the gap `steps` times (on a log scale). `measure` runs one rate. 0 if the first rate fails.
struct KneeReport {
  double knee_per_s = 0;
  std::vector<LoadResult> runs;
};
bool MeetsSlo(const LoadResult& result, double slo_ms);
KneeReport FindKnee(double first_rate, double max_rate, double slo_ms, int steps,
                    const std::function<LoadResult(double rate)>& measure);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_OPEN_LOOP_H_
