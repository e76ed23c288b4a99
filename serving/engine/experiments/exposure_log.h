// The log that experiments are read from: who was put into which arm, written on the server when it happens.
//
// JSON lines (docs/reference/experiments.md), three types:
//   {"type":"exposure","run":"9f..","id":17,"time_us":1700000000000000,"namespace":"default","scene":"home",
//    "layer":"length","experiment":"longer","arm":"treatment","unit":"user","unit_hash":"0123456789abcdef",
//    "reason":"assigned","config_version":"v1","model":"grab","version":"7","request_id":"42"}
//   {"type":"final","run":"9f..","id":17,"time_us":..,"status":"OK","model":"grab","version":"7","degrade_step":0,
//    "parameters":{"history_rows":"800"}}
//   {"type":"dropped","run":"9f..","time_us":..,"records":3}
// (run, id) pairs an exposure with its final line. No raw id is written: unit_hash is HMAC-SHA256(key, unit "/" id), its
// first 16 hex digits.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_EXPOSURE_LOG_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_EXPOSURE_LOG_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/clock.h"
#include "serving/engine/experiment.h"
#include "serving/engine/experiments/rotating_log.h"
#include "serving/engine/metrics.h"

namespace backstory {

struct ExposureLogOptions {
  std::string key;  // of unit hashes, 1..1024 bytes: keep it, or outcomes cannot be joined
  RotatingLogOptions files;
  // Records that may wait for the disk; more are dropped and counted. About 1 KiB of memory each.
  size_t queue_records_max = 65'536;
  // What a power loss may take; a crash of the process alone takes what its writer had not picked up, some milliseconds.
  int64_t sync_interval_us = 1'000'000;
  int64_t retry_interval_us = 1'000'000;  // between attempts while the disk fails
  // Told once when writing starts to fail and once (with OK) when it works again. Runs on the writer's thread.
  std::function<void(const absl::Status&)> on_health;
};

std::string UnitHash(const std::string& key, std::string_view unit, std::string_view id);

// Thread-safe. Write and Finish only take a place in a bounded queue; one thread writes. Metrics:
// backstory_exposure_log_records_total, _dropped_total, _write_errors_total, _failing (0 or 1).
class ExposureLog : public ExposureSink {
 public:
  // INVALID_ARGUMENT for a bad key. Directory, clock and metrics must outlive it.
  static absl::StatusOr<std::unique_ptr<ExposureLog>> Open(ExposureLogOptions options, LogDirectory* directory,
                                                           const Clock* clock, Metrics* metrics);
  ~ExposureLog() override;  // writes what waits, once

  void Write(const ExposureRecord& record) override;
  void Finish(const ExposureFinal& final_record) override;

  // Returns when everything written before is on disk, or with what keeps it from being so.
  absl::Status Flush();

  struct ArmKey {
    std::string layer, experiment, arm;
    auto operator<=>(const ArmKey&) const = default;
  };
  // Exposures since the start, overrides left out.
  std::map<ArmKey, uint64_t> Counts() const;
  uint64_t dropped() const;

 private:
  using Record = std::variant<ExposureRecord, ExposureFinal>;
  ExposureLog(ExposureLogOptions options, LogDirectory* directory, const Clock* clock, Metrics* metrics);
  void Enqueue(Record record);
  void Run();
  absl::Status WriteBatch(const std::deque<Record>& batch, uint64_t dropped);
  void Serialise(const Record& record, std::string* lines) const;
  void SetHealth(const absl::Status& status);

  const ExposureLogOptions options_;
  const Clock* const clock_;
  const std::string run_;  // random, of this process
  RotatingLog log_;        // writer's thread only
  std::string pending_;    // writer's thread only: serialised, not written yet
  Counter* const records_metric_;
  Counter* const dropped_metric_;
  Counter* const errors_metric_;
  Gauge* const failing_metric_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;     // work, a flush, or the end
  std::condition_variable flushed_;
  // Guarded by mutex_:
  std::deque<Record> queue_;
  std::map<ArmKey, uint64_t> counts_;
  uint64_t dropped_ = 0;           // in all
  uint64_t dropped_unlogged_ = 0;  // of which no "dropped" line tells yet
  uint64_t flush_wanted_ = 0, flush_done_ = 0;
  absl::Status health_;
  bool stopping_ = false;

  std::thread writer_;  // last: it uses everything above
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_EXPOSURE_LOG_H_
