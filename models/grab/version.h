// A GRAB version directory, <repository>/<model>/<version>/, read and checked but not yet a model. Start at
// docs/reference/model-files.md for the files; models/grab/loader.h turns this into something that scores.
#ifndef BACKSTORY_MODELS_GRAB_VERSION_H_
#define BACKSTORY_MODELS_GRAB_VERSION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/calibration.h"
#include "models/golden.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

using CalibrationMap = std::map<uint32_t, std::shared_ptr<const Calibration>>;  // by version, newest last

struct VersionFiles {
  std::string path;
  std::string version;  // last component of the path
  std::string hash;     // 16 hex digits, of the MANIFEST
  Config config;
  TensorMap tensors;  // exactly those that the configuration calls for, all finite
  CalibrationMap calibrations;
  std::vector<GoldenCase> goldens;        // at least one
  std::map<std::string, uint64_t> files;  // path -> bytes, MANIFEST excluded
};

// Reads everything or nothing. NOT_FOUND: no directory, or no MANIFEST in it. DATA_LOSS: a file that is not what
// MANIFEST says, or a damaged tensor file. INVALID_ARGUMENT: files that are whole but wrong (configuration, a tensor
// missing, too many or of another shape, calibration, goldens, no weights). Each names file, tensor or field, expected
// and found.
absl::StatusOr<VersionFiles> ReadVersion(const std::string& path);

// One calibration of a version, without reading the rest: what a swap needs. NOT_FOUND if there is none of that number.
absl::StatusOr<std::shared_ptr<const Calibration>> ReadCalibration(const std::string& path, uint32_t number,
                                                                   const std::vector<std::string>& tasks);

// Adds a calibration beside the existing ones, numbered one above the newest; returns the number. The version's other
// files, and so its hash, stay as they are. One caller at a time per directory.
absl::StatusOr<uint32_t> AddCalibration(const std::string& path, const Calibration::Entries& entries,
                                        const std::vector<std::string>& tasks);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_VERSION_H_
