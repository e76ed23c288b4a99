// One recommendation's way from a query to items: user state, beam search, posting lists, filters, explanations.
#ifndef BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMENDER_H_
#define BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMENDER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/ranker.h"
#include "serving/engine/recommend/generative_state_provider.h"
#include "serving/engine/recommend/recommend_query.h"

namespace backstory {

// Thread-safe.
class Recommender {
 public:
  Recommender(GenerativeStateProvider* states, Catalog* catalog, Ranker* ranker, Clock* clock, Metrics* metrics)
      : states_(states), catalog_(catalog), ranker_(ranker), clock_(clock), metrics_(metrics) {}

  // Generates items for `request` (query, served, parameters are set; served->generative is not null) and, with
  // `rank_with`, passes them through that version. Fills request->reply (what a Rank replies, without scores) and the
  // rest of `reply`. FAILED_PRECONDITION if the filters leave nothing, naming them; INTERNAL for a score that is not
  // finite; else statuses of the store or the ranking model. Blocks; the caller must hold no StatePin.
  absl::Status Recommend(const RecommendSpec& spec, std::shared_ptr<const ServedModel> rank_with, PreparedRank* request,
                         RecommendReply* reply) const;

  // Recommends for nobody: touches every weight, and fails on a score that is not finite.
  absl::Status Probe(const GenerativeModel& model) const;

 private:
  struct Found;
  // The user's state; fills what the reply says of it.
  absl::StatusOr<StatePin> Acquire(PreparedRank* request) const;
  absl::Status Generate(const RecommendSpec& spec, size_t wanted, PreparedRank* request, RecommendReply* reply) const;
  absl::StatusOr<Found> Search(const GenerativeState& state, size_t beam, const PreparedRank& request) const;
  absl::Status RankItems(const RecommendSpec& spec, std::shared_ptr<const ServedModel> rank_with,
                         const PreparedRank& request, RecommendReply* reply) const;
  void AddTiming(PreparedRank* request, std::string_view stage, int64_t start_us) const;

  GenerativeStateProvider* const states_;
  Catalog* const catalog_;
  Ranker* const ranker_;
  Clock* const clock_;
  Metrics* const metrics_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RECOMMEND_RECOMMENDER_H_
