#include "serving/engine/experiments/replay.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "serving/engine/request_log.h"

namespace backstory {
namespace {

absl::StatusOr<RankReply> RankNow(Engine* engine, RankQuery query) {
  std::promise<absl::StatusOr<RankReply>> promise;
  auto reply = promise.get_future();
  engine->Rank(std::move(query), [&promise](absl::StatusOr<RankReply> r) { promise.set_value(std::move(r)); });
  return reply.get();
}

// 0 if every bit is the same; infinity if tasks or sizes differ.
double LargestDifference(const RecordedRequest& recorded, const RankReply& reply) {
  if (recorded.scores.size() != reply.scores.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (const ScoreColumn& column : reply.scores) {
    const auto found = recorded.scores.find(column.task);
    if (found == recorded.scores.end() || found->second.size() != column.calibrated.size()) {
      return std::numeric_limits<double>::infinity();
    }
    for (size_t i = 0; i < column.calibrated.size(); ++i) {
      if (std::memcmp(&found->second[i], &column.calibrated[i], sizeof(float)) == 0) continue;
      const double difference = std::abs(static_cast<double>(found->second[i]) - column.calibrated[i]);
      largest = std::max({largest, difference, std::numeric_limits<double>::min()});
    }
  }
  return largest;
}

// 7 of "calibration-7/x0123456789abcdef".
uint32_t CalibrationOf(std::string_view config_version) {
  constexpr std::string_view kPrefix = "calibration-";
  uint32_t number = 0;
  if (!config_version.starts_with(kPrefix)) return 0;
  std::from_chars(config_version.data() + kPrefix.size(), config_version.data() + config_version.size(), number);
  return number;
}

}  // namespace

absl::StatusOr<RecordedRequest> RecordedFromJsonLine(std::string_view line) {
  auto query = QueryFromJsonLine(line);
  if (!query.ok()) return query.status();
  if (auto s = ValidateRankQuery(*query); !s.ok()) return s;
  RecordedRequest recorded;
  recorded.query = *std::move(query);
  try {
    const auto json = nlohmann::json::parse(line);
    json.at("model").get_to(recorded.model);
    json.at("version").get_to(recorded.version);
    recorded.calibration = CalibrationOf(json.value("config_version", ""));
    json.at("seq").get_to(recorded.seq);
    json.at("epoch").get_to(recorded.epoch);
    json.at("parameters").get_to(recorded.parameters);
    json.at("scores").get_to(recorded.scores);
  } catch (const nlohmann::json::exception& e) {
    return absl::InvalidArgumentError(e.what());
  }
  return recorded;
}

void ReplayAssigner::Use(std::map<std::string, std::string> parameters) {
  auto layer = std::make_shared<LayerAssignment>();
  layer->parameters = std::move(parameters);
  const std::lock_guard<std::mutex> lock(mutex_);
  layer_ = std::move(layer);
}

Assignment ReplayAssigner::Assign(const std::string&, const std::string&, const Units&, const FeatureMap&) const {
  Assignment assignment;
  assignment.config_version = "replay";
  const std::lock_guard<std::mutex> lock(mutex_);
  if (layer_ == nullptr) return assignment;
  assignment.layers.emplace_back(*layer_);
  assignment.owner = layer_;
  return assignment;
}

absl::StatusOr<ReplayResult> Replay(Engine* engine, ReplayAssigner* assigner, const RecordedRequest& recorded,
                                    const std::map<std::string, std::string>& changes) {
  std::map<std::string, std::string> parameters = recorded.parameters;
  for (const auto& [name, value] : changes) parameters[name] = value;
  RankQuery query = recorded.query;
  query.model = {recorded.model, recorded.version, ""};
  // Another version is a change like any other.
  if (const auto version = changes.find("model_version"); version != changes.end()) query.model.version = version->second;
  query.criticality = Criticality::kBatch;
  query.suppress_exposure = true;
  assigner->Use(std::move(parameters));
  auto reply = RankNow(engine, query);
  if (!reply.ok()) return reply.status();
  ReplayResult result;
  result.largest_difference = LargestDifference(recorded, *reply);
  result.reply = *std::move(reply);
  if (result.largest_difference == 0) return result;
  result.outcome = ReplayOutcome::kDifferent;
  if (!changes.empty() || (result.reply.seq == recorded.seq && result.reply.epoch == recorded.epoch)) return result;
  if (result.reply.epoch != recorded.epoch) {
    result.outcome = ReplayOutcome::kHistoryGone;
    return result;
  }
  // Late events: hide what was stored after the request.
  query.as_of.known_by_us = std::min(query.as_of.known_by_us, recorded.query.now_us);
  auto known = RankNow(engine, query);
  if (!known.ok()) return known.status();
  if (LargestDifference(recorded, *known) == 0) {
    result.outcome = ReplayOutcome::kEqualAsKnown;
    result.largest_difference = 0;
    result.reply = *std::move(known);
  }
  return result;
}

}  // namespace backstory
