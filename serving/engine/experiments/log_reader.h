// Reads what experiments are analysed from: exposure logs, and outcome logs that the team brings. Both are JSON lines
// (docs/reference/experiments.md). Lines that cannot be read are counted and reported, never skipped in silence.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LOG_READER_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LOG_READER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

struct LoggedExposure {
  int64_t time_us = 0;
  std::string layer, experiment, arm, unit, unit_hash, reason, config_version;
};

// One shown item, or any other trial: label 0 or 1 (or a value), and the probability that was predicted, if known.
//   {"time_us":1700000000000000,"user":"ann","label":1,"predicted":0.31}
// The unit is one of "user", "device", "session" with the raw id, or "unit" and "unit_hash" as in the exposure log.
struct Outcome {
  int64_t time_us = 0;
  std::string unit, unit_hash;
  double label = 0;
  double predicted = 0;
  bool has_predicted = false;
};

struct ReadReport {
  uint64_t lines = 0;    // understood, of any type
  uint64_t dropped = 0;  // records the server says it dropped
  uint64_t torn = 0;     // last lines without an end: a process died while writing
  uint64_t bad = 0;
  std::vector<std::string> problems;  // path:line: reason, the first 20
};

// Directories mean their segments. NOT_FOUND if a path does not exist or a directory has none.
absl::Status ReadExposures(const std::vector<std::string>& paths, const std::function<void(LoggedExposure)>& each,
                           ReadReport* report);
// `key` hashes raw ids as the server did. Each outcome is of one unit; a line with several is several outcomes.
absl::Status ReadOutcomes(const std::string& path, const std::string& key, const std::function<void(Outcome)>& each,
                          ReadReport* report);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LOG_READER_H_
