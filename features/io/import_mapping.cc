#include "features/io/import_mapping.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

constexpr std::array<std::string_view, 18> kEventFields = {
    "user",    "kind",        "event_id", "revision",      "tombstone",    "time_us",
    "item_id", "request_id",  "position", "scene",         "action",       "value",
    "label",   "exposure_id", "context",  "label_time_us", "label_action", "embedding_ids"};
constexpr std::array<std::string_view, 10> kItemFields = {
    "item_id", "categories", "sid", "year", "title", "text", "numbers", "strings", "embedding", "embedding_space"};

constexpr char kImportFormat[] = "the import format";

bool IsPrefixed(std::string_view field, std::string_view prefix) {
  return field.starts_with(prefix) && field.size() > prefix.size();
}

}  // namespace

std::string_view FieldOfName(std::string_view name) {
  if (name == "user_id") return "user";
  if (name == "item") return "item_id";
  if (name == "time") return "time_us";
  if (name == "label_time") return "label_time_us";
  return name;
}

bool IsEventField(std::string_view field) {
  return std::find(kEventFields.begin(), kEventFields.end(), field) != kEventFields.end() ||
         IsPrefixed(field, "context.");
}

bool IsItemField(std::string_view field) {
  return std::find(kItemFields.begin(), kItemFields.end(), field) != kItemFields.end() ||
         IsPrefixed(field, "numbers.") || IsPrefixed(field, "strings.");
}

absl::StatusOr<ImportMappings> PresetMappings(std::string_view name) {
  ImportMappings mappings;
  if (name.empty() || name == "backstory") return mappings;
  if (name != "movielens") {
    return absl::InvalidArgumentError(absl::StrCat("preset '", std::string(name), "': movielens or backstory needed"));
  }
  mappings.events.columns = {{"user", "userId"}, {"item_id", "movieId"}, {"value", "rating"}, {"time_us", "timestamp"}};
  mappings.events.constants = {{"kind", "action"}, {"action", "rating"}};
  mappings.events.time_unit_us = 1'000'000;
  mappings.items.columns = {{"item_id", "movieId"}, {"title", "title"}, {"categories", "genres"}};
  mappings.items.title_year = true;
  return mappings;
}

absl::Status AddFieldPairs(std::string_view pairs, FieldNames names, std::map<std::string, std::string>* out) {
  while (!pairs.empty()) {
    const size_t comma = std::min(pairs.find(','), pairs.size());
    const std::string_view pair = pairs.substr(0, comma);
    pairs.remove_prefix(std::min(comma + 1, pairs.size()));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == pair.size()) {
      return absl::InvalidArgumentError(absl::StrCat("'", std::string(pair), "': field=column needed"));
    }
    const std::string field(names.field_of(pair.substr(0, equals)));
    if (!names.known(field)) {
      return absl::InvalidArgumentError(absl::StrCat("'", field, "' is no field of ", names.of_what));
    }
    (*out)[field] = std::string(pair.substr(equals + 1));
  }
  return absl::OkStatus();
}

absl::Status AddEventColumns(std::string_view pairs, ImportMapping* mapping) {
  return AddFieldPairs(pairs, {FieldOfName, IsEventField, kImportFormat}, &mapping->columns);
}

absl::Status AddItemColumns(std::string_view pairs, ImportMapping* mapping) {
  return AddFieldPairs(pairs, {FieldOfName, IsItemField, kImportFormat}, &mapping->columns);
}

absl::Status AddEventConstants(std::string_view pairs, ImportMapping* mapping) {
  return AddFieldPairs(pairs, {FieldOfName, IsEventField, kImportFormat}, &mapping->constants);
}

absl::StatusOr<int64_t> TimeUnitUs(std::string_view unit) {
  if (unit == "us") return 1;
  if (unit == "ms") return 1'000;
  if (unit == "s") return 1'000'000;
  return absl::InvalidArgumentError(absl::StrCat("time unit '", std::string(unit), "': s, ms or us needed"));
}

}  // namespace backstory
