// grab::Config <-> protobuf text (proto/backstory/model/v1/model.proto), the content of model.textproto.
#ifndef BACKSTORY_MODELS_GRAB_CONFIG_TEXT_H_
#define BACKSTORY_MODELS_GRAB_CONFIG_TEXT_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/config.h"

namespace backstory::grab {

inline constexpr size_t kConfigTextBytesMax = 1 << 20;

// Strict: INVALID_ARGUMENT with `source_name`:line:column for text that is no GrabModel (unknown field, a field given
// twice, a number out of its type's range), with the field and its limit for a value that Validate refuses.
absl::StatusOr<Config> ConfigFromText(std::string_view text, std::string_view source_name);

// Every field is written, defaults included, so that the file says all there is to say. ConfigFromText gives it back.
std::string ConfigToText(const Config& config);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CONFIG_TEXT_H_
