#include "serving/engine/model_repository.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "serving/engine/repository_files.h"

namespace backstory {
namespace {

constexpr char kStable[] = "stable";

absl::Status CheckNames(const std::string& model, const std::string& version) {
  if (!IsModelName(model)) {
    return absl::InvalidArgumentError(absl::StrCat("model \"", model, "\" must match [a-z0-9_-]{1,64}"));
  }
  if (!IsVersionName(version)) {
    return absl::InvalidArgumentError(
        absl::StrCat("version \"", version, "\" must match [a-z0-9_.-]{1,64}, not start with '.'"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view VersionStateName(VersionState state) {
  switch (state) {
    case VersionState::kUnloaded:
      return "UNLOADED";
    case VersionState::kLoading:
      return "LOADING";
    case VersionState::kWarming:
      return "WARMING";
    case VersionState::kReady:
      return "READY";
    case VersionState::kFailed:
      return "FAILED";
  }
  return "";
}

ModelRepository::ModelRepository(RepositoryOptions options, ModelLoader loader, WarmUp warm_up, OnUnload on_unload,
                                 Metrics* metrics)
    : options_(std::move(options)),
      loader_(std::move(loader)),
      warm_up_(std::move(warm_up)),
      on_unload_(std::move(on_unload)),
      metrics_(metrics) {}

absl::Status ModelRepository::LoadAtStart() {
  if (options_.root.empty()) return absl::OkStatus();
  const absl::StatusOr<RepositoryListing> listing = ListRepository(options_.root);
  if (!listing.ok()) return listing.status();
  if (listing->empty()) {
    return absl::NotFoundError(
        absl::StrCat("no model version in ", options_.root, ": expected <model>/<version>/MANIFEST"));
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [model, versions] : *listing) {
      for (const std::string& version : versions) models_[model].versions[version];
    }
  }
  absl::Status first;
  for (const auto& [model, versions] : *listing) {
    absl::Status status = LoadModelAtStart(model);
    if (absl::IsCancelled(status)) return status;
    if (!status.ok() && first.ok()) first = std::move(status);
  }
  return first;
}

absl::Status ModelRepository::LoadModelAtStart(const std::string& model) {
  absl::StatusOr<std::map<std::string, std::string>> labels = ReadLabels(options_.root, model);
  if (!labels.ok()) return labels.status();
  if (!labels->contains(kStable)) {
    std::lock_guard lock(mutex_);
    std::vector<std::string> versions;
    for (const auto& [version, unused] : models_[model].versions) versions.push_back(version);
    (*labels)[kStable] = *std::max_element(versions.begin(), versions.end(), VersionLess);
  }
  absl::Status stable;
  for (const auto& [label, version] : *labels) {
    if (options_.stop_loading && options_.stop_loading()) {
      return absl::CancelledError(absl::StrCat("told to stop before loading ", model, "/", version));
    }
    const absl::Status status = Load(model, version);
    if (status.ok()) {
      std::lock_guard lock(mutex_);
      models_[model].labels[label] = version;
    } else if (label == kStable) {
      stable = status;
    }
  }
  return stable;
}

void ModelRepository::SetState(const std::string& model, const std::string& version, VersionState state) {
  std::lock_guard lock(mutex_);
  Version& entry = models_[model].versions[version];
  entry.state = state;
  entry.reason.clear();
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelRepository::LoadAndWarm(const ModelSource& source) {
  absl::StatusOr<std::shared_ptr<const ServedModel>> served = loader_(source);
  if (served.ok()) served = Calibrated(*std::move(served));
  if (!served.ok()) return served;
  SetState(source.model, source.version, VersionState::kWarming);
  if (warm_up_) {
    if (absl::Status status = warm_up_(*served); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("warm-up: ", std::string(status.message())));
    }
  }
  return served;
}

// The loader's choice is the newest calibration; an operator's stays until it is changed.
absl::StatusOr<std::shared_ptr<const ServedModel>> ModelRepository::Calibrated(
    std::shared_ptr<const ServedModel> served) const {
  if (options_.root.empty() || !served->read_calibration) return served;
  const auto choices = ReadCalibrationChoices(options_.root, served->name);
  if (!choices.ok()) return choices.status();
  const auto chosen = choices->find(served->version);
  if (chosen == choices->end() || chosen->second == served->calibration.number) return served;
  absl::StatusOr<ServedCalibration> calibration = served->read_calibration(chosen->second);
  if (!calibration.ok()) return calibration.status();
  auto copy = std::make_shared<ServedModel>(*served);
  copy->calibration = *std::move(calibration);
  return copy;
}

absl::Status ModelRepository::Load(const std::string& model, const std::string& version) {
  if (absl::Status status = CheckNames(model, version); !status.ok()) return status;
  ModelSource source{options_.root.empty() ? "" : absl::StrCat(options_.root, "/", model, "/", version), model,
                     version};
  if (!options_.root.empty()) {
    if (absl::Status status = CheckVersionDirectory(options_.root, model, version); !status.ok()) return status;
  }
  {
    std::lock_guard lock(mutex_);
    Version& entry = models_[model].versions[version];
    if (entry.state == VersionState::kReady) return absl::OkStatus();
    if (entry.state == VersionState::kLoading || entry.state == VersionState::kWarming) {
      return absl::AbortedError(absl::StrCat("model ", model, " version ", version, " is being loaded already"));
    }
    entry.state = VersionState::kLoading;
    entry.reason.clear();
  }
  absl::StatusOr<std::shared_ptr<const ServedModel>> served = LoadAndWarm(source);
  metrics_
      ->GetCounter("backstory_model_loads_total", "Loads of model versions by outcome",
                   {{"outcome", served.ok() ? "ready" : "failed"}})
      ->Add();
  {
    std::lock_guard lock(mutex_);
    Version& entry = models_[model].versions[version];
    entry.state = served.ok() ? VersionState::kReady : VersionState::kFailed;
    entry.reason = served.ok() ? "" : std::string(served.status().message());
    entry.served = served.ok() ? *served : nullptr;
    CountReady();
  }
  if (served.ok()) return absl::OkStatus();
  return absl::Status(served.status().code(), absl::StrCat("model ", model, " version ", version, ": ",
                                                           std::string(served.status().message())));
}

void ModelRepository::CountReady() {
  size_t ready = 0;
  for (const auto& [name, model] : models_) {
    for (const auto& [version, entry] : model.versions) ready += entry.state == VersionState::kReady ? 1 : 0;
  }
  metrics_->GetGauge("backstory_models_ready", "Model versions that can answer")->Set(static_cast<double>(ready));
}

absl::Status ModelRepository::Unload(const std::string& model, const std::string& version) {
  if (absl::Status status = CheckNames(model, version); !status.ok()) return status;
  std::shared_ptr<const ServedModel> served;
  {
    std::lock_guard lock(mutex_);
    const auto found = models_.find(model);
    if (found == models_.end() || !found->second.versions.contains(version)) {
      return absl::NotFoundError(absl::StrCat("model ", model, " has no version ", version));
    }
    for (const auto& [label, target] : found->second.labels) {
      if (target != version) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("model ", model, " version ", version, " has label \"", label, "\": move the label first"));
    }
    Version& entry = found->second.versions[version];
    if (entry.state == VersionState::kLoading || entry.state == VersionState::kWarming) {
      return absl::FailedPreconditionError(absl::StrCat("model ", model, " version ", version, " is being loaded"));
    }
    served = std::move(entry.served);
    entry = {};
    CountReady();
  }
  if (served != nullptr && on_unload_) on_unload_(*served);
  return absl::OkStatus();
}

absl::StatusOr<std::string> ModelRepository::SetLabel(const std::string& model, const std::string& label,
                                                      const std::string& version) {
  if (absl::Status status = CheckNames(model, version); !status.ok()) return status;
  if (!IsModelName(label)) {
    return absl::InvalidArgumentError(absl::StrCat("label \"", label, "\" must match [a-z0-9_-]{1,64}"));
  }
  std::lock_guard lock(mutex_);
  const auto found = models_.find(model);
  if (found == models_.end() || !found->second.versions.contains(version)) {
    return absl::NotFoundError(absl::StrCat("model ", model, " has no version ", version));
  }
  const VersionState state = found->second.versions[version].state;
  if (state != VersionState::kReady) {
    return absl::FailedPreconditionError(absl::StrCat("model ", model, " version ", version, " is ",
                                                      std::string(VersionStateName(state)),
                                                      "; a label moves to READY versions only"));
  }
  std::map<std::string, std::string> labels = found->second.labels;
  const std::string previous = labels[label];
  labels[label] = version;
  if (!options_.root.empty() && options_.keep_choices && previous != version) {
    if (absl::Status status = WriteLabels(options_.root, model, labels); !status.ok()) return status;
  }
  found->second.labels = std::move(labels);
  return previous;
}

absl::StatusOr<uint32_t> ModelRepository::SetCalibration(const std::string& model, const std::string& version,
                                                         uint32_t number) {
  const absl::StatusOr<uint32_t> previous = SwapCalibration(model, version, number);
  metrics_
      ->GetCounter("backstory_calibration_swaps_total", "Calibrations put in force by an operator, by outcome",
                   {{"outcome", previous.ok() ? "done" : "refused"}})
      ->Add();
  return previous;
}

absl::StatusOr<uint32_t> ModelRepository::SwapCalibration(const std::string& model, const std::string& version,
                                                          uint32_t number) {
  if (absl::Status status = CheckNames(model, version); !status.ok()) return status;
  std::lock_guard one_at_a_time(calibration_mutex_);
  const absl::StatusOr<std::shared_ptr<const ServedModel>> served = Resolve({model, version, ""});
  if (!served.ok()) return served.status();
  if (!(*served)->read_calibration) {
    return absl::FailedPreconditionError(absl::StrCat("model ", model, " version ", version, " has no calibrations"));
  }
  absl::StatusOr<ServedCalibration> calibration = (*served)->read_calibration(number);
  if (!calibration.ok()) return calibration.status();
  // A copy that shares the model: user states are kept, and requests that hold the old one are not disturbed.
  auto next = std::make_shared<ServedModel>(**served);
  next->calibration = *std::move(calibration);
  std::lock_guard lock(mutex_);
  Version& entry = models_[model].versions[version];
  if (entry.served != *served) {
    return absl::AbortedError(absl::StrCat("model ", model, " version ", version, " was unloaded meanwhile"));
  }
  if (!options_.root.empty() && options_.keep_choices) {  // as SetLabel: what is refused is not kept either
    auto choices = ReadCalibrationChoices(options_.root, model);
    if (!choices.ok()) return choices.status();
    (*choices)[version] = number;
    if (absl::Status status = WriteCalibrationChoices(options_.root, model, *choices); !status.ok()) return status;
  }
  entry.served = std::move(next);
  return (*served)->calibration.number;
}

// A model without a loaded version may be of either kind: naming it tells what is wrong with it.
absl::StatusOr<std::string> ModelRepository::DefaultModel(ModelKind kind) const {
  const auto fits = [kind](const Model& model) {
    bool known = false;
    for (const auto& [version, entry] : model.versions) {
      if (entry.served == nullptr) continue;
      known = true;
      if (entry.served->kind() == kind) return true;
    }
    return !known;
  };
  if (const auto found = models_.find(options_.default_model); found != models_.end() && fits(found->second)) {
    return options_.default_model;
  }
  std::vector<std::string> names;
  for (const auto& [name, model] : models_) {
    if (fits(model)) names.push_back(name);
  }
  if (names.size() == 1) return names.front();
  return absl::NotFoundError(absl::StrCat("no model was named and the server has ", names.size(), " ",
                                          kind == ModelKind::kRanking ? "ranking" : "generative",
                                          " models and no default"));
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelRepository::Resolve(const ModelChoice& choice,
                                                                            ModelKind kind) const {
  std::lock_guard lock(mutex_);
  std::string name = choice.model;
  if (name.empty()) {
    auto chosen = DefaultModel(kind);
    if (!chosen.ok()) return chosen.status();
    name = *std::move(chosen);
  }
  const auto found = models_.find(name);
  if (found == models_.end()) return absl::NotFoundError(absl::StrCat("unknown model \"", name, "\""));
  std::string version = choice.version;
  if (version.empty()) {
    const std::string label = choice.label.empty() ? kStable : choice.label;
    const auto target = found->second.labels.find(label);
    if (target == found->second.labels.end()) {
      return absl::NotFoundError(absl::StrCat("model ", name, " has no label \"", label, "\""));
    }
    version = target->second;
  }
  const auto entry = found->second.versions.find(version);
  if (entry == found->second.versions.end()) {
    return absl::NotFoundError(absl::StrCat("model ", name, " has no version \"", version, "\""));
  }
  if (entry->second.state != VersionState::kReady) {
    return absl::FailedPreconditionError(
        absl::StrCat("model ", name, " version ", version, " is ", std::string(VersionStateName(entry->second.state))));
  }
  if (entry->second.served->kind() != kind) {
    return absl::FailedPreconditionError(absl::StrCat("model ", name, " version ", version,
                                                      kind == ModelKind::kRanking
                                                          ? " recommends and does not rank: ask Retrieval.Recommend"
                                                          : " ranks and does not recommend: ask Ranking.Rank"));
  }
  return entry->second.served;
}

std::vector<VersionInfo> ModelRepository::List(std::string_view model) const {
  std::vector<VersionInfo> list;
  std::lock_guard lock(mutex_);
  for (const auto& [name, entry] : models_) {
    if (!model.empty() && name != model) continue;
    for (const auto& [version, state] : entry.versions) {
      VersionInfo info{.model = name, .version = version, .state = state.state, .reason = state.reason};
      for (const auto& [label, target] : entry.labels) {
        if (target == version) info.labels.push_back(label);
      }
      if (state.served != nullptr) {
        info.state_id = state.served->state_id();
        info.parameter_bytes = state.served->parameter_bytes();
        if (state.served->model != nullptr) info.tasks = state.served->model->config().tasks;
        info.content_hash = state.served->content_hash;
        info.calibration = state.served->calibration.number;
      }
      list.push_back(std::move(info));
    }
  }
  return list;
}

std::vector<std::shared_ptr<const ServedModel>> ModelRepository::Ready() const {
  std::vector<std::shared_ptr<const ServedModel>> ready;
  std::lock_guard lock(mutex_);
  for (const auto& [name, model] : models_) {
    for (const auto& [version, entry] : model.versions) {
      if (entry.served != nullptr) ready.push_back(entry.served);
    }
  }
  return ready;
}

}  // namespace backstory
