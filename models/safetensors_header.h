// The JSON header of a safetensors file. Private to models/safetensors*.cc.
#ifndef BACKSTORY_MODELS_SAFETENSORS_HEADER_H_
#define BACKSTORY_MODELS_SAFETENSORS_HEADER_H_

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "models/safetensors.h"

namespace backstory {

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in order of the header
  std::map<std::string, std::string> metadata;
};

// Syntax, limits and keys only; byte ranges are the caller's to check against the file. DATA_LOSS without the file
// name.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, const SafetensorsLimits& limits);

std::optional<DType> DTypeFromName(std::string_view name);

// Bytes of a tensor; nothing if a dimension is negative or the product overflows 64 bits.
std::optional<uint64_t> TensorBytes(std::span<const int64_t> shape, DType dtype);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_SAFETENSORS_HEADER_H_
