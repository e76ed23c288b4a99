#include "store/limits.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

std::string TooLong(std::string_view field, size_t size, size_t limit, std::string_view unit) {
  return absl::StrCat(std::string(field), ": ", size, " ", std::string(unit), ", at most ", limit, " allowed");
}

std::string WhyContextRejected(const std::vector<ContextField>& context) {
  if (context.size() > kContextFieldsMax) return TooLong("context", context.size(), kContextFieldsMax, "fields");
  for (const ContextField& field : context) {
    if (field.name.empty()) return absl::StrCat("context.name: empty, 1 to ", kContextNameBytesMax, " bytes allowed");
    if (field.name.size() > kContextNameBytesMax) {
      return TooLong("context.name", field.name.size(), kContextNameBytesMax, "bytes");
    }
    if (field.value.size() > kContextValueBytesMax) {
      return TooLong(absl::StrCat("context.value of '", field.name, "'"), field.value.size(), kContextValueBytesMax,
                     "bytes");
    }
  }
  return "";
}

}  // namespace

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
  if (!std::isfinite(e.value)) return "value: must be finite";
  if (e.scene.size() > kSceneBytesMax) return TooLong("scene", e.scene.size(), kSceneBytesMax, "bytes");
  if (e.embedding_ids.size() > kEmbeddingIdsMax) {
    return TooLong("embedding_ids", e.embedding_ids.size(), kEmbeddingIdsMax, "ids");
  }
  return WhyContextRejected(e.context);
}

}  // namespace backstory
