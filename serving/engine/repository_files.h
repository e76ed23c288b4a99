// The model repository on disk: <root>/<model>/<version>/MANIFEST, <root>/<model>/LABELS, <root>/<model>/CALIBRATIONS.
//
// LABELS is text, one "<label> <version>" a line, lines sorted by label. CALIBRATIONS is text, one "<version> <n>" a
// line: calibration n was put in force for that version; a version without a line uses its newest one. Both are written
// aside, synced and renamed.
#ifndef BACKSTORY_SERVING_ENGINE_REPOSITORY_FILES_H_
#define BACKSTORY_SERVING_ENGINE_REPOSITORY_FILES_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

bool IsModelName(std::string_view name);    // [a-z0-9_-]{1,64}; labels as well
bool IsVersionName(std::string_view name);  // [a-z0-9_.-]{1,64}, not starting with '.'

// Natural order: runs of digits compare as numbers, so that "v10" comes after "v9".
bool VersionLess(std::string_view a, std::string_view b);

// Complete versions (a MANIFEST is there) by model. Other names, files and symbolic links are passed over.
using RepositoryListing = std::map<std::string, std::vector<std::string>>;
absl::StatusOr<RepositoryListing> ListRepository(const std::string& root);

// OK if the version's directory has a MANIFEST and no part of the path below root is a symbolic link; else NOT_FOUND.
absl::Status CheckVersionDirectory(const std::string& root, const std::string& model, const std::string& version);

// Empty if there is no LABELS file. INVALID_ARGUMENT naming file and line.
absl::StatusOr<std::map<std::string, std::string>> ReadLabels(const std::string& root, const std::string& model);
absl::Status WriteLabels(const std::string& root, const std::string& model,
                         const std::map<std::string, std::string>& labels);

// By version. Empty if there is no CALIBRATIONS file. INVALID_ARGUMENT naming file and line.
absl::StatusOr<std::map<std::string, uint32_t>> ReadCalibrationChoices(const std::string& root,
                                                                       const std::string& model);
absl::Status WriteCalibrationChoices(const std::string& root, const std::string& model,
                                     const std::map<std::string, uint32_t>& choices);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_REPOSITORY_FILES_H_
