// Shadow traffic: a share of the online requests is scored by a second version as well, whose answer nobody sees. Tells what
// a version would cost and how far its scores lie from those served, before it gets a label or an arm.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SHADOW_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SHADOW_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "serving/engine/engine.h"

namespace backstory {

struct ShadowOptions {
  std::string model;    // empty: the default model
  std::string version;  // immutable; must be READY when requests come, else they fail in the shadow only
  double fraction = 0;  // of online requests, 0..1, chosen by identity: a retry is in it or not as before
};

// An engine that hands every call to `engine`. Shadow requests run as SHADOW: shed first, and they log no exposure. They
// start after the served request was handed over and are never waited for. Metrics:
// backstory_shadow_requests_total{result="ok" | "failed"}, backstory_shadow_score_difference (histogram: mean absolute
// difference of the probabilities of a request, first task). INVALID_ARGUMENT for a fraction outside 0..1 or no version.
absl::StatusOr<std::unique_ptr<Engine>> MakeShadowingEngine(std::unique_ptr<Engine> engine, ShadowOptions options,
                                                            Metrics* metrics);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SHADOW_H_
