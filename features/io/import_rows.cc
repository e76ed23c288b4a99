#include "features/io/import_rows.h"

#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "features/event_rules.h"
#include "features/io/event_json.h"
#include "features/io/field_text.h"
#include "features/item_rules.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr size_t kUserBytesMax = 256;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }
uint64_t Id(std::string_view text) { return text.empty() ? 0 : IdFromText(text); }

absl::Status Bool(std::string_view field, std::string_view text, bool* out) {
  *out = text == "1" || text == "true";
  if (*out || text.empty() || text == "0" || text == "false") return absl::OkStatus();
  return BadField(field, text, "true, false, 1 or 0 needed");
}

// "a|b|c"; empty parts are dropped.
template <typename Visit>
absl::Status ForEachPart(std::string_view text, const Visit& visit) {
  while (!text.empty()) {
    const size_t bar = std::min(text.find('|'), text.size());
    if (bar > 0) {
      if (auto status = visit(text.substr(0, bar)); !status.ok()) return status;
    }
    text.remove_prefix(std::min(bar + 1, text.size()));
  }
  return absl::OkStatus();
}

// The year in "Toy Story (1995)" or 0.
int32_t TitleYear(std::string_view title) {
  while (title.ends_with(' ')) title.remove_suffix(1);
  if (title.size() < 6 || !title.ends_with(')') || title[title.size() - 6] != '(') return 0;
  int32_t year = 0;
  return ParseNumber(title.substr(title.size() - 5, 4), &year) && year > 0 ? year : 0;
}

std::vector<std::pair<std::string, size_t>>* ListOf(std::string_view field, std::string_view* name,
                                                    std::vector<std::pair<std::string, size_t>>* context,
                                                    std::vector<std::pair<std::string, size_t>>* numbers,
                                                    std::vector<std::pair<std::string, size_t>>* strings) {
  const size_t dot = field.find('.');
  if (dot == std::string_view::npos) return nullptr;
  *name = field.substr(dot + 1);
  const std::string_view prefix = field.substr(0, dot);
  return prefix == "context" ? context : prefix == "numbers" ? numbers : prefix == "strings" ? strings : nullptr;
}

}  // namespace

std::string_view RowReader::CsvFieldName(CsvField field) {
  static constexpr std::array<std::string_view, kCsvFields> kNames = {
      "user",       "kind",  "event_id", "revision", "tombstone", "time_us",     "item_id",        "request_id",
      "position",   "scene", "action",   "value",    "label",     "exposure_id", "label_time_us",  "embedding_ids",
      "categories", "sid",   "year",     "title",    "text",      "embedding",   "embedding_space"};
  return kNames[field];
}

absl::StatusOr<RowReader> RowReader::ForCsv(const std::vector<std::string_view>& header, ImportFile::Content content,
                                            const ImportMapping& mapping, std::vector<std::string>* unused) {
  RowReader reader(mapping);
  reader.columns_ = header.size();
  const auto known = content == ImportFile::Content::kEvents ? IsEventField : IsItemField;
  std::map<std::string, std::vector<std::string>, std::less<>> fields_of;  // column -> fields
  for (const auto& [field, column] : mapping.columns) fields_of[column].push_back(field);
  std::map<std::string, size_t> column_of;  // field -> column
  for (size_t i = 0; i < header.size(); ++i) {
    std::vector<std::string> fields;
    if (const auto mapped = fields_of.find(header[i]); mapped != fields_of.end()) {
      fields = std::move(mapped->second);
      fields_of.erase(mapped);
    } else if (const std::string own(FieldOfName(header[i])); known(own) && !mapping.columns.contains(own)) {
      fields.push_back(own);
    }
    if (fields.empty()) unused->emplace_back(header[i]);
    for (const std::string& field : fields) {
      std::string_view name;
      auto* list = ListOf(field, &name, &reader.context_, &reader.numbers_, &reader.strings_);
      if (list != nullptr) list->emplace_back(name, i);
      if (list == nullptr && !column_of.emplace(field, i).second) {
        return Bad(absl::StrCat("header: two columns for the field ", field));
      }
    }
  }
  if (!fields_of.empty()) return Bad(absl::StrCat("header: no column '", fields_of.begin()->first, "'"));
  const std::vector<std::string> needed = content == ImportFile::Content::kEvents
                                              ? std::vector<std::string>{"user", "time_us", "item_id"}
                                              : std::vector<std::string>{"item_id"};
  for (const std::string& field : needed) {
    if (!column_of.contains(field) && !mapping.constants.contains(field)) {
      return Bad(absl::StrCat("header: no column for the field ", field, " (map it)"));
    }
  }
  for (size_t f = 0; f < kCsvFields; ++f) {
    const std::string name(CsvFieldName(static_cast<CsvField>(f)));
    if (const auto column = column_of.find(name); column != column_of.end()) reader.slots_[f].column = column->second;
    if (const auto constant = mapping.constants.find(name); constant != mapping.constants.end()) {
      reader.slots_[f].constant = constant->second;
    }
  }
  return reader;
}

absl::Status RowReader::ReadCsvEvent(const std::vector<std::string_view>& fields,
                                     std::vector<ImportedEvent>* rows) const {
  if (fields.size() != columns_) return Bad(absl::StrCat(fields.size(), " fields, the header has ", columns_));
  Event event;
  int64_t label_us = -1;
  double label = 0;
  for (const CsvField needed : {kUser, kTimeUs, kItemId}) {
    if (Value(fields, needed).empty()) return Bad(absl::StrCat(std::string(CsvFieldName(needed)), ": missing"));
  }
  if (auto s = TimeField("time_us", Value(fields, kTimeUs), mapping_.time_unit_us, &event.time_us); !s.ok()) return s;
  if (auto s = NumberField("revision", Value(fields, kRevision), &event.revision); !s.ok()) return s;
  if (auto s = NumberField("position", Value(fields, kPosition), &event.position); !s.ok()) return s;
  if (auto s = NumberField("value", Value(fields, kValue), &event.value); !s.ok()) return s;
  if (auto s = NumberField("label", Value(fields, kLabel), &label); !s.ok()) return s;
  if (auto s = Bool("tombstone", Value(fields, kTombstone), &event.tombstone); !s.ok()) return s;
  if (const std::string_view at = Value(fields, kLabelTimeUs); !at.empty()) {
    if (auto s = TimeField("label_time_us", at, mapping_.time_unit_us, &label_us); !s.ok()) return s;
  }
  if (const std::string_view action = Value(fields, kAction); !action.empty()) {
    const absl::StatusOr<ActionType> type = ActionTypeFromName(action);
    if (!type.ok()) return type.status();
    event.action = *type;
  }
  const std::string_view kind = Value(fields, kKind);
  if (!kind.empty() && kind != "exposure" && kind != "action")
    return BadField("kind", kind, "exposure or action needed");
  const bool is_action = kind.empty() ? event.action != ActionType::kNone : kind == "action";
  event.kind = is_action ? EventKind::kAction : EventKind::kExposure;
  event.item_id = Id(Value(fields, kItemId));
  event.request_id = Id(Value(fields, kRequestId));
  event.exposure_id = Id(Value(fields, kExposureId));
  event.scene = Value(fields, kScene);
  for (const auto& [name, column] : context_) {
    if (!fields[column].empty()) event.context.push_back({name, std::string(fields[column])});
  }
  const auto add_embedding = [&event](std::string_view part) {
    return NumberField("embedding_ids", part, &event.embedding_ids.emplace_back());
  };
  if (auto s = ForEachPart(Value(fields, kEmbeddingIds), add_embedding); !s.ok()) return s;
  const std::string_view event_id = Value(fields, kEventId);
  event.event_id = event_id.empty() ? DerivedEventId(event) : Id(event_id);
  return Finish(std::string(Value(fields, kUser)), std::move(event), label, label_us, rows);
}

// Adds the event and, for a label other than 0, the action that the label stands for.
absl::Status RowReader::Finish(std::string user, Event event, double label, int64_t label_us,
                               std::vector<ImportedEvent>* rows) const {
  if (user.empty() || user.size() > kUserBytesMax) {
    return Bad(absl::StrCat("user: ", user.size(), " bytes, 1 to ", kUserBytesMax, " needed"));
  }
  if (auto status = ValidateEvent(event); !status.ok()) return status;
  if (label == 0) {
    rows->push_back({std::move(user), std::move(event)});
    return absl::OkStatus();
  }
  if (event.kind != EventKind::kExposure) return Bad("label: only an exposure has one");
  Event action;
  action.kind = EventKind::kAction;
  action.time_us = label_us >= 0 ? label_us : event.time_us;
  action.item_id = event.item_id;
  action.request_id = event.request_id;
  action.exposure_id = event.event_id;
  action.value = static_cast<float>(label);
  const auto type = mapping_.constants.find("label_action");
  const absl::StatusOr<ActionType> parsed =
      ActionTypeFromName(type == mapping_.constants.end() ? "click" : std::string_view(type->second));
  if (!parsed.ok()) return parsed.status();
  action.action = *parsed;
  action.event_id = DerivedEventId(action);
  if (auto status = ValidateEvent(action); !status.ok())
    return Bad(absl::StrCat("label: ", std::string(status.message())));
  if (action.time_us < event.time_us) return Bad("label_time_us: before the exposure");
  rows->push_back({user, std::move(event)});
  rows->push_back({std::move(user), std::move(action)});
  return absl::OkStatus();
}

absl::Status RowReader::FinishItem(Item item, std::vector<Item>* rows) const {
  if (mapping_.title_year && item.year == 0) item.year = TitleYear(item.title);
  if (item.categories.size() == 1 && item.categories[0] == "(no genres listed)") item.categories.clear();
  if (auto status = ValidateItem(item); !status.ok()) return status;
  rows->push_back(std::move(item));
  return absl::OkStatus();
}

absl::Status RowReader::ReadCsvItem(const std::vector<std::string_view>& fields, std::vector<Item>* rows) const {
  if (fields.size() != columns_) return Bad(absl::StrCat(fields.size(), " fields, the header has ", columns_));
  Item item;
  const std::string_view id = Value(fields, kItemId);
  if (id.empty()) return Bad("item_id: missing");
  item.item_id = Id(id);
  item.title = Value(fields, kTitle);
  item.text = Value(fields, kText);
  if (auto s = NumberField("year", Value(fields, kYear), &item.year); !s.ok()) return s;
  const auto add_category = [&item](std::string_view part) {
    item.categories.emplace_back(part);
    return absl::OkStatus();
  };
  if (auto s = ForEachPart(Value(fields, kCategories), add_category); !s.ok()) return s;
  const auto add_sid = [&item](std::string_view part) { return NumberField("sid", part, &item.sid.emplace_back()); };
  if (auto s = ForEachPart(Value(fields, kSid), add_sid); !s.ok()) return s;
  const auto add_number = [&item](std::string_view part) {
    return NumberField("embedding", part, &item.embedding.emplace_back());
  };
  if (auto s = ForEachPart(Value(fields, kEmbedding), add_number); !s.ok()) return s;
  item.embedding_space = Value(fields, kEmbeddingSpace);
  for (const auto& [name, column] : numbers_) {
    if (fields[column].empty()) continue;
    if (auto s = NumberField("numbers." + name, fields[column], &item.numbers[name]); !s.ok()) return s;
  }
  for (const auto& [name, column] : strings_) {
    if (!fields[column].empty()) item.strings[name] = fields[column];
  }
  return FinishItem(std::move(item), rows);
}

namespace {

// The object with its keys renamed by the mapping; under a mapping, keys that are no field are left out.
json Renamed(json object, const ImportMapping& mapping, bool (*known)(std::string_view)) {
  json result = json::object();
  for (const auto& [field, column] : mapping.columns) {
    if (const auto found = object.find(column); found != object.end()) result[field] = *found;
  }
  for (auto& [key, value] : object.items()) {
    const std::string field(FieldOfName(key));
    const bool keep = mapping.mapped() ? known(field) && !mapping.columns.contains(field) : true;
    if (keep && !result.contains(field)) result[field] = std::move(value);
  }
  return result;
}

// Moves "context.x" keys that a mapping made into the object "context".
void Nest(const char* prefix, json* object) {
  const std::string start = std::string(prefix) + ".";
  std::vector<std::string> keys;
  for (const auto& [key, value] : object->items()) {
    if (key.starts_with(start)) keys.push_back(key);
  }
  for (const std::string& key : keys) {
    if (!object->contains(prefix)) (*object)[prefix] = json::object();
    if ((*object)[prefix].is_object()) (*object)[prefix][key.substr(start.size())] = (*object)[key];
    object->erase(key);
  }
}

// A time given as number or text in the mapping's unit, as whole microseconds in `object`.
absl::Status ScaleTime(const char* key, int64_t unit_us, json* object) {
  const auto found = object->find(key);
  if (found == object->end() || found->is_null()) return absl::OkStatus();
  if (!found->is_number() && !found->is_string()) return Bad(absl::StrCat(key, ": a number needed"));
  int64_t time_us = 0;
  const std::string text = found->is_string() ? found->get<std::string>() : found->dump();
  if (auto status = TimeField(key, text, unit_us, &time_us); !status.ok()) return status;
  *found = time_us;
  return absl::OkStatus();
}

absl::Status TextKey(const char* key, const json& object, std::string* out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return absl::OkStatus();
  if (!found->is_string() && !found->is_number_integer())
    return Bad(absl::StrCat(key, ": text or a whole number needed"));
  *out = found->is_string() ? found->get<std::string>() : found->dump();
  return absl::OkStatus();
}

absl::Status LabelKey(const json& object, double* label) {
  const auto found = object.find("label");
  if (found == object.end() || found->is_null()) return absl::OkStatus();
  if (found->is_boolean()) {
    *label = found->get<bool>() ? 1 : 0;
  } else if (found->is_number()) {
    *label = found->get<double>();
  } else {
    return Bad("label: a number or true or false needed");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RowReader::ReadJsonEvent(std::string_view line, std::vector<ImportedEvent>* rows) const {
  absl::StatusOr<json> parsed = ParseJsonObject(line);
  if (!parsed.ok()) return parsed.status();
  json object = Renamed(*std::move(parsed), mapping_, IsEventField);
  Nest("context", &object);
  for (const auto& [field, value] : mapping_.constants) {
    if (field != "label_action" && (!object.contains(field) || object[field].is_null())) object[field] = value;
  }
  if (auto s = ScaleTime("time_us", mapping_.time_unit_us, &object); !s.ok()) return s;
  if (auto s = ScaleTime("label_time_us", mapping_.time_unit_us, &object); !s.ok()) return s;
  std::string user;
  if (auto s = TextKey("user", object, &user); !s.ok()) return s;
  double label = 0;
  if (auto s = LabelKey(object, &label); !s.ok()) return s;
  const int64_t label_us = object.contains("label_time_us") && object["label_time_us"].is_number_integer()
                               ? object["label_time_us"].get<int64_t>()
                               : -1;
  absl::StatusOr<Event> event = EventFromJson(object);
  if (!event.ok()) return event.status();
  return Finish(std::move(user), *std::move(event), label, label_us, rows);
}

absl::Status RowReader::ReadJsonItem(std::string_view line, std::vector<Item>* rows) const {
  absl::StatusOr<json> parsed = ParseJsonObject(line);
  if (!parsed.ok()) return parsed.status();
  json object = Renamed(*std::move(parsed), mapping_, IsItemField);
  Nest("numbers", &object);
  Nest("strings", &object);
  absl::StatusOr<Item> item = ItemFromJson(object);
  if (!item.ok()) return item.status();
  return FinishItem(*std::move(item), rows);
}

}  // namespace backstory
