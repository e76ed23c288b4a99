// A loaded model version as the engine uses it, whatever its file format. Immutable once handed over; shared by
// requests.
#ifndef BACKSTORY_SERVING_ENGINE_SERVED_MODEL_H_
#define BACKSTORY_SERVING_ENGINE_SERVED_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "models/grab/model.h"

namespace backstory {

class GenerativeModel;

enum class ModelKind { kRanking, kGenerative };

// How probabilities are made of logits. Immutable.
struct ServedCalibration {
  uint32_t number = 0;  // n of calibration/<n>.textproto; 0: the version has none
  // Logit of task (index into config().tasks) in a scene -> probability. Monotone. Empty: the logistic function.
  std::function<float(std::string_view scene, int task, float logit)> probability;

  std::string config_version() const { return "calibration-" + std::to_string(number); }
};

struct ServedModel {
  std::string name;
  std::string version;
  std::string content_hash;                           // of the version directory's MANIFEST
  std::shared_ptr<const grab::Model> model;           // may alias whatever keeps its weights alive; null: generative
  std::shared_ptr<const GenerativeModel> generative;  // of a version that recommends: then the rest stays empty
  std::string generative_state_id;                    // what `generative` calls its user states
  uint64_t generative_bytes = 0;                      // of its parameters
  ServedCalibration calibration;             // in force
  // Reads another one of this version, without the weights. NOT_FOUND, INVALID_ARGUMENT or DATA_LOSS says what was
  // found in which file. Empty: there is nothing to read from.
  std::function<absl::StatusOr<ServedCalibration>(uint32_t number)> read_calibration;

  ModelKind kind() const { return generative != nullptr ? ModelKind::kGenerative : ModelKind::kRanking; }
  uint64_t parameter_bytes() const { return generative != nullptr ? generative_bytes : model->parameter_bytes(); }
  const std::string& state_id() const { return generative != nullptr ? generative_state_id : model->state_id(); }
};

// Where a version lies and what it has to be.
struct ModelSource {
  std::string path;  // <repository>/<model>/<version>
  std::string model;
  std::string version;
};

// Reads, verifies and checks goldens of a version. Must be thread-safe. DATA_LOSS or INVALID_ARGUMENT or
// FAILED_PRECONDITION says what was found (tensor, file, golden case); nothing is kept on failure.
using ModelLoader = std::function<absl::StatusOr<std::shared_ptr<const ServedModel>>(const ModelSource&)>;

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_SERVED_MODEL_H_
