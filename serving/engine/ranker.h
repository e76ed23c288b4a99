// One request's way from a query to scores, in two steps: Prepare (user state, candidate tokens) for each request by
// itself, Score for a batch of them in one call of the model.
#ifndef BACKSTORY_SERVING_ENGINE_RANKER_H_
#define BACKSTORY_SERVING_ENGINE_RANKER_H_

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "serving/engine/clock.h"
#include "serving/engine/rank_query.h"
#include "serving/engine/served_model.h"
#include "serving/engine/user_state_provider.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

// A request on its way. Filled by the engine (query .. reply.exposures), then by Prepare, then by Score.
struct PreparedRank {
  RankQuery query;  // now_us is set
  std::shared_ptr<const ServedModel> served;
  ParameterSet parameters;
  RankReply reply;

  StatePin pin;
  StateView view;
  std::vector<size_t> first_row;  // [channels]
  CandidateTokens tokens;
  int64_t prepared_us = 0;  // monotonic, when Prepare was done
  absl::Status status;      // set by Score if this request alone failed
};

// Thread-safe.
class Ranker {
 public:
  // `pool` may be null.
  Ranker(HistoryStore* store, Catalog* catalog, UserStateProvider* states, ThreadPool* pool, Clock* clock,
         Metrics* metrics);

  enum class Prepared { kReady, kBusy, kLong };  // kLong: busy until somebody has time for long work
  // kBusy and kLong only if !may_wait: nothing was done, ask again when no pin is held. See StateRequest::may_wait.
  absl::StatusOr<Prepared> Prepare(PreparedRank* rank, bool may_wait, const BetweenSteps& between = {}) const;
  // Without waiting, but states of up to `quick_events` new events are brought up to date.
  absl::StatusOr<Prepared> PrepareQuickly(PreparedRank* rank, size_t quick_events) const;
  // All of one model version. Fills replies and releases the pins. A failure of the model fails the whole batch.
  absl::Status Score(std::span<PreparedRank* const> ranks) const;

  // Scores made-up candidates against an empty history: touches every weight that candidates use, and fails on a score
  // that is not finite.
  absl::Status Probe(std::shared_ptr<const ServedModel> served) const;

 private:
  absl::StatusOr<Prepared> PrepareWith(StateRequest request, PreparedRank* rank) const;
  absl::Status Tokenize(PreparedRank* rank) const;
  void AddTiming(PreparedRank* rank, std::string_view stage, int64_t duration_us) const;

  HistoryStore* const store_;
  Catalog* const catalog_;
  UserStateProvider* const states_;
  ThreadPool* const pool_;
  Clock* const clock_;
  Metrics* const metrics_;
};

// Candidates [begin, end) of `tokens`; the user side is copied.
CandidateTokens SliceCandidates(const CandidateTokens& tokens, size_t begin, size_t end);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RANKER_H_
