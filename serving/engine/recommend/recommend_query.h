// One recommendation call and its answer, in plain structs: what the wire carries, without the wire.
#ifndef BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMEND_QUERY_H_
#define BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMEND_QUERY_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/rank_query.h"

namespace backstory {

inline constexpr size_t kRecommendCountMax = 1'000;
inline constexpr size_t kRecommendBeamMax = 1'024;
inline constexpr size_t kExcludedItemsMax = 10'000;
inline constexpr size_t kIncludedCategoriesMax = 64;

// Passes the recommended items through a ranking model.
struct RankThem {
  ModelChoice model;      // as for Rank
  size_t candidates = 0;  // how many of the most likely items are ranked, 0..kCandidatesMax; 0: parameter
};

struct RecommendSpec {
  size_t count = 10;                    // items wanted, 1..kRecommendCountMax
  size_t beam = 0;                      // semantic IDs followed, 0..kRecommendBeamMax; 0: parameter, else the model's
  std::vector<uint64_t> exclude_items;  // deny list
  std::vector<std::string> include_categories;  // only items that the catalog puts in one of them; empty: all
  std::optional<bool> exclude_seen;             // leave out items of the visible history; none: parameter
  std::optional<size_t> per_sid_max;            // items of one semantic ID, 0: no limit; none: parameter
  std::optional<RankThem> rank;                 // none: parameter recommend_rank
};

struct RecommendQuery {
  // What a Rank has as well: who asks, model, time, features, parameters, deadline. Its candidates stay empty.
  RankQuery request;
  RecommendSpec spec;
};

// INVALID_ARGUMENT naming the field and the limit.
absl::Status ValidateRecommendQuery(const RankQuery& request, const RecommendSpec& spec);

struct RecommendedTask {
  std::string task;
  float calibrated = 0, raw_logit = 0;
};

struct Recommended {
  uint64_t item_id = 0;
  std::vector<uint32_t> sid;
  float log_probability = 0;            // of the semantic ID, over the model's whole vocabulary
  float score = 0;                      // what the order follows
  std::vector<RecommendedTask> ranked;  // one per task, if ranked
  // When asked: the behaviours that the semantic hard search found for this item's first code, by share of its
  // attention in the last decoder layer and step (they sum to 1 over all that were found), and how far the gate let
  // them in, 0..1.
  std::vector<ExplainedEvent> explanation;
  float search_gate = 0;
};

// Items of the beams that were left out, by the first filter that did so.
struct Filtered {
  uint64_t seen = 0, excluded = 0, category = 0, per_sid = 0;
};

struct RecommendReply {
  RankReply
      common;  // without scores: model, parameters, exposures, cache, timings. rows_visible: short window, long part
  std::vector<Recommended> items;  // best first
  size_t beam = 0;                 // followed
  size_t sids_found = 0;           // semantic IDs at the end of the search
  bool partial = false;            // fewer items than asked for
  std::string partial_reason;
  Filtered filtered;
  std::string rank_model, rank_version;  // of the ranking, if there was one
};

using RecommendCallback = std::function<void(absl::StatusOr<RecommendReply>)>;

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMEND_QUERY_H_
