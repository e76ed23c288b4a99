#include "serving/engine/experiments/config.h"

namespace backstory {

std::string_view UnitName(UnitKind unit) {
  switch (unit) {
    case UnitKind::kUser:
      return "user";
    case UnitKind::kDevice:
      return "device";
    case UnitKind::kSession:
      return "session";
  }
  return "user";
}

std::string_view StateName(ExperimentState state) {
  switch (state) {
    case ExperimentState::kDraft:
      return "DRAFT";
    case ExperimentState::kRunning:
      return "RUNNING";
    case ExperimentState::kKilled:
      return "KILLED";
  }
  return "DRAFT";
}

std::string SaltOf(const HoldoutConfig& holdout) { return holdout.salt.empty() ? "holdout" : holdout.salt; }
std::string SaltOf(const LayerConfig& layer) { return layer.salt.empty() ? "layer/" + layer.name : layer.salt; }
std::string SaltOf(const ExperimentSpec& experiment) {
  return experiment.salt.empty() ? "experiment/" + experiment.name : experiment.salt;
}
std::string DomainSaltOf(const ExperimentConfig& config) {
  return config.domain_salt.empty() ? "domain" : config.domain_salt;
}

}  // namespace backstory
