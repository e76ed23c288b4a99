// The present state of a user under a generative version: cached, extended by what the store has newer, or built from
// the history. The counterpart of user_state_provider.h; both share the cache and its budget.
#ifndef BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_PROVIDER_H_
#define BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_PROVIDER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "serving/engine/clock.h"
#include "serving/engine/metrics.h"
#include "serving/engine/recommend/generative_state.h"
#include "serving/engine/user_state_cache.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

struct GenerativeStateRequest {
  UserKey user;
  const GenerativeModel* model = nullptr;
  int64_t events_max = 0;                      // STATE parameter state_events_max
  uint64_t parameter_hash = 0;                 // ParameterSet::StateHash
  int64_t view_us = 0;                         // events at or after it are invisible
  int64_t known_by_us = AsOf::kAnyIngestTime;  // anything else: a state of its own, uncached
};

struct GenerativeStateAnswer {
  StatePin pin;  // pin.generative() is never null
  CacheReport report;
  int64_t store_us = 0;  // time spent in the store
};

// Thread-safe. Acquire may wait for another thread that builds the same state: the caller must hold no pin.
class GenerativeStateProvider {
 public:
  GenerativeStateProvider(HistoryStore* store, Catalog* catalog, UserStateCache* cache, Clock* clock, Metrics* metrics);

  // Also a user without events has a state, but one that is not cached. Statuses are the store's.
  absl::StatusOr<GenerativeStateAnswer> Acquire(const GenerativeStateRequest& request);
  static std::string StateKey(const GenerativeModel& model, uint64_t parameter_hash);

 private:
  absl::StatusOr<bool> BeginsElsewhere(const GenerativeStateRequest& request, const UserHead& head,
                                       GenerativeStateAnswer* answer);
  absl::Status BringUpToDate(const GenerativeStateRequest& request, std::unique_ptr<GenerativeState>* state,
                             GenerativeStateAnswer* answer);
  absl::StatusOr<HistoryStore::Snapshot> Read(const GenerativeStateRequest& request, AsOf as_of, uint64_t newest,
                                              GenerativeStateAnswer* answer);
  absl::StatusOr<GenerativeStateAnswer> BuildUncached(const GenerativeStateRequest& request,
                                                      std::shared_ptr<const glass::Catalogue> catalogue,
                                                      GenerativeStateAnswer answer);
  void Count(const GenerativeStateAnswer& answer);

  HistoryStore* const store_;
  Catalog* const catalog_;
  UserStateCache* const cache_;
  Clock* const clock_;
  Metrics* const metrics_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_PROVIDER_H_
