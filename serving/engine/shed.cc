#include "serving/engine/shed.h"

#include <charconv>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace backstory {
namespace {

constexpr char kPayloadUrl[] = "backstory/retry-pushback-ms";

}  // namespace

absl::Status WithPushback(absl::Status status, int64_t pushback_ms) {
  if (!status.ok()) status.SetPayload(kPayloadUrl, absl::Cord(std::to_string(pushback_ms)));
  return status;
}

absl::Status ShedStatus(std::string_view message, int64_t pushback_ms) {
  return WithPushback(absl::UnavailableError(absl::string_view(message.data(), message.size())), pushback_ms);
}

std::optional<int64_t> RetryPushbackMs(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return std::nullopt;
  const std::string text(*payload);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace backstory
