#include "serving/cli/replay_command.h"

#include <fstream>
#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "serving/cli/serving_stack.h"
#include "serving/engine/experiments/replay.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr char kExamples[] = R"(Examples:
  backstory replay --store checkpoint --models models/zoo --log requests.jsonl
  backstory replay --store checkpoint --models models/zoo --log requests.jsonl --set history_rows=256 --out other.jsonl
The store must not be open in a server: replay on a checkpoint. Without --set every score must be equal, bit for bit.
Exit codes: 0 all equal (or --set), 1 some differ or could not be scored, 3 configuration invalid, 4 store damaged.)";

struct Flags {
  std::string store, models, log, out;
  std::vector<std::string> set;
  bool json = false;
};

struct Counts {
  uint64_t requests = 0, equal = 0, equal_as_known = 0, history_gone = 0, different = 0, failed = 0;
  double largest = 0;
};

std::map<std::string, std::string> Changes(const Flags& flags) {
  std::map<std::string, std::string> changes;
  for (const std::string& text : flags.set) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) FailCommand(kExitUsage, "--set " + text + ": want name=value");
    const std::string name = text.substr(0, equals), value = text.substr(equals + 1);
    if (const auto parsed = ParameterRegistry::Builtin().Parse(name, value); !parsed.ok()) {
      FailCommand(kExitUsage, "--set " + std::string(parsed.status().message()));
    }
    changes[name] = value;
  }
  return changes;
}

void Count(const ReplayResult& result, Counts* counts) {
  counts->largest = std::max(counts->largest, result.largest_difference);
  switch (result.outcome) {
    case ReplayOutcome::kEqual:
      ++counts->equal;
      break;
    case ReplayOutcome::kEqualAsKnown:
      ++counts->equal_as_known;
      break;
    case ReplayOutcome::kHistoryGone:
      ++counts->history_gone;
      break;
    case ReplayOutcome::kDifferent:
      ++counts->different;
      break;
  }
}

void Complain(const Flags& flags, uint64_t line, const std::string& what, Counts* counts) {
  constexpr uint64_t kComplaintsMax = 20;
  if (counts->failed + counts->different <= kComplaintsMax) std::cerr << flags.log << ":" << line << ": " << what << "\n";
}

// A version that nobody loaded yet is loaded when a record asks for it; the calibration that was in force is again.
absl::Status LoadVersion(Engine* engine, const RecordedRequest& recorded,
                         const std::map<std::string, std::string>& changes) {
  const auto other = changes.find("model_version");
  const std::string version = other == changes.end() ? recorded.version : other->second;
  if (!engine->models().Resolve({recorded.model, version, ""}).ok()) {
    if (absl::Status status = engine->models().Load(recorded.model, version); !status.ok()) return status;
  }
  const auto served = engine->models().Resolve({recorded.model, version, ""});
  if (!served.ok()) return served.status();
  const bool as_recorded = version != recorded.version || recorded.calibration == 0 ||
                           recorded.calibration == (*served)->calibration.number;
  if (as_recorded) return absl::OkStatus();
  return engine->models().SetCalibration(recorded.model, version, recorded.calibration).status();
}

void Run(const Flags& flags) {
  const std::map<std::string, std::string> changes = Changes(flags);
  std::ifstream log(flags.log);
  if (!log) FailCommand(kExitFailed, "cannot read " + flags.log);
  rpc::ServerConfig config;
  config.mutable_store()->set_directory(flags.store);
  config.mutable_models()->set_directory(flags.models);
  (*config.mutable_parameters())["concurrency_adaptive"] = "false";
  rpc::FillDefaults(&config);
  auto assigner = std::make_shared<ReplayAssigner>();
  auto stack = ServingStack::Open(config, {.assigner = assigner, .keep_choices = false});
  CheckOk(stack.status(), "store " + flags.store);
  Engine* engine = (*stack)->engine.get();
  CheckOk(engine->LoadModels(), "models " + flags.models);
  std::ofstream out;
  if (!flags.out.empty()) out.open(flags.out);
  Counts counts;
  std::string line;
  for (uint64_t number = 1; std::getline(log, line); ++number) {
    if (line.empty()) continue;
    ++counts.requests;
    const auto recorded = RecordedFromJsonLine(line);
    absl::Status status = recorded.status();
    if (status.ok()) status = LoadVersion(engine, *recorded, changes);
    const absl::StatusOr<ReplayResult> result =
        status.ok() ? Replay(engine, assigner.get(), *recorded, changes) : absl::StatusOr<ReplayResult>(status);
    if (!result.ok()) {
      ++counts.failed;
      Complain(flags, number, std::string(result.status().message()), &counts);
      continue;
    }
    Count(*result, &counts);
    if (result->outcome == ReplayOutcome::kDifferent && changes.empty()) {
      Complain(flags, number, absl::StrFormat("a score differs by %.3g", result->largest_difference), &counts);
    }
    if (!out.is_open()) continue;
    json scores;
    for (const ScoreColumn& column : result->reply.scores) scores[column.task] = column.calibrated;
    out << json{{"line", number}, {"version", result->reply.version}, {"scores", scores}}.dump() << "\n";
  }
  if (out.is_open() && !out.flush()) FailCommand(kExitFailed, "cannot write " + flags.out);
  if (flags.json) {
    std::cout << json{{"requests", counts.requests}, {"equal", counts.equal}, {"equal_as_known", counts.equal_as_known},
                      {"history_gone", counts.history_gone}, {"different", counts.different}, {"failed", counts.failed},
                      {"largest_difference", counts.largest}}.dump() << "\n";
  } else {
    std::cout << absl::StrFormat("%d requests: %d equal, %d equal as known then, %d with a history that is gone, %d different "
                                 "(by at most %.3g), %d failed\n",
                                 counts.requests, counts.equal, counts.equal_as_known, counts.history_gone, counts.different,
                                 counts.largest, counts.failed);
  }
  if (counts.failed > 0 || (counts.different > 0 && changes.empty())) throw CLI::RuntimeError(kExitFailed);
}

}  // namespace

void AddReplayCommand(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("replay", "Score recorded requests again and compare bit for bit");
  command->footer(kExamples);
  command->add_option("--store", flags->store, "A checkpoint of the store that answered")->required();
  command->add_option("--models", flags->models, "Model repository")->required();
  command->add_option("--log", flags->log, "Request log")->required();
  command->add_option("--set", flags->set, "name=value: score with another parameter (model_version too); repeatable");
  command->add_option("--out", flags->out, "Write the scores, JSON lines");
  command->add_flag("--json", flags->json, "One JSON object on standard output");
  command->callback([flags] { Run(*flags); });
}

}  // namespace backstory
