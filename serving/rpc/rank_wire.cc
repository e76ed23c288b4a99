#include "serving/rpc/rank_wire.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/rpc/envelope_wire.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

// Counts are checked before anything is copied: a request may not cost much more than its own size. A map would hide a
// name that comes twice.
absl::Status CandidatesFromWire(const v1::Candidates& wire, CandidateColumns* out) {
  if (auto s = CheckCount("candidates.item_ids", wire.item_ids_size(), 1, kCandidatesMax); !s.ok()) return s;
  const int columns = wire.numbers_size() + wire.texts_size();
  if (auto s = CheckCount("candidates.numbers and candidates.texts", columns, 0, kCandidateColumnsMax); !s.ok()) return s;
  out->item_ids.assign(wire.item_ids().begin(), wire.item_ids().end());
  for (const auto& column : wire.numbers()) {
    if (!out->numbers.try_emplace(column.name(), column.values().begin(), column.values().end()).second) {
      return BadField(absl::StrCat("candidates.numbers[\"", column.name(), "\"]"), "is given twice");
    }
  }
  for (const auto& column : wire.texts()) {
    if (!out->texts.try_emplace(column.name(), column.values().begin(), column.values().end()).second) {
      return BadField(absl::StrCat("candidates.texts[\"", column.name(), "\"]"), "is given twice");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Criticality> CriticalityFromWire(v1::Criticality criticality) {
  switch (criticality) {
    case v1::CRITICALITY_UNSPECIFIED:
    case v1::CRITICALITY_ONLINE:
      return Criticality::kOnline;
    case v1::CRITICALITY_BATCH:
      return Criticality::kBatch;
    case v1::CRITICALITY_SHADOW:
      return Criticality::kShadow;
    default:
      return BadField("criticality", "must be CRITICALITY_ONLINE, CRITICALITY_BATCH or CRITICALITY_SHADOW");
  }
}

absl::StatusOr<FeatureMap> FeaturesFromWire(const WireFeatures& features) {
  if (auto s = CheckCount("features", features.size(), 0, kRequestFeaturesMax); !s.ok()) return s;
  FeatureMap map;
  for (const auto& [name, value] : features) {
    FeatureValue out;
    switch (value.value_case()) {
      case v1::FeatureValue::kText:
        out.text = value.text();
        break;
      case v1::FeatureValue::kNumber:
        out.number = value.number();
        out.is_number = true;
        break;
      default:
        return BadField(absl::StrCat("features[\"", name, "\"]"), "must have a text or a number");
    }
    map.emplace(name, std::move(out));
  }
  return map;
}

absl::StatusOr<ModelChoice> ModelFromWire(std::string_view field, const v1::ModelSpec& spec) {
  const std::string path(field);
  for (const auto& [member, text] : {std::pair<const char*, const std::string&>{".name", spec.name()},
                                     {".version", spec.version()},
                                     {".label", spec.label()}}) {
    if (auto s = CheckBytes(path + member, text, 0, kNameBytesMax); !s.ok()) return s;
  }
  return ModelChoice{spec.name(), spec.version(), spec.label()};
}

absl::StatusOr<RankQuery> RankQueryFromWire(const v1::RankRequest& request) {
  auto query = EnvelopeFromWire(request);
  if (!query.ok()) return query.status();
  if (auto s = CandidatesFromWire(request.candidates(), &query->candidates); !s.ok()) return s;
  if (auto s = ValidateRankQuery(*query); !s.ok()) return s;
  return query;
}

void CacheReportToWire(const CacheReport& report, v1::CacheReport* out) {
  out->set_source(report.source);
  out->set_tier(report.tier);
  out->set_rows_reused(report.rows_reused);
  out->set_rows_computed(report.rows_computed);
  out->set_rows_loaded(report.rows_loaded);
  out->set_state_bytes(report.state_bytes);
}

void ExplanationToWire(const std::vector<ExplainedEvent>& events, v1::Explanation* out) {
  for (const ExplainedEvent& event : events) {
    auto* attribution = out->add_events();
    attribution->set_channel(event.channel);
    attribution->set_event_id(event.event_id);
    attribution->set_time_us(event.time_us);
    attribution->set_item_id(event.item_id);
    attribution->set_mass(event.mass);
  }
}

void ExposureToWire(const Exposure& exposure, v1::ExperimentExposure* out) {
  out->set_layer(exposure.layer);
  out->set_experiment(exposure.experiment);
  out->set_arm(exposure.arm);
  out->set_unit(exposure.unit);
  out->set_reason(exposure.reason);
}

void RankReplyToWire(const RankReply& reply, bool stage_timings, v1::RankResponse* out) {
  for (const ScoreColumn& column : reply.scores) {
    auto* score = out->add_scores();
    score->set_task(column.task);
    score->mutable_calibrated()->Assign(column.calibrated.begin(), column.calibrated.end());
    score->mutable_raw_logit()->Assign(column.raw_logit.begin(), column.raw_logit.end());
  }
  EnvelopeToWire(reply, stage_timings, out);
  for (const auto& explained : reply.explanations) {
    auto* explanation = out->add_explanations();
    ExplanationToWire(explained, explanation);
  }
  out->mutable_features()->set_from_request(reply.features.from_request);
  out->mutable_features()->set_from_catalog(reply.features.from_catalog);
  out->mutable_features()->set_defaulted(reply.features.defaulted);
  out->mutable_unknown_items()->Assign(reply.unknown_items.begin(), reply.unknown_items.end());
}

}  // namespace backstory::rpc
