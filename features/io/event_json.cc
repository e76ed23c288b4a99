#include "features/io/event_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "features/event_rules.h"
#include "features/item_rules.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr int kJsonDepthMax = 8;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// Reads typed keys of one object; the first failure sticks.
class Reader {
 public:
  explicit Reader(const json& object) : object_(object) {}
  const absl::Status& status() const { return status_; }

  const json* Find(const char* key) {
    const auto found = object_.find(key);
    return !status_.ok() || found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void Fail(const char* key, const std::string& what) {
    if (status_.ok()) status_ = Bad(absl::StrCat(key, ": ", what));
  }
  // A whole number of T's range; ids may also be text.
  template <typename T>
  void Integer(const char* key, T* out) {
    if (const json* value = Find(key); value != nullptr && !ToInteger(*value, out)) {
      Fail(key, absl::StrCat("a whole number from ", std::numeric_limits<T>::min(), " to ",
                             std::numeric_limits<T>::max(), " needed"));
    }
  }
  void Id(const char* key, uint64_t* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (value->is_string()) {
      const std::string& text = value->get_ref<const std::string&>();
      if (text.empty()) return Fail(key, "empty text");
      *out = IdFromText(text);
    } else if (!ToInteger(*value, out)) {
      Fail(key, "a number from 0 to 2^64-1 or text needed");
    }
  }
  void Text(const char* key, std::string* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_string()) return Fail(key, "text needed");
    *out = value->get_ref<const std::string&>();
  }
  void Bool(const char* key, bool* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(key, "true or false needed");
    *out = value->get<bool>();
  }
  void Float(const char* key, float* out) {
    const json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_number()) return Fail(key, "a number needed");
    *out = static_cast<float>(value->get<double>());
  }
  template <typename T>
  static bool ToInteger(const json& value, T* out) {
    if (value.is_number_unsigned()) {
      const uint64_t number = value.get<uint64_t>();
      *out = static_cast<T>(number);
      return number <= static_cast<uint64_t>(std::numeric_limits<T>::max());
    }
    if (!value.is_number_integer()) return false;
    const int64_t number = value.get<int64_t>();
    *out = static_cast<T>(number);
    return std::numeric_limits<T>::is_signed && number >= static_cast<int64_t>(std::numeric_limits<T>::min());
  }

 private:
  const json& object_;
  absl::Status status_;
};

absl::Status CheckKeys(const json& object, const std::set<std::string_view>& known) {
  if (!object.is_object()) return Bad("a JSON object needed");
  for (const auto& [key, value] : object.items()) {
    if (!known.contains(key)) return Bad(absl::StrCat("unknown key '", key.substr(0, 64), "'"));
  }
  return absl::OkStatus();
}

std::string ContextText(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// {"name": "value"} (order of names) or [["name", "value"], ...] (order kept). Numbers become decimal text.
bool ReadContext(const json& value, std::vector<ContextField>* context) {
  const auto scalar = [](const json& v) { return v.is_string() || v.is_number() || v.is_boolean(); };
  if (value.is_object()) {
    for (const auto& [name, field] : value.items()) {
      if (!scalar(field)) return false;
      context->push_back({name, ContextText(field)});
    }
    return true;
  }
  if (!value.is_array()) return false;
  for (const json& pair : value) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !scalar(pair[1])) return false;
    context->push_back({pair[0].get<std::string>(), ContextText(pair[1])});
  }
  return true;
}

void ReadKind(Reader* reader, Event* event) {
  std::string kind = event->action == ActionType::kNone ? "exposure" : "action";
  reader->Text("kind", &kind);
  if (kind != "exposure" && kind != "action") reader->Fail("kind", "exposure or action needed");
  event->kind = kind == "action" ? EventKind::kAction : EventKind::kExposure;
}

void ReadAction(Reader* reader, Event* event) {
  const json* action = reader->Find("action");
  if (action == nullptr) return;
  const std::string name = action->is_string() ? action->get<std::string>() : action->dump();
  const absl::StatusOr<ActionType> type = ActionTypeFromName(name);
  if (!type.ok()) return reader->Fail("action", absl::StrCat("'", name.substr(0, 32), "' is no action type"));
  event->action = *type;
}

}  // namespace

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  std::string problem;
  const json::parser_callback_t check = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kJsonDepthMax) problem = absl::StrCat("nested deeper than ", kJsonDepthMax);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      problem = absl::StrCat("key '", parsed.get<std::string>().substr(0, 64), "' given twice");
    }
    return problem.empty();
  };
  try {
    json object = json::parse(text.begin(), text.end(), check);
    if (!problem.empty()) return Bad(problem);
    if (!object.is_object()) return Bad("a JSON object needed");
    return object;
  } catch (const json::exception& error) {
    return Bad(absl::StrCat("no JSON: ", error.what()));
  }
}

absl::StatusOr<Event> EventFromJson(const json& object) {
  static const std::set<std::string_view> kKeys = {
      "user",    "kind",  "event_id",      "revision",    "tombstone",    "time_us",
      "item_id", "scene", "action",        "request_id",  "position",     "value",
      "context", "label", "label_time_us", "exposure_id", "embedding_ids"};
  if (auto status = CheckKeys(object, kKeys); !status.ok()) return status;
  Reader reader(object);
  Event event;
  for (const char* required : {"time_us", "item_id"}) {
    if (reader.Find(required) == nullptr) reader.Fail(required, "missing");
  }
  ReadAction(&reader, &event);
  ReadKind(&reader, &event);
  reader.Integer("time_us", &event.time_us);
  reader.Id("item_id", &event.item_id);
  reader.Id("request_id", &event.request_id);
  reader.Id("exposure_id", &event.exposure_id);
  reader.Integer("revision", &event.revision);
  reader.Bool("tombstone", &event.tombstone);
  reader.Integer("position", &event.position);
  reader.Text("scene", &event.scene);
  reader.Float("value", &event.value);
  if (const json* context = reader.Find("context"); context != nullptr && !ReadContext(*context, &event.context)) {
    reader.Fail("context", "an object of texts and numbers, or an array of [name, value], needed");
  }
  if (const json* ids = reader.Find("embedding_ids"); ids != nullptr) {
    if (!ids->is_array()) reader.Fail("embedding_ids", "an array needed");
    for (const json& id : *ids) {
      if (!Reader::ToInteger(id, &event.embedding_ids.emplace_back()))
        reader.Fail("embedding_ids", "whole numbers needed");
    }
  }
  event.event_id = DerivedEventId(event);
  reader.Id("event_id", &event.event_id);
  if (!reader.status().ok()) return reader.status();
  if (auto status = ValidateEvent(event); !status.ok()) return status;
  return event;
}

json EventToJson(const Event& event) {
  json object = {{"kind", event.kind == EventKind::kAction ? "action" : "exposure"},
                 {"event_id", event.event_id},
                 {"time_us", event.time_us},
                 {"item_id", event.item_id}};
  if (event.revision != 0) object["revision"] = event.revision;
  if (event.tombstone) object["tombstone"] = true;
  if (event.request_id != 0) object["request_id"] = event.request_id;
  if (event.position != 0) object["position"] = event.position;
  if (!event.scene.empty()) object["scene"] = event.scene;
  if (event.action != ActionType::kNone) object["action"] = ActionTypeName(event.action);
  if (event.value != 0) object["value"] = event.value;
  if (event.exposure_id != 0) object["exposure_id"] = event.exposure_id;
  for (const ContextField& field : event.context) object["context"].push_back({field.name, field.value});
  if (!event.embedding_ids.empty()) object["embedding_ids"] = event.embedding_ids;
  return object;
}

absl::StatusOr<Item> ItemFromJson(const json& object) {
  static const std::set<std::string_view> kKeys = {"item_id", "categories", "sid",     "year",      "title",
                                                   "text",    "numbers",    "strings", "embedding", "embedding_space"};
  if (auto status = CheckKeys(object, kKeys); !status.ok()) return status;
  Reader reader(object);
  Item item;
  if (reader.Find("item_id") == nullptr) reader.Fail("item_id", "missing");
  reader.Id("item_id", &item.item_id);
  reader.Integer("year", &item.year);
  reader.Text("title", &item.title);
  reader.Text("text", &item.text);
  const auto each = [&reader](const char* key, bool object_needed, const auto& visit) {
    const json* values = reader.Find(key);
    if (values == nullptr) return;
    const bool right = object_needed ? values->is_object() : values->is_array();
    if (!right) return reader.Fail(key, object_needed ? "an object needed" : "an array needed");
    for (const auto& [name, value] : values->items()) {
      if (!visit(name, value)) return reader.Fail(key, "an entry of the wrong type");
    }
  };
  each("categories", false, [&](const std::string&, const json& value) {
    if (value.is_string()) item.categories.push_back(value.get<std::string>());
    return value.is_string();
  });
  each("sid", false,
       [&](const std::string&, const json& value) { return Reader::ToInteger(value, &item.sid.emplace_back()); });
  each("embedding", false, [&](const std::string&, const json& value) {
    if (value.is_number()) item.embedding.push_back(value.get<float>());
    return value.is_number();
  });
  reader.Text("embedding_space", &item.embedding_space);
  each("numbers", true, [&](const std::string& name, const json& value) {
    if (value.is_number()) item.numbers[name] = value.get<double>();
    return value.is_number();
  });
  each("strings", true, [&](const std::string& name, const json& value) {
    if (value.is_string()) item.strings[name] = value.get<std::string>();
    return value.is_string();
  });
  if (!reader.status().ok()) return reader.status();
  if (auto status = ValidateItem(item); !status.ok()) return status;
  return item;
}

json ItemToJson(const Item& item) {
  json object = {{"item_id", item.item_id}};
  if (!item.categories.empty()) object["categories"] = item.categories;
  if (!item.sid.empty()) object["sid"] = item.sid;
  if (item.year != 0) object["year"] = item.year;
  if (!item.embedding.empty()) object["embedding"] = item.embedding;
  if (!item.embedding_space.empty()) object["embedding_space"] = item.embedding_space;
  if (!item.title.empty()) object["title"] = item.title;
  if (!item.text.empty()) object["text"] = item.text;
  if (!item.numbers.empty()) object["numbers"] = item.numbers;
  if (!item.strings.empty()) object["strings"] = item.strings;
  return object;
}

}  // namespace backstory
