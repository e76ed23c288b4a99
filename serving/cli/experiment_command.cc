#include "serving/cli/experiment_command.h"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "serving/cli/experiment_analysis.h"
#include "serving/cli/experiment_files.h"
#include "serving/engine/experiments/exposure_log.h"
#include "serving/engine/experiments/simulate.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr char kExamples[] = R"(Examples:
  backstory experiment lint experiments.textproto --active running.textproto
  backstory experiment explain experiments.textproto --user ann --scene home --feature country=de
  backstory experiment simulate experiments.textproto --users 1000000
  backstory experiment srm experiments.textproto --exposures log/
  backstory experiment report experiments.textproto --experiment longer --exposures log/ --outcomes clicks.jsonl --key-file key
Exit codes: 0 fine, 1 a check failed (problems, mismatch), 2 usage, 3 configuration invalid.)";

struct Flags {
  std::string file, active;
  Traffic traffic;
  Units units;
  std::vector<std::string> features;
  int64_t users = 100'000;
  std::string exposures, outcomes, key_file;
  std::vector<std::string> effects;
  SimulatedTruth truth;
  bool json = false;
};

void Lint(const Flags& flags) {
  const std::vector<std::string> problems = ExperimentProblems(flags.file, flags.active);
  if (flags.json) {
    std::cout << json{{"file", flags.file}, {"problems", problems}}.dump() << "\n";
  } else {
    for (const std::string& problem : problems) std::cout << problem << "\n";
    if (problems.empty()) std::cerr << flags.file << ": no problems\n";
  }
  if (!problems.empty()) throw CLI::RuntimeError(kExitConfig);
}

void Explain(const Flags& flags) {
  const auto plan = LoadExperimentPlan(flags.file);
  const FeatureMap features = ParseFeatures(flags.features);
  const std::vector<std::string> lines = plan->Explain(flags.traffic.ns, flags.traffic.scene, flags.units, features);
  if (!flags.json) {
    for (const std::string& line : lines) std::cout << line << "\n";
    return;
  }
  json out{{"config_version", plan->config().version}, {"path", lines}, {"parameters", json::object()}, {"exposures", json::array()}};
  const Assignment assignment = plan->Assign(flags.traffic.ns, flags.traffic.scene, flags.units, features);
  for (const LayerAssignment& layer : assignment.layers) {
    for (const auto& [name, value] : layer.parameters) out["parameters"][name] = value;
    for (const Exposure& e : layer.exposures) {
      out["exposures"].push_back({{"layer", e.layer}, {"experiment", e.experiment}, {"arm", e.arm}, {"unit", e.unit}, {"reason", e.reason}});
    }
  }
  std::cout << out.dump() << "\n";
}

void Parameters(const Flags& flags) {
  json out = json::array();
  for (const ParameterSpec& spec : ParameterRegistry::Builtin().specs()) {
    if (spec.scope == ParameterScope::kProcess) continue;
    const bool number = std::holds_alternative<int64_t>(spec.default_value) || std::holds_alternative<double>(spec.default_value);
    const std::string bounds = number ? absl::StrFormat("%.15g..%.15g", spec.min, spec.max)
                               : spec.max_bytes > 0 ? absl::StrFormat("<= %d bytes", spec.max_bytes)
                                                    : "true, false";
    const std::string scope(ScopeName(spec.scope));
    if (flags.json) {
      out.push_back({{"name", spec.name}, {"scope", scope}, {"default", ToText(spec.default_value)}, {"bounds", bounds}, {"description", spec.description}});
    } else {
      std::cout << absl::StrFormat("%-22s %-8s default %-10s %s\n    %s\n", spec.name, scope, ToText(spec.default_value), bounds, spec.description);
    }
  }
  if (flags.json) std::cout << out.dump() << "\n";
}

std::vector<Units> MadeUpUnits(int64_t count) {
  std::vector<Units> units;
  for (int64_t n = 0; n < count; ++n) {
    units.push_back({absl::StrCat("user-", n), absl::StrCat("device-", n), absl::StrCat("session-", n)});
  }
  return units;
}

// Exposures as a server would log them, and outcomes with raw user ids as a team would have them.
void WriteLogs(const Flags& flags, const ExperimentPlan& plan, const Traffic& traffic, const std::vector<Units>& units) {
  SimulatedTruth truth = flags.truth;
  for (const std::string& text : flags.effects) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || !absl::SimpleAtod(text.substr(equals + 1), &truth.effects[text.substr(0, equals)])) {
      FailCommand(kExitUsage, "--effect " + text + ": want experiment/arm=0.01");
    }
  }
  std::ofstream outcomes(flags.outcomes);
  auto directory = OpenLogDirectory(flags.exposures);
  CheckOk(directory.status(), "--exposures");
  MemoryMetrics metrics;
  ExposureLogOptions options;
  options.key = ReadKeyFile(flags.key_file);
  options.queue_records_max = units.size() + 1;
  auto log = ExposureLog::Open(std::move(options), directory->get(), SystemClock(), &metrics);
  CheckOk(log.status(), "--key-file");
  SimulateLogs(
      plan, traffic, units, truth, [&](const ExposureRecord& record) { (*log)->Write(record); },
      [&](const Units& unit, const Outcome& outcome) {
        outcomes << json{{"time_us", outcome.time_us}, {"user", unit.user}, {"label", outcome.label}, {"predicted", outcome.predicted}}.dump()
                 << "\n";
      });
  CheckOk((*log)->Flush(), flags.exposures);
  outcomes.close();
  if (!outcomes) FailCommand(kExitFailed, "cannot write " + flags.outcomes);
}

void RunSimulate(const Flags& flags) {
  const auto plan = LoadExperimentPlan(flags.file);
  Traffic traffic = flags.traffic;
  traffic.features = ParseFeatures(flags.features);
  const std::vector<Units> units = MadeUpUnits(flags.users);
  const Simulation simulation = Simulate(*plan, traffic, units);
  if (flags.outcomes.empty() != flags.exposures.empty()) FailCommand(kExitUsage, "--exposures and --outcomes go together");
  if (!flags.outcomes.empty()) WriteLogs(flags, *plan, traffic, units);
  json out{{"units", simulation.units}, {"held_out", simulation.held_out}, {"experiments", json::array()}};
  bool mismatch = false;
  for (const SimulatedExperiment& experiment : simulation.experiments) {
    mismatch |= experiment.ratio.mismatch;
    json arms = json::array();
    for (const SimulatedArm& arm : experiment.arms) {
      arms.push_back({{"arm", arm.name}, {"weight", arm.weight}, {"units", arm.units}});
    }
    out["experiments"].push_back({{"layer", experiment.layer}, {"experiment", experiment.experiment}, {"units", experiment.units},
                                  {"arms", arms}, {"srm_p", experiment.ratio.p}, {"srm", experiment.ratio.mismatch}});
  }
  if (flags.json) {
    std::cout << out.dump() << "\n";
  } else {
    std::cout << absl::StrFormat("%d users, %d held out\n", simulation.units, simulation.held_out);
    for (const SimulatedExperiment& experiment : simulation.experiments) {
      std::cout << absl::StrFormat("%s / %s: %d units (%.2f %%), sample ratio p = %.3f\n", experiment.layer, experiment.experiment,
                                   experiment.units, 100.0 * experiment.units / simulation.units, experiment.ratio.p);
      for (const SimulatedArm& arm : experiment.arms) {
        std::cout << absl::StrFormat("  %-20s %8d units, %6.2f %% of them (configured %.2f %%)\n", arm.name, arm.units,
                                     100.0 * arm.units / experiment.units, arm.weight / 100.0);
      }
    }
  }
  if (mismatch) throw CLI::RuntimeError(kExitFailed);
}

void AddTraffic(CLI::App* command, const std::shared_ptr<Flags>& flags) {
  command->add_option("--namespace", flags->traffic.ns, "Namespace of the requests")->capture_default_str();
  command->add_option("--scene", flags->traffic.scene, "Scene of the requests");
  command->add_option("--feature", flags->features, "name=value, for targeting; repeatable");
}

}  // namespace

void AddExperimentCommand(CLI::App& app) {
  CLI::App* group = app.add_subcommand("experiment", "Check, explain, simulate and read A/B experiments");
  group->footer(kExamples);
  group->require_subcommand(1);
  auto flags = std::make_shared<Flags>();
  const auto add = [&](const char* name, const char* what, void (*run)(const Flags&)) {
    CLI::App* command = group->add_subcommand(name, what);
    command->add_flag("--json", flags->json, "One JSON object on standard output");
    command->callback([flags, run] { run(*flags); });
    return command;
  };
  CLI::App* lint = add("lint", "Print every problem of a configuration with file, line, path and reason", Lint);
  lint->add_option("file", flags->file, "Experiment configuration")->required();
  lint->add_option("--active", flags->active, "Configuration that runs now: check the change too");

  CLI::App* explain = add("explain", "Why does this unit get what it gets?", Explain);
  explain->add_option("file", flags->file, "Experiment configuration")->required();
  explain->add_option("--user", flags->units.user, "User id")->required();
  explain->add_option("--device", flags->units.device, "Device id");
  explain->add_option("--session", flags->units.session, "Session id");
  AddTraffic(explain, flags);

  add("parameters", "List what experiments may set, with bounds", Parameters);

  CLI::App* simulate = add("simulate", "Assign made-up users; optionally write logs of an experiment with a known effect", RunSimulate);
  simulate->add_option("file", flags->file, "Experiment configuration")->required();
  simulate->add_option("--users", flags->users, "How many")->capture_default_str()->check(CLI::Range(1, 10'000'000));
  AddTraffic(simulate, flags);
  simulate->add_option("--exposures", flags->exposures, "Directory to write an exposure log to");
  simulate->add_option("--outcomes", flags->outcomes, "File to write outcomes to");
  simulate->add_option("--key-file", flags->key_file, "Key of unit hashes (first line)");
  simulate->add_option("--effect", flags->effects, "experiment/arm=0.01: added to the rate of labels; repeatable");
  simulate->add_option("--base-rate", flags->truth.base_rate, "Rate of labels without effects")->capture_default_str();
  simulate->add_option("--impressions", flags->truth.impressions, "Of each user, in and before the experiment")->capture_default_str();
  simulate->add_option("--seed", flags->truth.seed, "Of the made-up outcomes")->capture_default_str();

  AddExperimentAnalysisCommands(*group);
}

}  // namespace backstory
