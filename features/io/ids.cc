#include <array>
#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/hash.h"
#include "features/io/event_json.h"

namespace backstory {
namespace {

constexpr std::array<std::pair<std::string_view, ActionType>, 8> kActionNames = {{
    {"click", ActionType::kClick},
    {"conversion", ActionType::kConversion},
    {"like", ActionType::kLike},
    {"rating", ActionType::kRating},
    {"dwell", ActionType::kDwell},
    {"purchase", ActionType::kPurchase},
    {"dislike", ActionType::kDislike},
    {"share", ActionType::kShare},
}};

}  // namespace

absl::StatusOr<ActionType> ActionTypeFromName(std::string_view name) {
  for (const auto& [known, type] : kActionNames) {
    if (name == known) return type;
  }
  uint16_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const bool whole = error == std::errc() && end == name.data() + name.size() && !name.empty();
  const bool defined =
      number <= static_cast<uint16_t>(ActionType::kShare) || number >= static_cast<uint16_t>(ActionType::kFirstCustom);
  if (whole && number != 0 && defined) return static_cast<ActionType>(number);
  return absl::InvalidArgumentError(
      absl::StrCat("action: '", std::string(name.substr(0, 32)), "' is no action type (a name, or 1000 to 65535)"));
}

std::string ActionTypeName(ActionType type) {
  for (const auto& [name, known] : kActionNames) {
    if (type == known) return std::string(name);
  }
  return std::to_string(static_cast<uint16_t>(type));
}

uint64_t IdFromText(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size() && !text.empty()) return number;
  return HashBytes(text, 0);
}

}  // namespace backstory
