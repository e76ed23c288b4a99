#include "features/io/field_text.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "features/event_rules.h"

namespace backstory {

absl::Status BadField(std::string_view field, std::string_view value, const char* needed) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(field), ": '", std::string(value.substr(0, 64)), "', ", needed));
}

absl::Status TimeField(std::string_view field, std::string_view text, int64_t unit_us, int64_t* out) {
  int64_t whole = 0;
  if (ParseNumber(text, &whole)) {
    if (!__builtin_mul_overflow(whole, unit_us, out)) return absl::OkStatus();
    return BadField(field, text, "out of range");
  }
  double fraction = 0;
  if (!ParseNumber(text, &fraction) || !std::isfinite(fraction)) return BadField(field, text, "a number needed");
  const double us = std::round(fraction * static_cast<double>(unit_us));
  if (std::fabs(us) > static_cast<double>(EventLimits::kTimeUsMax)) return BadField(field, text, "out of range");
  *out = static_cast<int64_t>(us);
  return absl::OkStatus();
}

}  // namespace backstory
