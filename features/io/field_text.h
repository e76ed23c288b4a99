// Values of text files, field by field: every message names the field, the value and what is needed.
#ifndef BACKSTORY_FEATURES_IO_FIELD_TEXT_H_
#define BACKSTORY_FEATURES_IO_FIELD_TEXT_H_

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace backstory {

absl::Status BadField(std::string_view field, std::string_view value, const char* needed);

// False, and `out` untouched, if `text` as a whole is no number of its range.
template <typename T>
bool ParseNumber(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

// An empty text leaves `out` as it is.
template <typename T>
absl::Status NumberField(std::string_view field, std::string_view text, T* out) {
  if (text.empty() || ParseNumber(text, out)) return absl::OkStatus();
  return BadField(field, text, "a number of the field's range needed");
}

// A time in units of `unit_us`, whole or with a fraction, as whole microseconds.
absl::Status TimeField(std::string_view field, std::string_view text, int64_t unit_us, int64_t* out);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_FIELD_TEXT_H_
