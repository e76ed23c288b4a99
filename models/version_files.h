// What every kind of model version shares: weight files by name, and the version's own name. Private to models.
#ifndef BACKSTORY_MODELS_VERSION_FILES_H_
#define BACKSTORY_MODELS_VERSION_FILES_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/manifest.h"
#include "models/tensor_map.h"

namespace backstory {

// "weights-00001-of-00002.safetensors"
std::string WeightsFileName(int index, int count);

// Last component of the path of a version directory; "a/b/" and "a/b/." are b.
std::string VersionNameOf(const std::string& path);

// INVALID_ARGUMENT "<path>: missing" unless MANIFEST lists it.
absl::StatusOr<const MappedFile*> RequiredFile(const VerifiedFiles& files, const std::string& name);

// Adds the tensors of every weights-*.safetensors. INVALID_ARGUMENT: none, or one of the numbered files is missing.
absl::Status ReadWeightFiles(const VerifiedFiles& files, TensorMap* tensors);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_VERSION_FILES_H_
