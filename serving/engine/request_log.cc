#include "serving/engine/request_log.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "features/hash.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr size_t kLineBytesMax = 16 << 20;

std::string_view CriticalityName(Criticality criticality) {
  switch (criticality) {
    case Criticality::kOnline:
      return "online";
    case Criticality::kBatch:
      return "batch";
    case Criticality::kShadow:
      return "shadow";
  }
  return "";
}

std::vector<std::string> IdTexts(const std::vector<uint64_t>& ids) {
  std::vector<std::string> texts;
  for (uint64_t id : ids) texts.push_back(std::to_string(id));
  return texts;
}

// Throws what nlohmann throws; QueryFromJsonLine catches.
uint64_t IdOf(const json& value) {
  const std::string& text = value.get_ref<const std::string&>();
  uint64_t id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw json::other_error::create(500, "\"" + text + "\" is not a decimal 64-bit id", &value);
  }
  return id;
}

// Cuts off what follows the last end of a line: a process that died while it wrote left it. Nothing if there is no
// file.
absl::Status CutHalfLine(const std::string& path) {
  constexpr int64_t kStep = 64 << 10;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::OkStatus();
  const int64_t size = file.tellg();
  int64_t end = size;  // everything before it is whole lines, or not looked at yet
  for (bool found = false; end > 0 && !found;) {
    std::string part(static_cast<size_t>(std::min(end, kStep)), '\0');
    file.seekg(end - static_cast<int64_t>(part.size()));
    if (!file.read(part.data(), static_cast<std::streamsize>(part.size()))) break;
    const size_t newline = part.rfind('\n');
    found = newline != std::string::npos;
    end -= static_cast<int64_t>(found ? part.size() - newline - 1 : part.size());
  }
  std::error_code error;
  if (file && end < size) std::filesystem::resize_file(path, static_cast<uint64_t>(end), error);
  if (file && !error) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("cannot read or cut request log ", path, ": ", error.message()));
}

RankQuery Parse(const json& line) {
  RankQuery query;
  query.ns = line.value("namespace", "default");
  query.units.user = line.at("user").get<std::string>();
  query.units.device = line.value("device", "");
  query.units.session = line.value("session", "");
  query.scene = line.value("scene", "");
  if (line.contains("request_id")) query.request_id = IdOf(line["request_id"]);
  query.now_us = line.value("now_us", int64_t{0});
  query.as_of.event_time_us = line.value("as_of_us", INT64_MAX);
  query.as_of.known_by_us = line.value("known_by_us", AsOf::kAnyIngestTime);
  const std::string criticality = line.value("criticality", "online");
  query.criticality = criticality == "batch"    ? Criticality::kBatch
                      : criticality == "shadow" ? Criticality::kShadow
                                                : Criticality::kOnline;
  if (line.contains("features")) {
    for (const auto& [name, value] : line["features"].items()) {
      FeatureValue feature;
      feature.is_number = value.is_number();
      feature.is_number ? feature.number = value.get<double>() : (feature.text = value.get<std::string>(), 0);
      query.features[name] = std::move(feature);
    }
  }
  for (const json& id : line.at("items")) query.candidates.item_ids.push_back(IdOf(id));
  if (line.contains("numbers")) line["numbers"].get_to(query.candidates.numbers);
  if (line.contains("texts")) line["texts"].get_to(query.candidates.texts);
  return query;
}

}  // namespace

bool InSample(const RankQuery& query, double fraction) {
  const uint64_t hash = HashBytes(query.ns + '\n' + query.units.user, HashU64(query.request_id, 1) ^ query.now_us);
  return static_cast<double>(hash >> 11) * 0x1p-53 < fraction;
}

std::string ToJsonLine(const RankQuery& query, const RankReply& reply) {
  json line{{"namespace", query.ns}, {"user", query.units.user}, {"items", IdTexts(query.candidates.item_ids)}};
  if (!query.units.device.empty()) line["device"] = query.units.device;
  if (!query.units.session.empty()) line["session"] = query.units.session;
  if (!query.scene.empty()) line["scene"] = query.scene;
  if (query.request_id != 0) line["request_id"] = std::to_string(query.request_id);
  line["now_us"] = query.now_us;
  if (query.as_of.event_time_us != INT64_MAX) line["as_of_us"] = query.as_of.event_time_us;
  if (query.as_of.known_by_us != AsOf::kAnyIngestTime) line["known_by_us"] = query.as_of.known_by_us;
  line["criticality"] = CriticalityName(query.criticality);
  for (const auto& [name, value] : query.features) {
    line["features"][name] = value.is_number ? json(value.number) : json(value.text);
  }
  if (!query.candidates.numbers.empty()) line["numbers"] = query.candidates.numbers;
  if (!query.candidates.texts.empty()) line["texts"] = query.candidates.texts;
  line["model"] = reply.model;
  line["version"] = reply.version;
  line["config_version"] = reply.config_version;
  line["seq"] = reply.seq;
  line["epoch"] = reply.epoch;
  for (const EffectiveParameter& parameter : reply.parameters) line["parameters"][parameter.name] = parameter.value;
  for (const ScoreColumn& column : reply.scores) line["scores"][column.task] = column.calibrated;
  // Ids are opaque bytes: what is not UTF-8 is replaced rather than refused.
  return line.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<RankQuery> QueryFromJsonLine(std::string_view line) {
  try {
    return Parse(json::parse(line));
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(e.what());
  }
}

absl::StatusOr<std::vector<RankQuery>> ReadRequestLog(const std::string& path, size_t records_max, size_t* unreadable) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("no request log ", path));
  std::vector<RankQuery> queries;
  absl::Status first;
  std::string line;
  for (size_t number = 1; queries.size() < records_max && std::getline(file, line); ++number) {
    if (line.empty()) continue;
    absl::StatusOr<RankQuery> query = line.size() > kLineBytesMax
                                          ? absl::InvalidArgumentError("line is longer than 16 MiB")
                                          : QueryFromJsonLine(line);
    const absl::Status status = query.ok() ? ValidateRankQuery(*query) : query.status();
    if (!status.ok()) {
      first.Update(absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", std::string(status.message()))));
      if (unreadable == nullptr) return first;
      ++*unreadable;
      continue;
    }
    queries.push_back(*std::move(query));
  }
  if (queries.empty() && !first.ok()) return first;
  return queries;
}

absl::StatusOr<std::unique_ptr<JsonLinesRecorder>> JsonLinesRecorder::Open(const std::string& path,
                                                                           uint64_t bytes_max) {
  if (absl::Status status = CutHalfLine(path); !status.ok()) return status;
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot open request log ", path, ": ", std::strerror(errno)));
  }
  std::fseek(file, 0, SEEK_END);
  return std::unique_ptr<JsonLinesRecorder>(
      new JsonLinesRecorder(file, static_cast<uint64_t>(std::ftell(file)), bytes_max));
}

JsonLinesRecorder::~JsonLinesRecorder() { std::fclose(file_); }

void JsonLinesRecorder::Record(const RankQuery& query, const RankReply& reply) {
  const std::string line = ToJsonLine(query, reply) + "\n";
  std::lock_guard lock(mutex_);
  if (bytes_ + line.size() > bytes_max_ || std::fwrite(line.data(), 1, line.size(), file_) != line.size()) {
    ++dropped_;
    return;
  }
  std::fflush(file_);
  bytes_ += line.size();
}

uint64_t JsonLinesRecorder::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

}  // namespace backstory
