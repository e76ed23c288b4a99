#include "serving/engine/experiments/log_reader.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/exposure_log.h"
#include "serving/engine/experiments/rotating_log.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr size_t kProblemsMax = 20;
constexpr size_t kLineBytesMax = 1 << 20;

// Calls `line` for each line; it throws what nlohmann throws, or returns a reason.
absl::Status ReadLines(const std::string& path, const std::function<std::string(const json&)>& use, ReadReport* report) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::string text;
  for (uint64_t number = 1; std::getline(file, text); ++number) {
    const bool ended = !file.eof();
    if (text.empty()) continue;
    std::string reason;
    try {
      reason = text.size() > kLineBytesMax ? "longer than 1 MiB" : use(json::parse(text));
    } catch (const json::exception& e) {
      reason = e.what();
    }
    if (reason.empty()) {
      ++report->lines;
    } else if (!ended) {
      ++report->torn;
    } else {
      ++report->bad;
      if (report->problems.size() < kProblemsMax) report->problems.push_back(absl::StrCat(path, ":", number, ": ", reason));
    }
  }
  if (file.bad()) return absl::DataLossError(absl::StrCat("reading ", path, " failed"));
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadExposures(const std::vector<std::string>& paths, const std::function<void(LoggedExposure)>& each,
                           ReadReport* report) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    auto segments = ListSegments(path, "exposures");
    if (!segments.ok()) return segments.status();
    if (segments->empty()) return absl::NotFoundError(absl::StrCat(path, " holds no exposures-*.jsonl"));
    files.insert(files.end(), segments->begin(), segments->end());
  }
  const auto use = [&](const json& line) -> std::string {
    const std::string& type = line.at("type").get_ref<const std::string&>();
    if (type == "dropped") report->dropped += line.at("records").get<uint64_t>();
    if (type == "dropped" || type == "final") return "";
    if (type != "exposure") return absl::StrCat("unknown type \"", type, "\"");
    LoggedExposure exposure;
    exposure.time_us = line.at("time_us").get<int64_t>();
    line.at("layer").get_to(exposure.layer);
    line.at("experiment").get_to(exposure.experiment);
    line.at("arm").get_to(exposure.arm);
    line.at("unit").get_to(exposure.unit);
    line.at("unit_hash").get_to(exposure.unit_hash);
    line.at("reason").get_to(exposure.reason);
    exposure.config_version = line.value("config_version", "");
    each(std::move(exposure));
    return "";
  };
  for (const std::string& file : files) {
    if (const absl::Status status = ReadLines(file, use, report); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadOutcomes(const std::string& path, const std::string& key, const std::function<void(Outcome)>& each,
                          ReadReport* report) {
  const auto use = [&](const json& line) -> std::string {
    Outcome outcome;
    outcome.time_us = line.at("time_us").get<int64_t>();
    outcome.label = line.at("label").get<double>();
    outcome.has_predicted = line.contains("predicted");
    if (outcome.has_predicted) outcome.predicted = line["predicted"].get<double>();
    if (!std::isfinite(outcome.label) || !std::isfinite(outcome.predicted)) return "label and predicted must be finite";
    bool any = false;
    if (line.contains("unit_hash")) {
      line.at("unit").get_to(outcome.unit);
      line["unit_hash"].get_to(outcome.unit_hash);
      each(outcome);
      any = true;
    }
    for (const char* unit : {"user", "device", "session"}) {
      if (!line.contains(unit)) continue;
      if (key.empty()) return absl::StrCat("raw id in \"", unit, "\", and no key to hash it with");
      outcome.unit = unit;
      outcome.unit_hash = UnitHash(key, unit, line[unit].get_ref<const std::string&>());
      each(outcome);
      any = true;
    }
    return any ? "" : "no user, device, session or unit_hash";
  };
  return ReadLines(path, use, report);
}

}  // namespace backstory
