// The engine's Assigner over an experiment configuration that can be replaced while requests run: checked first, swapped
// whole, the last good one kept.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ASSIGNER_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ASSIGNER_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "serving/engine/experiment.h"
#include "serving/engine/experiments/config.h"
#include "serving/engine/experiments/lint.h"
#include "serving/engine/experiments/plan.h"
#include "serving/engine/parameters.h"

namespace backstory {

// Thread-safe. A request sees one configuration from its start to its end.
class ExperimentAssigner : public Assigner {
 public:
  // The registry must outlive it. Until the first Apply it behaves as LaunchDefaults.
  explicit ExperimentAssigner(const ParameterRegistry* registry = &ParameterRegistry::Builtin()) : registry_(registry) {}

  Assignment Assign(const std::string& ns, const std::string& scene, const Units& units,
                    const FeatureMap& features) const override;

  // Everything that keeps `config` from replacing the active one; empty if nothing does. Changes nothing.
  std::vector<ConfigProblem> Validate(const ExperimentConfig& config) const;

  // Replaces the active configuration, for every request that starts after it returns. INVALID_ARGUMENT with every
  // problem, one a line; ABORTED if `expected_version` is given and another one is active. After an error the active one
  // stays. Applying the active content again does nothing.
  absl::Status Apply(ExperimentConfig config, const std::string& expected_version = {});

  // The active plan; null before the first Apply.
  std::shared_ptr<const ExperimentPlan> plan() const;

 private:
  const ParameterRegistry* const registry_;
  std::mutex apply_mutex_;  // one Apply at a time; taken before plan_mutex_
  mutable std::mutex plan_mutex_;
  std::shared_ptr<const ExperimentPlan> plan_;  // guarded by plan_mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_ASSIGNER_H_
