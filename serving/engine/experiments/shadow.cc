#include "serving/engine/experiments/shadow.h"

#include <cmath>
#include <mutex>
#include <utility>
#include <vector>

#include "serving/engine/request_log.h"

namespace backstory {
namespace {

const std::vector<double>& DifferenceBounds() {
  static const std::vector<double> bounds = {1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1};
  return bounds;
}

// Two answers to one request, whichever comes first.
class Comparison {
 public:
  explicit Comparison(Histogram* difference) : difference_(difference) {}

  void Add(const RankReply& reply) {
    if (reply.scores.empty()) return;
    const std::vector<float>& scores = reply.scores.front().calibrated;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (first_.empty()) {
      first_ = scores;
      return;
    }
    if (first_.size() != scores.size()) return;
    double sum = 0;
    for (size_t i = 0; i < scores.size(); ++i) sum += std::abs(static_cast<double>(first_[i]) - scores[i]);
    difference_->Observe(sum / static_cast<double>(scores.size()));
  }

 private:
  Histogram* const difference_;
  std::mutex mutex_;
  std::vector<float> first_;  // guarded by mutex_
};

class ShadowingEngine : public Engine {
 public:
  ShadowingEngine(std::unique_ptr<Engine> engine, ShadowOptions options, Metrics* metrics)
      : engine_(std::move(engine)),
        options_(std::move(options)),
        ok_(metrics->GetCounter("backstory_shadow_requests_total", "Requests scored in the shadow",
                                {{"result", "ok"}})),
        failed_(metrics->GetCounter("backstory_shadow_requests_total", "Requests scored in the shadow",
                                    {{"result", "failed"}})),
        difference_(metrics->GetHistogram(
            "backstory_shadow_score_difference",
            "Mean absolute difference of a request's probabilities, shadow against served", DifferenceBounds())) {}

  void Rank(RankQuery query, RankCallback done) override {
    const bool shadowed =
        query.criticality == Criticality::kOnline && !query.suppress_exposure && InSample(query, options_.fraction);
    if (!shadowed) return engine_->Rank(std::move(query), std::move(done));
    RankQuery shadow = query;
    shadow.criticality = Criticality::kShadow;
    shadow.model = {options_.model, options_.version, ""};
    shadow.cancel = nullptr;
    shadow.explain_top = 0;
    const auto comparison = std::make_shared<Comparison>(difference_);
    engine_->Rank(std::move(query), [comparison, done = std::move(done)](absl::StatusOr<RankReply> reply) {
      if (reply.ok()) comparison->Add(*reply);
      done(std::move(reply));
    });
    engine_->Rank(std::move(shadow), [comparison, ok = ok_, failed = failed_](absl::StatusOr<RankReply> reply) {
      (reply.ok() ? ok : failed)->Add();
      if (reply.ok()) comparison->Add(*reply);
    });
  }

  void Recommend(RecommendQuery query, RecommendCallback done) override {
    engine_->Recommend(std::move(query), std::move(done));
  }
  absl::StatusOr<std::vector<EncodedItem>> UpsertItems(const std::string& ns, std::span<const Item> items) override {
    return engine_->UpsertItems(ns, items);
  }
  absl::StatusOr<AppendResult> Append(const UserKey& user, std::span<const Event> events,
                                      Durability durability) override {
    return engine_->Append(user, events, durability);
  }
  absl::StatusOr<std::vector<AppendResult>> AppendMany(std::span<const HistoryStore::UserBatch> batches,
                                                       Durability durability) override {
    return engine_->AppendMany(batches, durability);
  }
  absl::StatusOr<uint64_t> Delete(const UserKey& user, const DeleteSelector& what) override {
    return engine_->Delete(user, what);
  }
  absl::StatusOr<UserHead> Merge(const UserKey& alias, const UserKey& primary) override {
    return engine_->Merge(alias, primary);
  }
  void Prefetch(const UserKey& user, const std::vector<ModelChoice>& models, int64_t deadline_us,
                PrefetchCallback done) override {
    engine_->Prefetch(user, models, deadline_us, std::move(done));
  }
  absl::Status LoadModels() override { return engine_->LoadModels(); }
  absl::StatusOr<LabelMove> MoveLabel(const std::string& model, const std::string& label, const std::string& version,
                                      bool at_once) override {
    return engine_->MoveLabel(model, label, version, at_once);
  }
  ModelRepository& models() override { return engine_->models(); }
  HistoryStore& store() override { return engine_->store(); }
  Catalog& catalog() override { return engine_->catalog(); }
  const ParameterSet& parameters() const override { return engine_->parameters(); }
  EngineStats Stats() const override { return engine_->Stats(); }
  absl::Status Drain(int64_t timeout_us) override { return engine_->Drain(timeout_us); }

 private:
  const std::unique_ptr<Engine> engine_;
  const ShadowOptions options_;
  Counter* const ok_;
  Counter* const failed_;
  Histogram* const difference_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeShadowingEngine(std::unique_ptr<Engine> engine, ShadowOptions options,
                                                            Metrics* metrics) {
  if (!(options.fraction >= 0 && options.fraction <= 1))
    return absl::InvalidArgumentError("shadow.fraction must be 0..1");
  if (options.version.empty()) return absl::InvalidArgumentError("shadow.version must name an immutable version");
  return std::unique_ptr<Engine>(std::make_unique<ShadowingEngine>(std::move(engine), std::move(options), metrics));
}

}  // namespace backstory
