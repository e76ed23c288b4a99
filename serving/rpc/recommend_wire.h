// RecommendRequest and its reply <-> the engine's structs, with validation at the border (wire.h).
#ifndef BACKSTORY_SERVING_RPC_RECOMMEND_WIRE_H_
#define BACKSTORY_SERVING_RPC_RECOMMEND_WIRE_H_

#include "absl/status/statusor.h"
#include "backstory/v1/retrieval.pb.h"
#include "serving/engine/recommend/recommend_query.h"

namespace backstory::rpc {

absl::StatusOr<RecommendQuery> RecommendQueryFromWire(const v1::RecommendRequest& request);
void RecommendReplyToWire(const RecommendReply& reply, bool stage_timings, v1::RecommendResponse* out);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_RECOMMEND_WIRE_H_
