// What the golden files of every kind of model share: one JSON object a line, read with errors that name line and key.
// Pure functions, thread-safe.
#ifndef BACKSTORY_MODELS_GOLDEN_LINES_H_
#define BACKSTORY_MODELS_GOLDEN_LINES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace backstory {

inline constexpr size_t kGoldenBytesMax = 64 << 20;  // of a file
inline constexpr size_t kGoldenCasesMax = 1'000;     // of a file
inline constexpr size_t kGoldenEventsMax = 100'000;  // of a case

namespace golden {

// INVALID_ARGUMENT "key: what".
absl::Status Bad(const std::string& key, const std::string& what);
// Prefixes the key to a status of a value below it.
absl::Status Under(const std::string& key, const absl::Status& status);

// The value at `key`; INVALID_ARGUMENT naming the key if it is of another type, above `max` or not finite.
absl::Status ReadUnsigned(const nlohmann::json& value, const std::string& key, uint64_t max, uint64_t* out);
absl::Status ReadNumber(const nlohmann::json& value, const std::string& key, double* out);

// A whole file of cases, which `read` makes of a line: absl::StatusOr<Case>(std::string_view). INVALID_ARGUMENT
// "source:line: key: ..."; blank lines are skipped, names are unique.
template <typename Case, typename Read>
absl::StatusOr<std::vector<Case>> ParseLines(std::string_view text, std::string_view source, Read read) {
  const std::string name(source);
  if (text.size() > kGoldenBytesMax) return Bad(name, absl::StrCat("exceeds ", kGoldenBytesMax, " bytes"));
  std::vector<Case> cases;
  std::set<std::string> names;
  for (size_t line = 1; !text.empty(); ++line) {
    const std::string_view content = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), content.size() + 1));
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = absl::StrCat(name, ":", line);
    if (cases.size() == kGoldenCasesMax) return Bad(where, absl::StrCat("more than ", kGoldenCasesMax, " cases"));
    absl::StatusOr<Case> made = read(content);
    if (!made.ok()) return Under(where, made.status());
    if (!names.insert(made->name).second) return Bad(where, absl::StrCat("name: \"", made->name, "\" twice"));
    cases.push_back(*std::move(made));
  }
  return cases;
}

}  // namespace golden
}  // namespace backstory

#endif  // BACKSTORY_MODELS_GOLDEN_LINES_H_
