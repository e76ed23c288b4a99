#include "serving/rpc/rank_wire.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

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
  RankQuery query;
  auto ns = NamespaceFromWire(request.namespace_());
  if (!ns.ok()) return ns.status();
  query.ns = *std::move(ns);
  if (auto s = CheckBytes("scene", request.scene(), 0, kSceneBytesMax); !s.ok()) return s;
  query.scene = request.scene();
  auto user = UserFromWire("units.user", request.units().user());
  if (!user.ok()) return user.status();
  if (auto s = CheckBytes("units.device", request.units().device(), 0, kUnitBytesMax); !s.ok()) return s;
  if (auto s = CheckBytes("units.session", request.units().session(), 0, kUnitBytesMax); !s.ok()) return s;
  query.units = Units{*std::move(user), request.units().device(), request.units().session()};
  query.request_id = request.request_id();
  auto model = ModelFromWire("model", request.model());
  if (!model.ok()) return model.status();
  query.model = *std::move(model);
  if (auto s = CheckTime("now_us", request.now_us()); !s.ok()) return s;
  query.now_us = request.now_us();
  auto as_of = AsOfFromWire(request.as_of());
  if (!as_of.ok()) return as_of.status();
  query.as_of = *as_of;
  auto criticality = CriticalityFromWire(request.criticality());
  if (!criticality.ok()) return criticality.status();
  query.criticality = *criticality;
  auto features = FeaturesFromWire(request.features());
  if (!features.ok()) return features.status();
  query.features = *std::move(features);
  if (auto s = CandidatesFromWire(request.candidates(), &query.candidates); !s.ok()) return s;
  if (auto s = CheckCount("parameters", request.parameters_size(), 0, kParameterOverridesMax); !s.ok()) return s;
  query.parameters.insert(request.parameters().begin(), request.parameters().end());
  if (request.explain_top() > static_cast<uint32_t>(kExplainTopMax)) {
    return BadField("explain_top", absl::StrCat("must be <= ", kExplainTopMax, ", is ", request.explain_top()));
  }
  query.explain_top = static_cast<int>(request.explain_top());
  query.suppress_exposure = request.suppress_exposure();
  if (auto s = ValidateRankQuery(query); !s.ok()) return s;
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

void ExposureToWire(const Exposure& exposure, v1::ExperimentExposure* out) {
  out->set_layer(exposure.layer);
  out->set_experiment(exposure.experiment);
  out->set_arm(exposure.arm);
  out->set_unit(exposure.unit);
  out->set_reason(exposure.reason);
}

void RankReplyToWire(const RankReply& reply, bool stage_timings, v1::RankResponse* out) {
  out->set_request_id(reply.request_id);
  for (const ScoreColumn& column : reply.scores) {
    auto* score = out->add_scores();
    score->set_task(column.task);
    score->mutable_calibrated()->Assign(column.calibrated.begin(), column.calibrated.end());
    score->mutable_raw_logit()->Assign(column.raw_logit.begin(), column.raw_logit.end());
  }
  out->set_model(reply.model);
  out->set_version(reply.version);
  out->set_config_version(reply.config_version);
  out->set_seq(reply.seq);
  out->set_epoch(reply.epoch);
  out->mutable_rows_visible()->Assign(reply.rows_visible.begin(), reply.rows_visible.end());
  for (const EffectiveParameter& parameter : reply.parameters) {
    auto* effective = out->add_parameters();
    effective->set_name(parameter.name);
    effective->set_value(parameter.value);
    effective->set_source(parameter.source);
  }
  out->set_degrade_step(reply.degrade_step);
  for (const Exposure& exposure : reply.exposures) ExposureToWire(exposure, out->add_exposures());
  CacheReportToWire(reply.cache, out->mutable_cache());
  if (stage_timings) {
    for (const StageTiming& timing : reply.timings) {
      auto* stage = out->add_timings();
      stage->set_stage(timing.stage);
      stage->set_duration_us(timing.duration_us);
    }
  }
  for (const auto& explained : reply.explanations) {
    auto* explanation = out->add_explanations();
    for (const ExplainedEvent& event : explained) {
      auto* attribution = explanation->add_events();
      attribution->set_channel(event.channel);
      attribution->set_event_id(event.event_id);
      attribution->set_time_us(event.time_us);
      attribution->set_item_id(event.item_id);
      attribution->set_mass(event.mass);
    }
  }
  out->mutable_features()->set_from_request(reply.features.from_request);
  out->mutable_features()->set_from_catalog(reply.features.from_catalog);
  out->mutable_features()->set_defaulted(reply.features.defaulted);
  out->set_unknown_user(reply.unknown_user);
  out->mutable_unknown_items()->Assign(reply.unknown_items.begin(), reply.unknown_items.end());
  out->set_now_us(reply.now_us);
}

}  // namespace backstory::rpc
