#include "serving/engine/experiments/simulate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "features/hash.h"

namespace backstory {
namespace {

// The n-th number of [0, 1) of a unit: the same whatever the order of units.
class UnitRandom {
 public:
  UnitRandom(uint64_t seed, const std::string& user) : state_(HashBytes(user, seed)) {}
  double Next() { return static_cast<double>(HashU64(n_++, state_) >> 11) * 0x1p-53; }

 private:
  const uint64_t state_;
  uint64_t n_ = 0;
};

SimulatedExperiment Empty(const std::string& layer, const ExperimentSpec& spec) {
  SimulatedExperiment experiment{layer, spec.name, 0, {}, {}};
  for (const ArmConfig& arm : spec.arms) experiment.arms.push_back({arm.name, arm.weight, 0});
  return experiment;
}

}  // namespace

Simulation Simulate(const ExperimentPlan& plan, const Traffic& traffic, const std::vector<Units>& units) {
  Simulation simulation;
  simulation.units = static_cast<int64_t>(units.size());
  std::map<std::string, size_t> index;
  for (const DomainConfig& domain : plan.config().domains) {
    for (const LayerConfig& layer : domain.layers) {
      for (const ExperimentSpec& spec : layer.experiments) {
        index[spec.name] = simulation.experiments.size();
        simulation.experiments.push_back(Empty(layer.name, spec));
      }
    }
  }
  for (const Units& unit : units) {
    const Assignment assignment = plan.Assign(traffic.ns, traffic.scene, unit, traffic.features);
    for (const LayerAssignment& layer : assignment.layers) {
      for (const Exposure& exposure : layer.exposures) {
        if (exposure.reason == kReasonOverride) continue;
        if (exposure.layer == kHoldoutName) {
          simulation.held_out += exposure.arm == kHeldOutArm ? 1 : 0;
          continue;
        }
        SimulatedExperiment& experiment = simulation.experiments[index.at(exposure.experiment)];
        ++experiment.units;
        ++std::ranges::find(experiment.arms, exposure.arm, &SimulatedArm::name)->units;
      }
    }
  }
  std::erase_if(simulation.experiments, [](const SimulatedExperiment& e) { return e.units == 0; });
  for (SimulatedExperiment& experiment : simulation.experiments) {
    std::vector<int64_t> counts, weights;
    for (const SimulatedArm& arm : experiment.arms) {
      counts.push_back(arm.units);
      weights.push_back(arm.weight);
    }
    experiment.ratio = CheckSampleRatio(counts, weights);
  }
  return simulation;
}

void SimulateLogs(const ExperimentPlan& plan, const Traffic& traffic, const std::vector<Units>& units,
                  const SimulatedTruth& truth, const std::function<void(const ExposureRecord&)>& exposed,
                  const std::function<void(const Units&, const Outcome&)>& outcome) {
  uint64_t id = 0;
  for (const Units& unit : units) {
    UnitRandom random(truth.seed, unit.user);
    const double base = truth.base_rate * (0.5 + random.Next());
    ExposureRecord record{traffic.ns, traffic.scene, unit, ++id, 0, plan.config().version, {}, id, "", ""};
    double effect = 0;
    for (const LayerAssignment& layer : plan.Assign(traffic.ns, traffic.scene, unit, traffic.features).layers) {
      for (const Exposure& exposure : layer.exposures) {
        record.exposures.push_back(exposure);
        const auto found = truth.effects.find(absl::StrCat(exposure.experiment, "/", exposure.arm));
        if (found != truth.effects.end()) effect += found->second;
      }
    }
    const double span = static_cast<double>(truth.period_us);
    record.now_us = truth.start_us + static_cast<int64_t>(random.Next() * span / 2);
    if (!record.exposures.empty()) exposed(record);
    const double rate = std::clamp(base + effect, 0.0, 1.0);
    for (int n = 0; n < truth.impressions; ++n) {
      const int64_t before_us = truth.start_us - 1 - static_cast<int64_t>(random.Next() * span);
      outcome(unit, {before_us, "user", "", random.Next() < base ? 1.0 : 0.0, base, true});
      const int64_t after_us = record.now_us + 1 + static_cast<int64_t>(random.Next() * span / 2);
      outcome(unit, {after_us, "user", "", random.Next() < rate ? 1.0 : 0.0, rate, true});
    }
  }
}

}  // namespace backstory
