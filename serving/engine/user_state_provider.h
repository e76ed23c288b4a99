// The present state of a user under a model: cached, extended by what the store has newer, or built from the history.
#ifndef BACKSTORY_SERVING_ENGINE_USER_STATE_PROVIDER_H_
#define BACKSTORY_SERVING_ENGINE_USER_STATE_PROVIDER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/clock.h"
#include "serving/engine/event_times.h"
#include "serving/engine/metrics.h"
#include "serving/engine/served_model.h"
#include "serving/engine/user_state_cache.h"

namespace backstory {

struct StateRequest {
  UserKey user;
  const ServedModel* served = nullptr;
  int64_t events_max = 0;                      // STATE parameter state_events_max
  uint64_t parameter_hash = 0;                 // ParameterSet::StateHash
  int64_t view_us = 0;                         // events at or after it are invisible
  int64_t known_by_us = AsOf::kAnyIngestTime;  // anything else: a state of its own, uncached
  // False: answer `busy` instead of waiting for another thread or starting long work. Must be false while the caller
  // holds a pin (two callers that wait for each other's pins would never end).
  bool may_wait = true;
  size_t quick_events = 64;  // more new events than this are long work
  BetweenSteps between;      // see extend_steps.h; long work is done in one go without it
};

struct StateAnswer {
  bool busy = false;
  bool long_work = false;  // busy because the state takes long, not because others have it
  StatePin pin;            // empty if the user has no events
  StateView view;          // of view_us
  UserHead head;           // what the state knows
  CacheReport report;
  int64_t store_us = 0;  // time spent in the store
};

// Thread-safe.
class UserStateProvider {
 public:
  UserStateProvider(HistoryStore* store, Catalog* catalog, UserStateCache* cache, Clock* clock, Metrics* metrics);

  // Statuses are the store's or the model's; a failed state is dropped.
  absl::StatusOr<StateAnswer> Acquire(const StateRequest& request);
  // Key of the states that a model and STATE parameters share. A cached state that does not begin with the first event
  // has "@" and its anchor after it: views of one user that begin elsewhere have states of their own.
  static std::string StateKey(const ServedModel& served, uint64_t parameter_hash);
  // States handed out since the start, by CacheReport::source.
  struct Totals {
    std::atomic<uint64_t> hit{0}, extend{0}, truncate{0}, rebuild{0}, uncached{0}, empty{0};
  };
  const Totals& totals() const { return totals_; }

 private:
  absl::StatusOr<std::optional<std::string>> CacheKey(const StateRequest& request, const UserHead& head);
  bool TryCached(const StateRequest& request, const std::shared_ptr<CacheEntry>& entry, StateAnswer* answer);
  absl::Status BringUpToDate(const StateRequest& request, std::unique_ptr<UserState>* state, StateAnswer* answer);
  absl::Status Rebuild(const StateRequest& request, std::unique_ptr<UserState>* state, StateAnswer* answer);
  absl::Status BuildUncached(const StateRequest& request, StateAnswer* answer);
  void Count(const StateAnswer& answer);

  HistoryStore* const store_;
  Catalog* const catalog_;
  UserStateCache* const cache_;
  Clock* const clock_;
  Metrics* const metrics_;
  EventTimes times_;
  Totals totals_;
  Counter* const rows_reused_;
  Counter* const rows_computed_;
  Counter* const hash_mismatches_;
  Counter* const evictions_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_USER_STATE_PROVIDER_H_
