#include "serving/rpc/recommend_wire.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/rpc/envelope_wire.h"

namespace backstory::rpc {

absl::StatusOr<RecommendQuery> RecommendQueryFromWire(const v1::RecommendRequest& request) {
  auto envelope = EnvelopeFromWire(request);
  if (!envelope.ok()) return envelope.status();
  RecommendQuery query{*std::move(envelope), {}};
  RecommendSpec& spec = query.spec;
  spec.count = request.count();
  spec.beam = request.beam();
  // Before anything is copied: a request may not cost much more than its own size.
  if (auto s =
          CheckCount("exclude_item_ids", static_cast<uint64_t>(request.exclude_item_ids_size()), 0, kExcludedItemsMax);
      !s.ok()) {
    return s;
  }
  spec.exclude_items.assign(request.exclude_item_ids().begin(), request.exclude_item_ids().end());
  if (auto s = CheckCount("include_categories", static_cast<uint64_t>(request.include_categories_size()), 0,
                          kIncludedCategoriesMax);
      !s.ok()) {
    return s;
  }
  spec.include_categories.assign(request.include_categories().begin(), request.include_categories().end());
  if (request.has_exclude_seen()) spec.exclude_seen = request.exclude_seen();
  if (request.has_per_sid_max()) spec.per_sid_max = request.per_sid_max();
  if (request.has_rank()) {
    auto model = ModelFromWire("rank.model", request.rank().model());
    if (!model.ok()) return model.status();
    spec.rank = RankThem{*std::move(model), request.rank().candidates()};
  }
  if (auto s = ValidateRecommendQuery(query.request, spec); !s.ok()) return s;
  return query;
}

void RecommendReplyToWire(const RecommendReply& reply, bool stage_timings, v1::RecommendResponse* out) {
  EnvelopeToWire(reply.common, stage_timings, out);
  for (const Recommended& item : reply.items) {
    auto* wire = out->add_items();
    wire->set_item_id(item.item_id);
    wire->set_log_probability(item.log_probability);
    wire->mutable_sid()->Assign(item.sid.begin(), item.sid.end());
    wire->set_score(item.score);
    wire->set_search_gate(item.search_gate);
    if (!item.explanation.empty()) ExplanationToWire(item.explanation, wire->mutable_explanation());
    for (const RecommendedTask& task : item.ranked) {
      auto* score = wire->add_ranked();
      score->set_task(task.task);
      score->set_calibrated(task.calibrated);
      score->set_raw_logit(task.raw_logit);
    }
  }
  out->set_beam(static_cast<uint32_t>(reply.beam));
  out->set_sids_found(static_cast<uint32_t>(reply.sids_found));
  out->set_partial(reply.partial);
  out->set_partial_reason(reply.partial_reason);
  out->mutable_filtered()->set_excluded(reply.filtered.excluded);
  out->mutable_filtered()->set_seen(reply.filtered.seen);
  out->mutable_filtered()->set_category(reply.filtered.category);
  out->mutable_filtered()->set_per_sid(reply.filtered.per_sid);
  out->set_rank_model(reply.rank_model);
  out->set_rank_version(reply.rank_version);
}

}  // namespace backstory::rpc
