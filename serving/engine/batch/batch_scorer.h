// Offline scoring over an engine: columns in, scores in row order out, the same bits that Ranking.Rank gives for the
// same version and time. No transport, no file format: commands and the Python module stand on this. An engine for it:
// serving/embedded/embedded_engine.h.
#ifndef BACKSTORY_SERVING_ENGINE_BATCH_BATCH_SCORER_H_
#define BACKSTORY_SERVING_ENGINE_BATCH_BATCH_SCORER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/batch/batch_rows.h"
#include "serving/engine/engine.h"
#include "serving/engine/served_model.h"

namespace backstory {

struct BatchOptions {
  ModelChoice model;           // resolved once, when the scorer is made: one version answers all calls. Its calibration
                               // is the one in force, so do not swap it meanwhile (an embedded engine cannot)
  std::string ns = "default";  // of rows without one
  std::string scene;           // of rows without one
  std::map<std::string, std::string> parameters;  // REQUEST parameters of every request

  // Requests of one call that wait or run in the engine. More fills larger batches of the model, and takes memory:
  // 10,000 candidates take about 1 MB with their features.
  size_t in_flight_max = 64;
};

// Thread-safe: several calls may run at once, each with its own requests in flight. The engine must outlive it.
//
// Rows may come in any order. A call sorts them by user and brings a user's state up to date once, so keep the rows of
// a user in one call where that is easy (files sorted by user are the best case). No row of a call sees another.
//
// Requests are Criticality::kBatch, write no exposure, and are never given up: while the engine sheds (a limit, a
// quota, online load) the call waits, and a request that the engine degraded is asked again. An engine with experiments
// applies them to batch requests as to any other; an embedded engine has none.
class BatchScorer {
 public:
  // INVALID_ARGUMENT (options), NOT_FOUND or FAILED_PRECONDITION (the model is not there or not ready).
  static absl::StatusOr<std::unique_ptr<BatchScorer>> Create(Engine* engine, BatchOptions options);

  // Blocks until all rows are scored. A row that cannot be scored is reported in `bad` and costs the others nothing: a
  // missing or too long value, a time out of range, a number that is not finite, a user of a slot that the store does
  // not own. What is wrong with the call as a whole is its status: INVALID_ARGUMENT (columns of different lengths, a
  // required column that is not given, two columns of one name), CANCELLED (`stop`), UNAVAILABLE (the engine is
  // draining), or what the engine reported for good (DATA_LOSS: store damaged; INTERNAL: the model gave a score that is
  // not finite). `progress`, if given, hears from time to time, on the calling thread, how many rows are done.
  using Progress = std::function<void(size_t rows_done)>;
  absl::StatusOr<BatchScores> Score(const BatchRows& rows, std::stop_token stop = {},
                                    const Progress& progress = {}) const;

  const ServedModel& model() const { return *served_; }
  const BatchOptions& options() const { return options_; }

 private:
  BatchScorer(Engine* engine, BatchOptions options, std::shared_ptr<const ServedModel> served)
      : engine_(engine), options_(std::move(options)), served_(std::move(served)) {}

  Engine* const engine_;
  const BatchOptions options_;
  const std::shared_ptr<const ServedModel> served_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_BATCH_BATCH_SCORER_H_
