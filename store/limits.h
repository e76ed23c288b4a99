// What an append may contain beyond the limits of a single event, which features/event_rules.h owns. Checked before
// anything is queued; a reason names the field and the limit.
#ifndef BACKSTORY_STORE_LIMITS_H_
#define BACKSTORY_STORE_LIMITS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "features/event.h"
#include "store/history_store.h"

namespace backstory {

inline constexpr size_t kUserBytesMax = 256;
inline constexpr size_t kNamespaceBytesMax = 64;
inline constexpr size_t kEventsPerAppendMax = 10'000;         // of one user batch
inline constexpr size_t kEventsPerAppendManyMax = 1'000'000;  // of all user batches of one call
inline constexpr int64_t kFutureMicrosMax = int64_t{24} * 3600 * 1'000'000;
inline constexpr size_t kAliasesMax = 64;
inline constexpr int64_t kAnchorEvents = 4096;

absl::Status CheckNamespace(std::string_view ns);
absl::Status CheckUser(const UserKey& user);

// Empty if the event may be stored, else the reason.
std::string WhyRejected(const Event& event, int64_t now_us);

}  // namespace backstory

#endif  // BACKSTORY_STORE_LIMITS_H_
