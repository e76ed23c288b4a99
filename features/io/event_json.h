// Events and items as JSON objects: the JSON-lines import format and the goldens of a model version
// (docs/reference/import-format.md).
#ifndef BACKSTORY_FEATURES_IO_EVENT_JSON_H_
#define BACKSTORY_FEATURES_IO_EVENT_JSON_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/item.h"
#include "nlohmann/json_fwd.hpp"

namespace backstory {

// INVALID_ARGUMENT naming the key: no object, an unknown key, a wrong type, a number out of range, a limit of
// event_rules.h or item_rules. "user", "label" and "label_time_us" are left to the caller (see import_file.h). An
// absent "event_id" is derived from the content. Never throws, whatever the JSON.
absl::StatusOr<Event> EventFromJson(const nlohmann::json& object);
absl::StatusOr<Item> ItemFromJson(const nlohmann::json& object);

// EventFromJson(EventToJson(e)) == e but for ingest_time_us. Keys with default values are left out.
nlohmann::json EventToJson(const Event& event);
nlohmann::json ItemToJson(const Item& item);

// Parses one JSON text; INVALID_ARGUMENT with the byte offset, also for a key given twice and for nesting deeper
// than 8.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

// "click" <-> kClick; other types are decimal text. Case-sensitive. NOT_FOUND-free: an unknown name is
// INVALID_ARGUMENT.
absl::StatusOr<ActionType> ActionTypeFromName(std::string_view name);
std::string ActionTypeName(ActionType type);

// Decimal text (0 .. 2^64-1) is that number, anything else its XXH3-64 with seed 0.
uint64_t IdFromText(std::string_view text);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_EVENT_JSON_H_
