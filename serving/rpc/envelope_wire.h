// What a RankRequest and a RecommendRequest have in common, and likewise their replies: the same fields under the same
// names, read and written by the same code. Included by rank_wire.cc and recommend_wire.cc.
#ifndef BACKSTORY_SERVING_RPC_ENVELOPE_WIRE_H_
#define BACKSTORY_SERVING_RPC_ENVELOPE_WIRE_H_

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "serving/engine/rank_query.h"
#include "serving/rpc/rank_wire.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {

// Everything but the candidates. INVALID_ARGUMENT naming the field and the limit.
template <typename Request>
absl::StatusOr<RankQuery> EnvelopeFromWire(const Request& request) {
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
  if (auto s = CheckCount("parameters", request.parameters_size(), 0, kParameterOverridesMax); !s.ok()) return s;
  query.parameters.insert(request.parameters().begin(), request.parameters().end());
  if (request.explain_top() > static_cast<uint32_t>(kExplainTopMax)) {
    return BadField("explain_top", absl::StrCat("must be <= ", kExplainTopMax, ", is ", request.explain_top()));
  }
  query.explain_top = static_cast<int>(request.explain_top());
  query.suppress_exposure = request.suppress_exposure();
  return query;
}

template <typename Response>
void EnvelopeToWire(const RankReply& reply, bool stage_timings, Response* out) {
  out->set_request_id(reply.request_id);
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
  for (size_t i = 0; stage_timings && i < reply.timings.size(); ++i) {
    auto* stage = out->add_timings();
    stage->set_stage(reply.timings[i].stage);
    stage->set_duration_us(reply.timings[i].duration_us);
  }
  out->set_unknown_user(reply.unknown_user);
  out->set_now_us(reply.now_us);
}

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_ENVELOPE_WIRE_H_
