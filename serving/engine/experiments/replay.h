// Scores recorded requests again and compares bit for bit: what was answered is what the same state, version and
// parameters answer. With other parameters it is the counterfactual: what another arm would have answered.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_REPLAY_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_REPLAY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "serving/engine/engine.h"
#include "serving/engine/experiment.h"
#include "serving/engine/rank_query.h"

namespace backstory {

// A line of the request log (request_log.h), the answer included.
struct RecordedRequest {
  RankQuery query;
  std::string model, version;
  uint32_t calibration = 0;  // that was in force; 0: not recorded, or the version had none
  uint64_t seq = 0, epoch = 0;
  std::map<std::string, std::string> parameters;      // effective, STATE and REQUEST
  std::map<std::string, std::vector<float>> scores;  // task -> calibrated, one per candidate
};
// INVALID_ARGUMENT saying what is missing.
absl::StatusOr<RecordedRequest> RecordedFromJsonLine(std::string_view line);

// Gives every request exactly the parameters it is told to, whoever the user is; exposes nobody.
class ReplayAssigner : public Assigner {
 public:
  void Use(std::map<std::string, std::string> parameters);
  Assignment Assign(const std::string&, const std::string&, const Units&, const FeatureMap&) const override;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const LayerAssignment> layer_;  // guarded by mutex_
};

enum class ReplayOutcome {
  kEqual,         // every score, bit for bit
  kEqualAsKnown,  // events came later; equal once they are hidden by their ingest time
  kHistoryGone,   // a delete, correction or merge changed what the request saw: nothing to compare
  kDifferent,
};

struct ReplayResult {
  ReplayOutcome outcome = ReplayOutcome::kEqual;
  double largest_difference = 0;
  RankReply reply;
};

// One request at a time. `engine` was created with `assigner`. `changes` replaces recorded parameters; with any the outcome
// tells whether they matter. Errors are the engine's.
absl::StatusOr<ReplayResult> Replay(Engine* engine, ReplayAssigner* assigner, const RecordedRequest& recorded,
                                    const std::map<std::string, std::string>& changes);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_REPLAY_H_
