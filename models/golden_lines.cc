#include "models/golden_lines.h"

#include <cmath>

namespace backstory::golden {

absl::Status Bad(const std::string& key, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", what));
}

absl::Status Under(const std::string& key, const absl::Status& status) {
  return status.ok() ? status : absl::Status(status.code(), absl::StrCat(key, ": ", status.message()));
}

absl::Status ReadUnsigned(const nlohmann::json& value, const std::string& key, uint64_t max, uint64_t* out) {
  if (!value.is_number_unsigned()) return Bad(key, "not an integer in [0, 2^64 - 1]");
  *out = value.get<uint64_t>();
  return *out <= max ? absl::OkStatus() : Bad(key, absl::StrCat(*out, " exceeds ", max));
}

absl::Status ReadNumber(const nlohmann::json& value, const std::string& key, double* out) {
  if (!value.is_number()) return Bad(key, "not a number");
  *out = value.get<double>();
  return std::isfinite(*out) ? absl::OkStatus() : Bad(key, "not finite");
}

}  // namespace backstory::golden
