#include "serving/engine/batch/batch_scorer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/batch/batch_plan.h"
#include "serving/engine/batch/batch_run.h"

namespace backstory {

absl::StatusOr<std::unique_ptr<BatchScorer>> BatchScorer::Create(Engine* engine, BatchOptions options) {
  if (auto status = ValidateNamespace(options.ns); !status.ok()) return status;
  if (options.scene.size() > kSceneBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("scene has ", options.scene.size(), " bytes, the limit is ", kSceneBytesMax));
  }
  if (options.in_flight_max == 0) return absl::InvalidArgumentError("in_flight_max is 0, must be at least 1");
  if (options.parameters.size() > kParameterOverridesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameters has ", options.parameters.size(), " entries, the limit is ", kParameterOverridesMax));
  }
  ParameterSet parameters = engine->parameters();
  if (auto status = parameters.SetAll(options.parameters, ParameterSource::kRequest); !status.ok()) {
    return absl::InvalidArgumentError(std::string(status.message()));
  }
  if (options.model.version.empty() && options.model.label.empty()) {
    options.model.version = parameters.Text("model_version");
  }
  absl::StatusOr<std::shared_ptr<const ServedModel>> served = engine->models().Resolve(options.model);
  if (!served.ok()) return served.status();
  options.model = {(*served)->name, (*served)->version, ""};
  return std::unique_ptr<BatchScorer>(new BatchScorer(engine, std::move(options), *std::move(served)));
}

absl::StatusOr<BatchScores> BatchScorer::Score(const BatchRows& rows, std::stop_token stop,
                                               const Progress& progress) const {
  absl::StatusOr<BatchPlan> plan = PlanBatch(rows, options_);
  if (!plan.ok()) return plan.status();
  BatchScores scores;
  const std::vector<float> none(rows.rows, std::numeric_limits<float>::quiet_NaN());
  for (const std::string& task : served_->model->config().tasks) scores.scores.push_back({task, none, none});
  scores.flags.resize(rows.rows);
  scores.rows_visible.resize(rows.rows);
  for (const BadBatchRow& bad : plan->bad) scores.flags[bad.row] = kRowBad;
  scores.bad = std::move(plan->bad);
  scores.model = served_->name;
  scores.version = served_->version;
  scores.state_id = served_->model->state_id();
  scores.config_version = served_->calibration.config_version();
  ParameterSet parameters = engine_->parameters();
  if (auto status = parameters.SetAll(options_.parameters, ParameterSource::kRequest); !status.ok()) return status;
  scores.parameters = parameters.Report();
  scores.requests = plan->requests.size();
  BatchRun run(engine_, rows, *plan, options_, UserOrderFor(served_->model->config().tokenizer), &scores);
  if (auto status = run.Run(std::move(stop), progress); !status.ok()) return status;
  std::sort(scores.bad.begin(), scores.bad.end(),
            [](const BadBatchRow& a, const BadBatchRow& b) { return a.row < b.row; });
  return scores;
}

}  // namespace backstory
