// One ranking call and its answer, in plain structs: what the wire carries, without the wire.
#ifndef BACKSTORY_SERVING_ENGINE_RANK_QUERY_H_
#define BACKSTORY_SERVING_ENGINE_RANK_QUERY_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "features/event.h"
#include "features/tokenizer.h"
#include "serving/engine/experiment.h"
#include "serving/engine/model_repository.h"
#include "serving/engine/parameters.h"

namespace backstory {

inline constexpr size_t kCandidatesMax = 10'000;
inline constexpr size_t kCandidateColumnsMax = 64;
inline constexpr size_t kRequestFeaturesMax = 256;
inline constexpr size_t kParameterOverridesMax = 64;
inline constexpr size_t kFeatureNameBytesMax = 64;
inline constexpr size_t kFeatureTextBytesMax = 256;
inline constexpr size_t kUnitBytesMax = 256;
inline constexpr size_t kSceneBytesMax = 64;
inline constexpr int kExplainTopMax = 32;

enum class Criticality { kOnline, kBatch, kShadow };

// Cancels a call from any thread: at once if it still waits, else its reply is dropped when the running step ends.
class CancelToken {
 public:
  void Cancel();
  bool cancelled() const;
  // Runs `hook` when cancelled (now, if it already is). One hook; an empty one takes it back and, on return, no hook
  // runs.
  void SetHook(std::function<void()> hook);

 private:
  mutable std::recursive_mutex mutex_;
  bool cancelled_ = false;      // guarded by mutex_
  std::function<void()> hook_;  // guarded by mutex_
};

struct RankQuery {
  std::string ns = "default";
  std::string scene;
  Units units;              // units.user: whose history is read, 1..256 bytes
  uint64_t request_id = 0;  // history rows of the same request are one tie group with the candidates; 0 = none
  ModelChoice model;
  int64_t now_us = 0;  // 0 = the clock's wall time. Events at or after it are invisible
  AsOf as_of;          // narrows what is visible below now; known_by reads a state that cannot be cached
  Criticality criticality = Criticality::kOnline;
  FeatureMap features;
  CandidateColumns candidates;
  std::map<std::string, std::string> parameters;  // overrides of REQUEST parameters (the transport checks the role)
  int explain_top = 0;                  // > 0: per candidate and channel, the past events of largest attention mass
  bool suppress_exposure = false;       // counterfactual: writes no exposure
  int64_t deadline_us = INT64_MAX;      // on the engine's monotonic clock
  std::shared_ptr<CancelToken> cancel;  // may be null
};

// INVALID_ARGUMENT naming the field and the limit.
absl::Status ValidateRankQuery(const RankQuery& query);
absl::Status ValidateRequest(const RankQuery& query);  // everything but the candidates
absl::Status ValidateNamespace(const std::string& ns);
absl::Status ValidateUser(const std::string& user);

struct CacheReport {
  // hit, extend, truncate (a late event or a changed label took rows back first), rebuild, uncached, empty.
  std::string source = "empty";
  std::string tier = "none";   // where reused rows came from: host, none
  uint64_t rows_reused = 0;    // K/V rows taken as they were, all channels
  uint64_t rows_computed = 0;  // K/V rows computed for this call
  uint64_t rows_loaded = 0;    // K/V rows read back from a lower tier
  uint64_t state_bytes = 0;    // resident bytes of this user's state
};

struct StageTiming {
  std::string stage;  // queue, store, state, features, batch, score; of a recommendation: queue, store, state, decode,
                      // items, rank
  int64_t duration_us = 0;
};

struct ScoreColumn {
  std::string task;
  std::vector<float> calibrated, raw_logit;  // [candidates], request order
};

struct ExplainedEvent {
  int channel = 0;
  uint64_t event_id = 0;
  int64_t time_us = 0;
  uint64_t item_id = 0;
  float mass = 0;  // attention mass, mean over heads of the last layer, self excluded
};

struct RankReply {
  uint64_t request_id = 0;
  std::vector<ScoreColumn> scores;  // one per task
  std::string model, version, state_id;
  std::string config_version;  // calibration of the model, and experiment configuration
  uint64_t seq = 0, epoch = 0;
  int64_t now_us = 0;
  std::vector<uint64_t> rows_visible;  // [channels] rows attended
  std::vector<EffectiveParameter> parameters;
  int degrade_step = 0;
  std::vector<Exposure> exposures;
  CacheReport cache;
  std::vector<StageTiming> timings;
  std::vector<std::vector<ExplainedEvent>> explanations;  // [candidates] largest mass first, when asked
  FeatureReport features;
  bool unknown_user = false;
  std::vector<uint32_t> unknown_items;  // indices into the candidates
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RANK_QUERY_H_
