// From logs to a verdict: exposures and outcomes of one experiment, joined by unit, as one table. Pure; memory grows with
// the number of exposed units (about 200 bytes each), not with the log.
//
// Rules: a unit belongs to the arm of its exposures; one that was ever forced (override), or was seen in two arms, counts in
// no arm. Only outcomes at or after a unit's first exposure count; those before the first exposure of the whole experiment
// are the pre-period, in which arms must not differ (A/A). The unit, not the impression, is what varies, so every interval
// is between units.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ANALYSIS_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ANALYSIS_H_

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "serving/engine/experiments/config.h"
#include "serving/engine/experiments/log_reader.h"
#include "serving/engine/experiments/statistics.h"

namespace backstory {

struct ArmShare {
  std::string name;
  int64_t weight = 0;
};

struct ArmResult {
  std::string name;
  int64_t weight = 0;
  int64_t units = 0;
  RatioMoments rate;         // labels / impressions: CTR
  RatioMoments calibration;  // predicted / labels over outcomes that carry a prediction (PCOC): 1 = calibrated
  RatioMoments before;       // labels / impressions of the pre-period
  Difference fixed, always;  // of rate against the control; zero for the control itself
  Difference aa;             // of `before` against the control
};

struct ExperimentResult {
  std::string experiment;
  uint64_t exposures = 0;
  int64_t first_us = 0, last_us = 0;  // of exposures
  int64_t units_in_two_arms = 0, units_overridden = 0;
  uint64_t outcomes = 0, outcomes_without_exposure = 0;
  SampleRatio ratio;
  std::vector<ArmResult> arms;  // in the configuration's order, the first is the control
  bool has_pre_period = false;
};

struct AnalysisOptions {
  double alpha = 0.05;
  double tuned_units = kTunedUnits;
};

// Add every exposure first, then every outcome, then ask.
class ExperimentAnalysis {
 public:
  ExperimentAnalysis(std::string experiment, std::vector<ArmShare> arms);
  // INVALID_ARGUMENT if the log has an arm that the configuration lacks. Other experiments' exposures are ignored.
  absl::Status AddExposure(const LoggedExposure& exposure);
  void AddOutcome(const Outcome& outcome);
  ExperimentResult Result(const AnalysisOptions& options) const;

  // Labels / impressions of each unit after exposure, for AaRerandomise.
  std::vector<std::pair<double, double>> UnitTotals() const;

 private:
  struct UnitState {
    int arm = 0;  // kTwoArms, kForced: in none
    int64_t first_us = 0;
    double labels = 0, impressions = 0, predicted = 0, predicted_labels = 0, before_labels = 0, before_impressions = 0;
  };
  static constexpr int kTwoArms = -1, kForced = -2;

  const std::string experiment_;
  const std::vector<ArmShare> arms_;
  std::unordered_map<std::string, UnitState> units_;  // by unit_hash
  std::string unit_;                                  // what the experiment randomises by
  ExperimentResult seen_;
};

// How often would a test at level alpha fire if there were no effect? Splits the units anew `runs` times, each time by
// another salt, and tests the rate. Close to alpha if the metric can be trusted.
double AaRerandomise(const std::vector<std::pair<double, double>>& unit_totals, int runs, double alpha);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ANALYSIS_H_
