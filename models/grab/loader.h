// Version directory -> model that scores. The one way a GRAB model comes into being outside tests.
#ifndef BACKSTORY_MODELS_GRAB_LOADER_H_
#define BACKSTORY_MODELS_GRAB_LOADER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/thread_pool.h"
#include "models/golden.h"
#include "models/grab/model.h"
#include "models/grab/version.h"

namespace backstory::grab {

// As CreateModel, for another machine than the CPU.
using ModelFactory = std::function<absl::StatusOr<std::unique_ptr<Model>>(const Config&, const TensorMap&, ThreadPool*,
                                                                          Dtype precision)>;

struct LoadOptions {
  ThreadPool* pool = nullptr;  // outlives the model; null: the calling thread
  std::string expected_name;   // not empty: the configuration's name must be this (the repository's folder)
  // What K/V and the layers are stored in and multiplied as (model.h). A bf16 model is loaded after an fp32 one of the
  // same files has met the goldens at full sharpness, and must meet them within kGoldenToleranceBf16.
  Dtype precision = Dtype::kF32;
  // Makes the model that serves, if set; it too follows an fp32 one on the CPU and must meet the goldens as a bf16 one.
  ModelFactory serve_with;
};

// Immutable once loaded. `model` keeps what it needs of the files; nothing else does.
struct LoadedGrab {
  std::string name;
  std::string version;
  std::string hash;
  Config config;
  Dtype precision = Dtype::kF32;
  std::shared_ptr<const Model> model;
  CalibrationMap calibrations;
  GoldenReport goldens;

  // The newest one; the logistic function where the version has none.
  std::shared_ptr<const Calibration> calibration() const;
};

// Reads and verifies the files, builds the model, scores the goldens. Errors of ReadVersion; INVALID_ARGUMENT for
// another name; FAILED_PRECONDITION naming the golden case, candidate, expected and found. Nothing is kept on failure.
absl::StatusOr<std::shared_ptr<const LoadedGrab>> LoadGrabVersion(const std::string& path,
                                                                  const LoadOptions& options = {});

// Writes MANIFEST for a directory that has all other files, after loading it as a server would; if that fails the
// directory is left without one. FAILED_PRECONDITION if it has one.
absl::Status SealVersion(const std::string& path, const LoadOptions& options = {});

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_LOADER_H_
