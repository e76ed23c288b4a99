#include "serving/engine/experiments/analysis.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "serving/engine/experiment.h"
#include "serving/engine/experiments/bucket.h"

namespace backstory {

ExperimentAnalysis::ExperimentAnalysis(std::string experiment, std::vector<ArmShare> arms)
    : experiment_(std::move(experiment)), arms_(std::move(arms)) {
  seen_.experiment = experiment_;
}

absl::Status ExperimentAnalysis::AddExposure(const LoggedExposure& exposure) {
  if (exposure.experiment != experiment_) return absl::OkStatus();
  const auto found = std::ranges::find(arms_, exposure.arm, &ArmShare::name);
  if (found == arms_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the log has arm \"", exposure.arm, "\" of experiment ", experiment_, ", the configuration has not"));
  }
  unit_ = exposure.unit;
  seen_.first_us = seen_.exposures == 0 ? exposure.time_us : std::min(seen_.first_us, exposure.time_us);
  seen_.last_us = std::max(seen_.last_us, exposure.time_us);
  ++seen_.exposures;
  const int arm = static_cast<int>(found - arms_.begin());
  const auto [entry, fresh] = units_.try_emplace(exposure.unit_hash, UnitState{arm, exposure.time_us});
  UnitState& unit = entry->second;
  unit.first_us = std::min(unit.first_us, exposure.time_us);
  if (exposure.reason == kReasonOverride) {
    unit.arm = kForced;
  } else if (!fresh && unit.arm >= 0 && unit.arm != arm) {
    unit.arm = kTwoArms;
  }
  return absl::OkStatus();
}

void ExperimentAnalysis::AddOutcome(const Outcome& outcome) {
  if (outcome.unit != unit_) return;
  ++seen_.outcomes;
  const auto found = units_.find(outcome.unit_hash);
  if (found == units_.end()) {
    ++seen_.outcomes_without_exposure;
    return;
  }
  UnitState& unit = found->second;
  if (outcome.time_us < seen_.first_us) {
    unit.before_labels += outcome.label;
    unit.before_impressions += 1;
    seen_.has_pre_period = true;
  } else if (outcome.time_us >= unit.first_us) {
    unit.labels += outcome.label;
    unit.impressions += 1;
    if (outcome.has_predicted) {
      unit.predicted += outcome.predicted;
      unit.predicted_labels += outcome.label;
    }
  }
}

ExperimentResult ExperimentAnalysis::Result(const AnalysisOptions& options) const {
  ExperimentResult result = seen_;
  for (const ArmShare& arm : arms_) result.arms.push_back({arm.name, arm.weight, 0, {}, {}, {}, {}, {}, {}});
  for (const auto& [hash, unit] : units_) {
    if (unit.arm == kTwoArms) ++result.units_in_two_arms;
    if (unit.arm == kForced) ++result.units_overridden;
    if (unit.arm < 0) continue;
    ArmResult& arm = result.arms[static_cast<size_t>(unit.arm)];
    ++arm.units;
    arm.rate.Add(unit.labels, unit.impressions);
    arm.calibration.Add(unit.predicted, unit.predicted_labels);
    arm.before.Add(unit.before_labels, unit.before_impressions);
  }
  std::vector<int64_t> units, weights;
  for (ArmResult& arm : result.arms) {
    units.push_back(arm.units);
    weights.push_back(arm.weight);
    if (&arm == &result.arms.front()) continue;
    const ArmResult& control = result.arms.front();
    arm.fixed = DifferenceOf(EstimateOf(control.rate), EstimateOf(arm.rate), options.alpha);
    arm.always = AlwaysValid(EstimateOf(control.rate), EstimateOf(arm.rate), options.alpha, options.tuned_units);
    arm.aa = DifferenceOf(EstimateOf(control.before), EstimateOf(arm.before), options.alpha);
  }
  result.ratio = CheckSampleRatio(units, weights);
  return result;
}

std::vector<std::pair<double, double>> ExperimentAnalysis::UnitTotals() const {
  std::vector<std::pair<std::string, std::pair<double, double>>> sorted;
  for (const auto& [hash, unit] : units_) {
    if (unit.arm >= 0) sorted.push_back({hash, {unit.labels, unit.impressions}});
  }
  std::ranges::sort(sorted);  // the order of a hash table is nobody's business
  std::vector<std::pair<double, double>> totals;
  for (const auto& [hash, total] : sorted) totals.push_back(total);
  return totals;
}

double AaRerandomise(const std::vector<std::pair<double, double>>& unit_totals, int runs, double alpha) {
  int fired = 0;
  for (int run = 0; run < runs; ++run) {
    const uint64_t seed = BucketSeed(absl::StrCat("aa/", run));
    RatioMoments a, b;
    for (size_t n = 0; n < unit_totals.size(); ++n) {
      RatioMoments& arm = HashU64(n, seed) % 2 == 0 ? a : b;
      arm.Add(unit_totals[n].first, unit_totals[n].second);
    }
    fired += DifferenceOf(EstimateOf(a), EstimateOf(b), alpha).p < alpha ? 1 : 0;
  }
  return runs == 0 ? 0 : static_cast<double>(fired) / runs;
}

}  // namespace backstory
