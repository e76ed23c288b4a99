#include "store/limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "features/event_rules.h"

namespace backstory {
absl::Status CheckNamespace(std::string_view ns) {
  const bool good = !ns.empty() && ns.size() <= kNamespaceBytesMax && std::all_of(ns.begin(), ns.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("namespace: must match [a-z0-9_-]{1,", kNamespaceBytesMax, "}, got ", ns.size(), " bytes"));
}

absl::Status CheckUser(const UserKey& user) {
  if (absl::Status status = CheckNamespace(user.ns); !status.ok()) return status;
  if (user.user.empty() || user.user.size() > kUserBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("user: ", user.user.size(), " bytes, 1 to ", kUserBytesMax, " allowed"));
  }
  return absl::OkStatus();
}

std::string WhyRejected(const Event& e, int64_t now_us) {
  if (e.kind != EventKind::kExposure && e.kind != EventKind::kAction) {
    return absl::StrCat("kind: ", static_cast<int>(e.kind), " is neither 1 (exposure) nor 2 (action)");
  }
  if (e.time_us < 0) return absl::StrCat("time_us: ", e.time_us, " is negative, at least 0 allowed");
  if (e.time_us > now_us && e.time_us - now_us > kFutureMicrosMax) {
    return absl::StrCat("time_us: ", e.time_us, " is more than 24 h after the ingest time ", now_us);
  }
  return std::string(CheckEventSizes(e).message());
}

}  // namespace backstory
