#include "serving/engine/experiments/assigner.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace backstory {

Assignment ExperimentAssigner::Assign(const std::string& ns, const std::string& scene, const Units& units,
                                      const FeatureMap& features) const {
  const std::shared_ptr<const ExperimentPlan> active = plan();
  return active ? active->Assign(ns, scene, units, features) : LaunchDefaults().Assign(ns, scene, units, features);
}

std::vector<ConfigProblem> ExperimentAssigner::Validate(const ExperimentConfig& config) const {
  std::vector<ConfigProblem> problems = LintConfig(config, *registry_);
  if (const auto active = plan()) {
    for (ConfigProblem& problem : LintChange(active->config(), config)) problems.push_back(std::move(problem));
  }
  return problems;
}

absl::Status ExperimentAssigner::Apply(ExperimentConfig config, const std::string& expected_version) {
  const std::lock_guard<std::mutex> lock(apply_mutex_);
  const std::shared_ptr<const ExperimentPlan> active = plan();
  if (!expected_version.empty() && (active == nullptr || active->config().version != expected_version)) {
    return absl::AbortedError(absl::StrCat("expected_config_version ", expected_version, " is not active: ",
                                           active == nullptr ? "none is" : active->config().version + " is"));
  }
  if (active != nullptr && active->config() == config) return absl::OkStatus();
  const std::vector<ConfigProblem> problems = Validate(config);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(
        problems, "\n", [](std::string* out, const ConfigProblem& problem) { out->append(ToText(problem)); }));
  }
  absl::StatusOr<std::shared_ptr<const ExperimentPlan>> next = ExperimentPlan::Compile(std::move(config), *registry_);
  if (!next.ok()) return next.status();
  const std::lock_guard<std::mutex> swap(plan_mutex_);
  plan_ = *std::move(next);
  return absl::OkStatus();
}

std::shared_ptr<const ExperimentPlan> ExperimentAssigner::plan() const {
  const std::lock_guard<std::mutex> lock(plan_mutex_);
  return plan_;
}

}  // namespace backstory
