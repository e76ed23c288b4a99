// Makes up traffic for a configuration, before it is switched on: who would get what, and logs of an experiment whose truth
// is known, so that reading one can be tried out. Deterministic by seed.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SIMULATE_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SIMULATE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "serving/engine/experiments/log_reader.h"
#include "serving/engine/experiments/plan.h"
#include "serving/engine/experiments/statistics.h"

namespace backstory {

struct SimulatedArm {
  std::string name;
  int64_t weight = 0, units = 0;
};

struct SimulatedExperiment {
  std::string layer, experiment;
  int64_t units = 0;  // exposed
  std::vector<SimulatedArm> arms;
  SampleRatio ratio;
};

struct Simulation {
  int64_t units = 0, held_out = 0;
  std::vector<SimulatedExperiment> experiments;  // those with exposed units, in the configuration's order
};

struct Traffic {
  std::string ns = "default", scene;
  FeatureMap features;
};

// Assigns every one of `units`.
Simulation Simulate(const ExperimentPlan& plan, const Traffic& traffic, const std::vector<Units>& units);

struct SimulatedTruth {
  double base_rate = 0.1;                 // of a label; each unit has its own, spread evenly between 0.5 and 1.5 times it
  std::map<std::string, double> effects;  // "experiment/arm" -> added to the rate
  int impressions = 20;                   // of each unit, in the experiment and before it
  int64_t start_us = int64_t{1'700'000'000} * 1'000'000;
  int64_t period_us = int64_t{7} * 86'400 * 1'000'000;  // of the experiment, and of the pre-period
  uint64_t seed = 1;
};

// One exposure of each unit at a time of its own, then its outcomes; before the start, outcomes without any effect.
void SimulateLogs(const ExperimentPlan& plan, const Traffic& traffic, const std::vector<Units>& units,
                  const SimulatedTruth& truth, const std::function<void(const ExposureRecord&)>& exposed,
                  const std::function<void(const Units&, const Outcome&)>& outcome);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_SIMULATE_H_
