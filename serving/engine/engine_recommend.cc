// The part of the engine that recommends, and that gives new catalog items their semantic IDs.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/engine_impl.h"

namespace backstory {

void EngineImpl::Recommend(RecommendQuery query, RecommendCallback done) {
  auto recommend = std::make_unique<RecommendJob>();
  Begin(std::move(query.request), recommend.get());
  recommend->spec = std::move(query.spec);
  recommend->recommended = std::move(done);
  absl::Status status = AdmitRecommend(recommend.get());
  std::unique_ptr<RankJob> job = std::move(recommend);
  if (status.ok()) status = Enqueue(job);
  if (status.ok()) return;
  FinishExposure(*job, status);
  job->Answer(status);
}

absl::Status EngineImpl::AdmitRecommend(RecommendJob* job) {
  PreparedRank& rank = job->rank;
  RecommendSpec& spec = job->spec;
  if (absl::Status status = ValidateRecommendQuery(rank.query, spec); !status.ok()) return status;
  if (absl::Status status = AdmitRequest(job); !status.ok()) return status;
  // Fields of the request are parameters too, so that the reply reports what was in force.
  std::map<std::string, std::string> fields;
  if (spec.beam > 0) fields["recommend_beam"] = absl::StrCat(spec.beam);
  if (spec.exclude_seen.has_value()) fields["recommend_exclude_seen"] = *spec.exclude_seen ? "true" : "false";
  if (spec.per_sid_max.has_value()) fields["recommend_per_sid_max"] = absl::StrCat(*spec.per_sid_max);
  if (absl::Status status = rank.parameters.SetAll(fields, ParameterSource::kRequest); !status.ok()) return status;

  ModelChoice choice = rank.query.model;
  if (choice.version.empty() && choice.label.empty()) choice.version = rank.parameters.Text("recommend_model_version");
  auto served = models_.Resolve(choice, ModelKind::kGenerative);
  if (!served.ok()) return served.status();
  rank.served = *std::move(served);
  if (!spec.rank.has_value() && !rank.parameters.Bool("recommend_rank")) return absl::OkStatus();
  ModelChoice with = spec.rank.has_value() ? spec.rank->model : ModelChoice{};
  if (with.version.empty() && with.label.empty()) with.version = rank.parameters.Text("model_version");
  auto rank_with = models_.Resolve(with, ModelKind::kRanking);
  if (!rank_with.ok()) {
    return absl::Status(rank_with.status().code(), absl::StrCat("rank: ", std::string(rank_with.status().message())));
  }
  job->rank_with = *std::move(rank_with);
  rank.reply.config_version =
      absl::StrCat(job->rank_with->calibration.config_version(), "/", rank.reply.config_version);
  return absl::OkStatus();
}

void EngineImpl::RunRecommend(std::unique_ptr<RecommendJob> recommend) {
  RecommendJob* const own = recommend.get();
  std::unique_ptr<RankJob> job = std::move(recommend);
  if (!StartJob(job)) return;
  PreparedRank& rank = job->rank;
  if (rank.reply.degrade_step > 0) {
    rank.parameters.Lower("recommend_beam", rank.parameters.Int("degrade_beam"),
                          rank.served->generative->config().beam);
    rank.reply.parameters = rank.parameters.Report();
  }
  const absl::Status status = recommender_.Recommend(own->spec, own->rank_with, &own->rank, &own->reply);
  FinishRank(std::move(job), status);
}

absl::StatusOr<std::vector<Engine::EncodedItem>> EngineImpl::UpsertItems(const std::string& ns,
                                                                         std::span<const Item> items) {
  std::vector<std::shared_ptr<const ServedModel>> generative;
  for (auto& served : models_.Ready()) {
    if (served->kind() == ModelKind::kGenerative) generative.push_back(std::move(served));
  }
  std::vector<EncodedItem> encoded;
  for (size_t i = 0; i < items.size() && !generative.empty(); ++i) {
    if (items[i].embedding.empty()) continue;
    absl::Status refused;
    bool taken = false;
    for (const auto& served : generative) {
      const auto one = served->generative->Encode(items[i]);
      refused.Update(one.status());
      if (!one.ok()) continue;
      taken = true;
      const glass::Catalogue& trained = *served->generative->loaded().catalogue;
      const auto row = trained.RowOf(items[i].item_id);  // a known item keeps the semantic ID it was trained with
      const glass::Sid& sid = row.has_value() ? trained.sid(*row) : one->sid;
      encoded.push_back({items[i].item_id, served->name, served->version, {sid.begin(), sid.end()}});
    }
    if (taken) continue;
    return absl::Status(refused.code(), absl::StrCat("items[", i, "].", std::string(refused.message())));
  }
  if (absl::Status status = catalog_->Upsert(ns, items); !status.ok()) return status;
  // Versions that became ready meanwhile may have read the catalog before these items were in it.
  for (const auto& served : models_.Ready()) {
    if (served->kind() == ModelKind::kGenerative) served->generative->Add(ns, items);
  }
  return encoded;
}

}  // namespace backstory
