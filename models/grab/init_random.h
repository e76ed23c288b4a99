// Untrained models: for load tests, and for tests that need a model of some shape. Deterministic: the same
// configuration and seed give the same bytes on every machine.
#ifndef BACKSTORY_MODELS_GRAB_INIT_RANDOM_H_
#define BACKSTORY_MODELS_GRAB_INIT_RANDOM_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Two channels (everything shown, what was clicked) over exposures and clicks, with a generic tokenizer:
//   grab-512   4 layers, 4 heads x 128, d 512, ffn 1024
//   grab-256   4 layers, 4 heads x 64, d 256, ffn 512
//   grab-dlrm  5 layers, one channel, 4 heads x 128, d 512, ffn 1024: the size of MLPerf's DLRMv3
//   grab-tiny  2 layers, 2 heads x 8, d 16, ffn 24: for tests, loads in milliseconds
// NOT_FOUND listing the names.
absl::StatusOr<Config> PresetConfig(std::string_view name);
std::vector<std::string> PresetNames();

// Matrices uniform within Xavier's bound, norms one and zero, tables and codebooks small and uniform.
TensorMap RandomWeights(const Config& config, uint64_t seed);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_INIT_RANDOM_H_
