// How long a call may take: the client's deadline, the server's default where there is none, never more than the cap.
#ifndef BACKSTORY_SERVING_RPC_DEADLINE_H_
#define BACKSTORY_SERVING_RPC_DEADLINE_H_

#include <chrono>

namespace backstory::rpc {

struct DeadlinePolicy {
  std::chrono::milliseconds default_timeout{1'000};
  std::chrono::milliseconds max_timeout{30'000};
};

// gRPC gives the client's deadline on the wall clock, time_point::max() if there is none; what we compare with later is
// the monotonic clock, so a wall clock that jumps afterwards changes nothing.
inline std::chrono::steady_clock::time_point ResolveDeadline(std::chrono::system_clock::time_point client_deadline,
                                                             std::chrono::system_clock::time_point wall_now,
                                                             std::chrono::steady_clock::time_point now,
                                                             const DeadlinePolicy& policy) {
  if (client_deadline == std::chrono::system_clock::time_point::max()) return now + policy.default_timeout;
  if (client_deadline - policy.max_timeout > wall_now) return now + policy.max_timeout;
  return now + std::chrono::duration_cast<std::chrono::steady_clock::duration>(client_deadline - wall_now);
}

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_DEADLINE_H_
