// glass::Config from protobuf text (proto/backstory/model/v1/glass.proto), the content of model.textproto.
#ifndef BACKSTORY_MODELS_GLASS_CONFIG_TEXT_H_
#define BACKSTORY_MODELS_GLASS_CONFIG_TEXT_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "models/glass/config.h"

namespace backstory::glass {

inline constexpr size_t kConfigTextBytesMax = 1 << 20;

// Strict: INVALID_ARGUMENT with `source_name`:line:column for text that is no GlassModel, with the field and its limit
// for a value out of range. A field that is absent has its default, which may depend on `profile`.
absl::StatusOr<Config> ConfigFromText(std::string_view text, std::string_view source_name);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CONFIG_TEXT_H_
