// The kinds of work that workers do.
#ifndef BACKSTORY_SERVING_ENGINE_JOBS_H_
#define BACKSTORY_SERVING_ENGINE_JOBS_H_

#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/ranker.h"
#include "serving/engine/recommend/recommend_query.h"
#include "serving/engine/request_queue.h"

namespace backstory {

// Rank: answered exactly once, by whoever owns it.
class RankJob : public Job {
 public:
  virtual void Answer(absl::Status status) {
    if (status.ok()) return done(std::move(rank.reply));
    done(std::move(status));
  }
  virtual std::string_view operation() const { return "rank"; }  // in names of metrics
  virtual std::string_view version_parameter() const { return "model_version"; }

  PreparedRank rank;
  std::function<void(absl::StatusOr<RankReply>)> done;
  int64_t entered_us = 0;   // monotonic, when the engine was called
  int64_t started_us = 0;   // monotonic, when a worker took it; 0 = never
  int64_t in_flight = 0;    // others in flight when it entered
  int64_t scored_with = 1;  // requests of its batch, itself included
  int64_t lent_us = 0;      // part of its worker's time that went to other requests (Batcher::ServeReady)
  bool exposed = false;     // an ExposureRecord of id `id` was written
};

// Recommend: everything around it is as for a Rank. `rank` is the request, without candidates; its `served` is
// generative.
class RecommendJob : public RankJob {
 public:
  void Answer(absl::Status status) override {
    if (!status.ok()) return recommended(std::move(status));
    reply.common = std::move(rank.reply);
    recommended(std::move(reply));
  }
  std::string_view operation() const override { return "recommend"; }
  std::string_view version_parameter() const override { return "recommend_model_version"; }

  RecommendSpec spec;
  std::shared_ptr<const ServedModel> rank_with;  // null: not ranked
  RecommendReply reply;
  RecommendCallback recommended;
};

// Prefetch, or (done empty) a refresh after an append, or (warmed set too) a state for a version that a label moves to.
class PrefetchJob : public Job {
 public:
  UserKey user;
  std::vector<std::shared_ptr<const ServedModel>> models;
  std::function<void(absl::StatusOr<std::vector<CacheReport>>)> done;
  std::function<void(absl::StatusOr<std::vector<CacheReport>>)> warmed;  // as done, of a job that holds no slot
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_JOBS_H_
