// RankRequest -> RankQuery, RankReply -> RankResponse. Pure. Limits that the engine checks for every transport are left to
// ValidateRankQuery; here is what only the wire can get wrong.
#ifndef BACKSTORY_SERVING_RPC_RANK_WIRE_H_
#define BACKSTORY_SERVING_RPC_RANK_WIRE_H_

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "backstory/v1/ranking.pb.h"
#include "serving/engine/experiment.h"
#include "serving/engine/rank_query.h"

namespace backstory::rpc {

// INVALID_ARGUMENT naming the field and the limit. Sets everything but deadline and cancel token.
absl::StatusOr<RankQuery> RankQueryFromWire(const v1::RankRequest& request);
using WireFeatures = google::protobuf::Map<std::string, v1::FeatureValue>;
absl::StatusOr<FeatureMap> FeaturesFromWire(const WireFeatures& features);
absl::StatusOr<Criticality> CriticalityFromWire(v1::Criticality criticality);
absl::StatusOr<ModelChoice> ModelFromWire(std::string_view field, const v1::ModelSpec& spec);

// `stage_timings`: as asked in the request.
void RankReplyToWire(const RankReply& reply, bool stage_timings, v1::RankResponse* out);
void ExplanationToWire(const std::vector<ExplainedEvent>& events, v1::Explanation* out);
void ExposureToWire(const Exposure& exposure, v1::ExperimentExposure* out);
void CacheReportToWire(const CacheReport& report, v1::CacheReport* out);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_RANK_WIRE_H_
