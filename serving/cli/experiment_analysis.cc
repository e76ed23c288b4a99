#include "serving/cli/experiment_analysis.h"

#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "serving/cli/experiment_files.h"
#include "serving/engine/experiments/analysis.h"

namespace backstory {
namespace {

using nlohmann::json;

struct Flags {
  std::string file, experiment, outcomes, key_file;
  std::vector<std::string> exposures;
  AnalysisOptions options;
  int runs = 1000;
  bool json = false;
};

std::vector<ArmShare> SharesOf(const ExperimentSpec& spec) {
  std::vector<ArmShare> shares;
  for (const ArmConfig& arm : spec.arms) shares.push_back({arm.name, arm.weight});
  return shares;
}

// The holdout is read like an experiment of two arms, the held out as control.
std::vector<ArmShare> SharesOf(const ExperimentPlan& plan, const std::string& name) {
  if (name != kHoldoutName) return SharesOf(FindExperiment(plan, name));
  int64_t held = 0;
  for (const BucketRange& range : plan.config().holdout.buckets) held += range.count;
  return {{kHeldOutArm, held}, {kGeneralArm, 10'000 - held}};
}

std::vector<std::string> AllExperiments(const ExperimentPlan& plan) {
  std::vector<std::string> names;
  if (!plan.config().holdout.buckets.empty()) names.push_back(kHoldoutName);
  for (const DomainConfig& domain : plan.config().domains) {
    for (const LayerConfig& layer : domain.layers) {
      for (const ExperimentSpec& experiment : layer.experiments) names.push_back(experiment.name);
    }
  }
  return names;
}

std::vector<ExperimentAnalysis> ReadAll(const Flags& flags, const ExperimentPlan& plan, const std::vector<std::string>& names) {
  std::vector<ExperimentAnalysis> analyses;
  for (const std::string& name : names) analyses.emplace_back(name, SharesOf(plan, name));
  ReadReport exposures, outcomes;
  absl::Status refused;
  CheckOk(ReadExposures(flags.exposures,
                        [&](const LoggedExposure& exposure) {
                          for (ExperimentAnalysis& analysis : analyses) refused.Update(analysis.AddExposure(exposure));
                        },
                        &exposures));
  CheckOk(refused);
  PrintReadReport("exposures", exposures);
  if (flags.outcomes.empty()) return analyses;
  CheckOk(ReadOutcomes(flags.outcomes, ReadKeyFile(flags.key_file),
                       [&](const Outcome& outcome) {
                         for (ExperimentAnalysis& analysis : analyses) analysis.AddOutcome(outcome);
                       },
                       &outcomes));
  PrintReadReport("outcomes", outcomes);
  return analyses;
}

ExperimentAnalysis ReadOne(const Flags& flags) {
  const auto plan = LoadExperimentPlan(flags.file);
  return ReadAll(flags, *plan, {flags.experiment}).front();
}

json ToJson(const SampleRatio& ratio) {
  return {{"p", ratio.p}, {"statistic", ratio.statistic}, {"deviation", ratio.deviation}, {"mismatch", ratio.mismatch}};
}
json ToJson(const Difference& d) {
  return {{"value", d.value}, {"low", d.low}, {"high", d.high}, {"p", d.p}, {"standard_error", d.standard_error}};
}

std::string Verdict(const SampleRatio& ratio) {
  return absl::StrFormat("sample ratio: chi-square %.2f, p = %.4g, largest deviation %.3f %% -> %s", ratio.statistic, ratio.p,
                         100 * ratio.deviation,
                         ratio.mismatch ? "MISMATCH (p < 0.001 and >= 0.1 % off): do not read this experiment" : "fine");
}

void Srm(const Flags& flags) {
  const auto plan = LoadExperimentPlan(flags.file);
  const std::vector<std::string> names = flags.experiment.empty() ? AllExperiments(*plan) : std::vector{flags.experiment};
  bool bad = false;
  json out = json::array();
  for (const ExperimentAnalysis& analysis : ReadAll(flags, *plan, names)) {
    const ExperimentResult result = analysis.Result(flags.options);
    if (result.exposures == 0 && flags.experiment.empty()) continue;
    bad |= result.ratio.mismatch || result.units_in_two_arms > 0;
    json line{{"experiment", result.experiment}, {"ratio", ToJson(result.ratio)}, {"units_in_two_arms", result.units_in_two_arms},
              {"units_overridden", result.units_overridden}, {"arms", json::object()}};
    std::string text = result.experiment + "\n";
    for (const ArmResult& arm : result.arms) {
      line["arms"][arm.name] = arm.units;
      text += absl::StrFormat("  %-20s %8d units (configured %.2f %%)\n", arm.name, arm.units, arm.weight / 100.0);
    }
    text += absl::StrFormat("  %s\n  units in two arms: %d, overridden: %d\n", Verdict(result.ratio), result.units_in_two_arms,
                            result.units_overridden);
    out.push_back(line);
    if (!flags.json) std::cout << text;
  }
  if (flags.json) std::cout << json{{"experiments", out}}.dump() << "\n";
  if (bad) throw CLI::RuntimeError(kExitFailed);
}

void Aa(const Flags& flags) {
  const ExperimentAnalysis analysis = ReadOne(flags);
  const ExperimentResult result = analysis.Result(flags.options);
  const double fires = AaRerandomise(analysis.UnitTotals(), flags.runs, flags.options.alpha);
  json out{{"experiment", result.experiment}, {"pre_period", result.has_pre_period}, {"arms", json::object()},
           {"rerandomised_false_positives", fires}, {"runs", flags.runs}, {"alpha", flags.options.alpha}};
  bool differs = false;
  std::string text = result.has_pre_period ? "before the experiment, where arms must not differ:\n"
                                           : "no outcome before the experiment: arms cannot be compared there\n";
  for (size_t a = 1; a < result.arms.size() && result.has_pre_period; ++a) {
    const ArmResult& arm = result.arms[a];
    differs |= arm.aa.p < flags.options.alpha;
    out["arms"][arm.name] = ToJson(arm.aa);
    text += absl::StrFormat("  %s - %s: %+.5f [%+.5f, %+.5f], p = %.3f -> %s\n", arm.name, result.arms[0].name, arm.aa.value,
                            arm.aa.low, arm.aa.high, arm.aa.p, arm.aa.p < flags.options.alpha ? "DIFFERENT" : "fine");
  }
  text += absl::StrFormat("units split anew %d times: the test at %.3g fires in %.3g of them\n", flags.runs, flags.options.alpha, fires);
  std::cout << (flags.json ? out.dump() + "\n" : text);
  if (differs) throw CLI::RuntimeError(kExitFailed);
}

json ArmToJson(const ArmResult& arm, double alpha) {
  const Interval rate = IntervalOf(EstimateOf(arm.rate), alpha), pcoc = IntervalOf(EstimateOf(arm.calibration), alpha);
  return {{"arm", arm.name}, {"units", arm.units}, {"impressions", arm.rate.denominator()}, {"labels", arm.rate.numerator()},
          {"rate", arm.rate.ratio()}, {"rate_low", rate.low}, {"rate_high", rate.high},
          {"pcoc", arm.calibration.ratio()}, {"pcoc_low", pcoc.low}, {"pcoc_high", pcoc.high}};
}

void PrintReport(const ExperimentResult& result, const AnalysisOptions& options) {
  const double sure = 100 * (1 - options.alpha);
  std::cout << absl::StrFormat("experiment %s: %d exposures, %d outcomes (%d of units never exposed)\n%s\n", result.experiment,
                               result.exposures, result.outcomes, result.outcomes_without_exposure, Verdict(result.ratio));
  std::cout << absl::StrFormat("left out: %d units in two arms, %d overridden\n\n", result.units_in_two_arms, result.units_overridden);
  std::cout << absl::StrFormat("%-18s %8s %11s  %-32s %s\n", "arm", "units", "impressions", absl::StrFormat("rate [%g %%]", sure),
                               absl::StrFormat("predicted / observed [%g %%]", sure));
  for (const ArmResult& arm : result.arms) {
    const Interval rate = IntervalOf(EstimateOf(arm.rate), options.alpha), pcoc = IntervalOf(EstimateOf(arm.calibration), options.alpha);
    const std::string calibration = arm.calibration.denominator() == 0
                                        ? std::string("-")
                                        : absl::StrFormat("%.3f [%.3f, %.3f]", arm.calibration.ratio(), pcoc.low, pcoc.high);
    std::cout << absl::StrFormat("%-18s %8d %11.0f  %.5f [%.5f, %.5f]       %s\n", arm.name, arm.units, arm.rate.denominator(),
                                 arm.rate.ratio(), rate.low, rate.high, calibration);
  }
  std::cout << "\n";
  for (size_t a = 1; a < result.arms.size(); ++a) {
    const ArmResult& arm = result.arms[a];
    std::cout << absl::StrFormat("%s - %s: %+.5f\n", arm.name, result.arms[0].name, arm.fixed.value)
              << absl::StrFormat("  always valid (peek as you like): [%+.5f, %+.5f], p = %.4g\n", arm.always.low, arm.always.high, arm.always.p)
              << absl::StrFormat("  one look at a fixed time:        [%+.5f, %+.5f], p = %.4g\n", arm.fixed.low, arm.fixed.high, arm.fixed.p);
    if (result.has_pre_period) std::cout << absl::StrFormat("  before the experiment:           %+.5f, p = %.3f\n", arm.aa.value, arm.aa.p);
  }
}

void Report(const Flags& flags) {
  const ExperimentResult result = ReadOne(flags).Result(flags.options);
  if (!flags.json) {
    PrintReport(result, flags.options);
  } else {
    json out{{"experiment", result.experiment}, {"exposures", result.exposures}, {"outcomes", result.outcomes},
             {"outcomes_without_exposure", result.outcomes_without_exposure}, {"units_in_two_arms", result.units_in_two_arms},
             {"units_overridden", result.units_overridden}, {"ratio", ToJson(result.ratio)}, {"arms", json::array()},
             {"differences", json::object()}};
    for (const ArmResult& arm : result.arms) {
      out["arms"].push_back(ArmToJson(arm, flags.options.alpha));
      if (&arm == &result.arms.front()) continue;
      out["differences"][arm.name] = {{"always_valid", ToJson(arm.always)}, {"fixed", ToJson(arm.fixed)}};
      if (result.has_pre_period) out["differences"][arm.name]["before"] = ToJson(arm.aa);
    }
    std::cout << out.dump() << "\n";
  }
  if (result.ratio.mismatch || result.units_in_two_arms > 0) throw CLI::RuntimeError(kExitFailed);
}

}  // namespace

void AddExperimentAnalysisCommands(CLI::App& group) {
  auto flags = std::make_shared<Flags>();
  const auto add = [&](const char* name, const char* what, void (*run)(const Flags&), bool outcomes) {
    CLI::App* command = group.add_subcommand(name, what);
    command->add_option("file", flags->file, "Experiment configuration: arms and weights")->required();
    command->add_option("--exposures", flags->exposures, "Exposure log: directory or files")->required();
    auto* experiment = command->add_option("--experiment", flags->experiment, "Name; \"holdout\" is one too");
    command->add_flag("--json", flags->json, "One JSON object on standard output");
    if (outcomes) {
      experiment->required();
      command->add_option("--outcomes", flags->outcomes, "Outcomes, JSON lines (docs/reference/experiments.md)")->required();
      command->add_option("--key-file", flags->key_file, "Key of unit hashes (first line), to join raw ids");
      command->add_option("--alpha", flags->options.alpha, "Level: intervals hold with 1 - alpha")->capture_default_str()->check(CLI::Range(1e-6, 0.5));
    }
    command->callback([flags, run] { run(*flags); });
    return command;
  };
  add("srm", "Is the split of units the configured one? Exit 1 if not, or if units were seen in two arms", Srm, false);
  CLI::App* aa = add("aa", "Did the arms differ before the experiment? Does the test fire without an effect?", Aa, true);
  aa->add_option("--runs", flags->runs, "How often to split the units anew")->capture_default_str()->check(CLI::Range(1, 100'000));
  CLI::App* report = add("report", "Rates, calibration and effects of the arms, with intervals", Report, true);
  report->add_option("--tuned-units", flags->options.tuned_units, "Units at which the always-valid interval is narrowest; choose before looking")
      ->capture_default_str();
}

}  // namespace backstory
