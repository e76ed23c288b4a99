// Refusals under overload: UNAVAILABLE with the time after which a retry makes sense, carried as a status payload so
// that the transport can hand it to the client (gRPC: trailing metadata `grpc-retry-pushback-ms`).
#ifndef BACKSTORY_SERVING_ENGINE_SHED_H_
#define BACKSTORY_SERVING_ENGINE_SHED_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"

namespace backstory {

absl::Status ShedStatus(std::string_view message, int64_t pushback_ms);

// The pushback of a status made by ShedStatus (or a quota refusal), if it has one.
std::optional<int64_t> RetryPushbackMs(const absl::Status& status);

// Adds a pushback to any status that is not OK.
absl::Status WithPushback(absl::Status status, int64_t pushback_ms);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_SHED_H_
