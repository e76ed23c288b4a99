#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/io/event_json.h"
#include "models/golden.h"
#include "models/golden_lines.h"
#include "nlohmann/json.hpp"

namespace backstory {
namespace {

using golden::Bad;
using golden::ReadNumber;
using golden::ReadUnsigned;
using golden::Under;
using nlohmann::json;

constexpr size_t kTextBytesMax = 8192;
constexpr size_t kColumnsMax = 64;

absl::Status ReadText(const json& value, const std::string& key, std::string* out) {
  if (!value.is_string()) return Bad(key, "not a text");
  *out = value.get_ref<const std::string&>();
  if (out->size() > kTextBytesMax) return Bad(key, absl::StrCat("exceeds ", kTextBytesMax, " bytes"));
  return absl::OkStatus();
}

// Calls `read(value, key path)` for every element of an array.
absl::Status ForEach(const json& value, const std::string& key, size_t max,
                     const std::function<absl::Status(const json&, const std::string&)>& read) {
  if (!value.is_array()) return Bad(key, "not an array");
  if (value.size() > max) return Bad(key, absl::StrCat(value.size(), " elements exceed ", max));
  for (size_t i = 0; i < value.size(); ++i) {
    if (absl::Status s = read(value[i], absl::StrCat(key, "[", i, "]")); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// Calls the reader of each member; a member without a reader is an error.
using Readers = std::map<std::string, std::function<absl::Status(const json&, const std::string&)>>;
absl::Status ReadObject(const json& value, const std::string& key, const Readers& readers) {
  if (!value.is_object()) return Bad(key, "not an object");
  for (const auto& [name, member] : value.items()) {
    const std::string path = key.empty() ? name : absl::StrCat(key, ".", name);
    const auto reader = readers.find(name);
    if (reader == readers.end()) return Bad(path, "unknown key");
    if (absl::Status s = reader->second(member, path); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status ReadEvents(const json& value, const std::string& key, std::vector<Event>* out) {
  return ForEach(value, key, kGoldenEventsMax, [&](const json& v, const std::string& k) {
    auto event = EventFromJson(v);
    if (!event.ok()) return Under(k, event.status());
    if (event->tombstone) return Bad(k, "a tombstone: golden cases list live events");
    if (!out->empty() && !CanonicalLess(out->back(), *event)) return Bad(k, "not after the one before");
    out->push_back(*std::move(event));
    return absl::OkStatus();
  });
}

absl::Status ReadItems(const json& value, const std::string& key, std::map<uint64_t, Item>* out) {
  return ForEach(value, key, kGoldenEventsMax, [&](const json& v, const std::string& k) {
    auto item = ItemFromJson(v);
    if (!item.ok()) return Under(k, item.status());
    const uint64_t id = item->item_id;
    if (!out->emplace(id, *std::move(item)).second) return Bad(k, absl::StrCat("item ", id, " twice"));
    return absl::OkStatus();
  });
}

absl::Status ReadCell(const json& value, const std::string& key, ItemCounts* out) {
  uint64_t action = 0, bin = 0, count = 0;
  const absl::Status status = ReadObject(
      value, key,
      {{"action", [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, UINT16_MAX, &action); }},
       {"value_bin", [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, 15, &bin); }},
       {"count", [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, UINT64_MAX, &count); }}});
  if (!status.ok()) return status;
  const ItemCounts::Cell cell{static_cast<uint16_t>(action), static_cast<uint8_t>(bin), count};
  if (count == 0) return Bad(key, "count 0");
  if (!out->cells.empty() &&
      std::pair(out->cells.back().action, out->cells.back().value_bin) >= std::pair(cell.action, cell.value_bin)) {
    return Bad(key, "not ascending by (action, value_bin)");
  }
  out->cells.push_back(cell);
  return absl::OkStatus();
}

absl::Status ReadCounts(const json& value, const std::string& key, std::map<uint64_t, ItemCounts>* out) {
  if (!value.is_object()) return Bad(key, "not an object");
  for (const auto& [id, member] : value.items()) {
    ItemCounts counts;
    const absl::Status status = ReadObject(
        member, absl::StrCat(key, ".", id),
        {{"exposures",
          [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, UINT64_MAX, &counts.exposures); }},
         {"cells", [&](const json& v, const std::string& k) {
            return ForEach(v, k, 1 << 20,
                           [&](const json& c, const std::string& ck) { return ReadCell(c, ck, &counts); });
          }}});
    if (!status.ok()) return status;
    if (!out->emplace(IdFromText(id), std::move(counts)).second) return Bad(key, absl::StrCat("item ", id, " twice"));
  }
  return absl::OkStatus();
}

absl::Status ReadFeatures(const json& value, const std::string& key, FeatureMap* out) {
  if (!value.is_object()) return Bad(key, "not an object");
  if (value.size() > kColumnsMax) return Bad(key, absl::StrCat("more than ", kColumnsMax));
  for (const auto& [name, member] : value.items()) {
    FeatureValue feature;
    feature.is_number = member.is_number();
    const std::string path = absl::StrCat(key, ".", name);
    const absl::Status status =
        feature.is_number ? ReadNumber(member, path, &feature.number) : ReadText(member, path, &feature.text);
    if (!status.ok()) return status;
    out->emplace(name, std::move(feature));
  }
  return absl::OkStatus();
}

absl::Status ReadCandidates(const json& value, const std::string& key, CandidateColumns* out) {
  const auto number = [](std::vector<float>* column) {
    return [column](const json& v, const std::string& k) {
      double x = NAN;  // null: absent for this candidate
      if (absl::Status s = v.is_null() ? absl::OkStatus() : ReadNumber(v, k, &x); !s.ok()) return s;
      column->push_back(static_cast<float>(x));
      return absl::OkStatus();
    };
  };
  const auto text = [](std::vector<std::string>* column) {
    return [column](const json& v, const std::string& k) { return ReadText(v, k, &column->emplace_back()); };
  };
  const auto id = [out](const json& v, const std::string& k) {
    return ReadUnsigned(v, k, UINT64_MAX, &out->item_ids.emplace_back());
  };
  // Reads {"column": [...], ...}.
  const auto columns = [](auto* map, auto element) {
    return [map, element](const json& v, const std::string& k) -> absl::Status {
      if (!v.is_object()) return Bad(k, "not an object");
      if (v.size() > kColumnsMax) return Bad(k, absl::StrCat("more than ", kColumnsMax));
      for (const auto& [name, member] : v.items()) {
        if (absl::Status s = ForEach(member, absl::StrCat(k, ".", name), kGoldenCandidatesMax, element(&(*map)[name]));
            !s.ok()) {
          return s;
        }
      }
      return absl::OkStatus();
    };
  };
  const absl::Status status = ReadObject(
      value, key,
      {{"item_ids", [&](const json& v, const std::string& k) { return ForEach(v, k, kGoldenCandidatesMax, id); }},
       {"numbers", columns(&out->numbers, number)},
       {"texts", columns(&out->texts, text)}});
  if (!status.ok()) return status;
  const auto ragged = [&](const auto& map) {
    for (const auto& [name, column] : map) {
      if (column.size() != out->item_ids.size()) return true;
    }
    return false;
  };
  if (ragged(out->numbers) || ragged(out->texts)) return Bad(key, "a column does not have one value per item id");
  return absl::OkStatus();
}

absl::Status ReadLogits(const json& value, const std::string& key, size_t candidates, std::vector<float>* out) {
  size_t tasks = 0;
  const absl::Status status = ForEach(value, key, kGoldenCandidatesMax, [&](const json& row, const std::string& k) {
    if (!row.is_array() || row.empty()) return Bad(k, "not a row of one logit per task");
    if (tasks == 0) tasks = row.size();
    if (row.size() != tasks) return Bad(k, absl::StrCat(row.size(), " logits, the first row has ", tasks));
    return ForEach(row, k, kColumnsMax, [&](const json& v, const std::string& vk) {
      double logit = 0;
      if (absl::Status s = ReadNumber(v, vk, &logit); !s.ok()) return s;
      out->push_back(static_cast<float>(logit));
      return absl::OkStatus();
    });
  });
  if (!status.ok()) return status;
  if (value.size() != candidates) return Bad(key, absl::StrCat(value.size(), " rows for ", candidates, " candidates"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GoldenCase> GoldenFromJson(std::string_view line) {
  // JSON parsers may take a zero byte for the end of the text.
  if (line.find('\0') != std::string_view::npos) return absl::InvalidArgumentError("not JSON: has a zero byte");
  auto parsed = ParseJsonObject(line);
  if (!parsed.ok()) return parsed.status();
  GoldenCase golden;
  uint64_t now_us = 0;
  const json* logits = nullptr;
  const absl::Status status = ReadObject(
      *parsed, "",
      {{"name", [&](const json& v, const std::string& k) { return ReadText(v, k, &golden.name); }},
       {"user", [&](const json& v, const std::string& k) { return ReadText(v, k, &golden.user); }},
       {"scene", [&](const json& v, const std::string& k) { return ReadText(v, k, &golden.scene); }},
       {"now_us", [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, INT64_MAX, &now_us); }},
       {"request_id",
        [&](const json& v, const std::string& k) { return ReadUnsigned(v, k, UINT64_MAX, &golden.request_id); }},
       {"events", [&](const json& v, const std::string& k) { return ReadEvents(v, k, &golden.events); }},
       {"items", [&](const json& v, const std::string& k) { return ReadItems(v, k, &golden.items); }},
       {"counts", [&](const json& v, const std::string& k) { return ReadCounts(v, k, &golden.counts); }},
       {"features", [&](const json& v, const std::string& k) { return ReadFeatures(v, k, &golden.features); }},
       {"candidates", [&](const json& v, const std::string& k) { return ReadCandidates(v, k, &golden.candidates); }},
       {"tolerance", [&](const json& v, const std::string& k) { return ReadNumber(v, k, &golden.tolerance); }},
       {"logits", [&](const json& v, const std::string&) {
          logits = &v;
          return absl::OkStatus();
        }}});
  if (!status.ok()) return status;
  if (golden.name.empty()) return Bad("name", "missing");
  if (!parsed->contains("now_us")) return Bad("now_us", "missing");
  if (golden.candidates.item_ids.empty()) return Bad("candidates.item_ids", "missing or empty");
  if (!(golden.tolerance > 0 && golden.tolerance <= kGoldenTolerance)) {
    return Bad("tolerance", absl::StrCat(golden.tolerance, " is outside (0, ", kGoldenTolerance, "]"));
  }
  golden.now_us = static_cast<int64_t>(now_us);
  if (logits != nullptr) {
    const absl::Status read = ReadLogits(*logits, "logits", golden.candidates.item_ids.size(), &golden.logits);
    if (!read.ok()) return read;
  }
  return golden;
}

std::string GoldenToJson(const GoldenCase& golden, size_t tasks) {
  json out = {{"name", golden.name}, {"user", golden.user}, {"scene", golden.scene}, {"now_us", golden.now_us}};
  if (golden.request_id != 0) out["request_id"] = golden.request_id;
  if (golden.tolerance != kGoldenTolerance) out["tolerance"] = golden.tolerance;
  out["events"] = json::array();
  for (const Event& event : golden.events) out["events"].push_back(EventToJson(event));
  out["items"] = json::array();
  for (const auto& [id, item] : golden.items) out["items"].push_back(ItemToJson(item));
  out["counts"] = json::object();
  for (const auto& [id, counts] : golden.counts) {
    json& entry = out["counts"][absl::StrCat(id)];
    entry = {{"exposures", counts.exposures}, {"cells", json::array()}};
    for (const auto& cell : counts.cells) {
      entry["cells"].push_back({{"action", cell.action}, {"value_bin", cell.value_bin}, {"count", cell.count}});
    }
  }
  out["features"] = json::object();
  for (const auto& [name, value] : golden.features) {
    if (value.is_number) {
      out["features"][name] = value.number;
    } else {
      out["features"][name] = value.text;
    }
  }
  out["candidates"] = {{"item_ids", golden.candidates.item_ids},
                       {"numbers", golden.candidates.numbers},
                       {"texts", golden.candidates.texts}};
  for (size_t i = 0; tasks > 0 && i + tasks <= golden.logits.size(); i += tasks) {
    out["logits"].push_back(std::vector<float>(golden.logits.begin() + i, golden.logits.begin() + i + tasks));
  }
  return out.dump();
}

absl::StatusOr<std::vector<GoldenCase>> ParseGoldens(std::string_view text, std::string_view source) {
  return golden::ParseLines<GoldenCase>(text, source, GoldenFromJson);
}

}  // namespace backstory
