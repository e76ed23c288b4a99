// Everything wrong with an experiment configuration, each with the path of what is wrong. Pure. A configuration is served
// only if both lists are empty (plan.h).
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LINT_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LINT_H_

#include <string>
#include <vector>

#include "serving/engine/experiments/config.h"
#include "serving/engine/parameters.h"

namespace backstory {

struct ConfigProblem {
  // domain[0].layer[2].experiment[0].arm[1].parameters["x"]; empty: the whole configuration. Indices count from 0.
  std::string path;
  std::string reason;
  bool operator==(const ConfigProblem&) const = default;
};

// "path: reason", or the reason alone.
std::string ToText(const ConfigProblem& problem);

// What is wrong with `config` by itself: names, limits, salts that are shared, buckets outside [0, 10,000) or given twice,
// weights that do not add up to 10,000, parameters that are unknown, out of bounds, of PROCESS scope, not owned by the
// layer or owned twice in a domain, model labels where a version belongs, targeting that does not parse, overrides of what
// does not exist. In the order of the file.
std::vector<ConfigProblem> LintConfig(const ExperimentConfig& config, const ParameterRegistry& registry);

// What must not happen between two configurations, because it would move units that an experiment has already exposed: for
// every experiment that was RUNNING or KILLED and is now either, its layer, unit, salts, hash version, arms, weights, arm
// parameters and targeting are frozen and the exposed buckets of experiment and domain may only grow; the holdout is
// frozen while anything runs. An experiment is removed only after it was KILLED, and never becomes a DRAFT again. So
// killing is always possible. Paths are of `next`, or name the experiment that is gone.
std::vector<ConfigProblem> LintChange(const ExperimentConfig& active, const ExperimentConfig& next);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_LINT_H_
