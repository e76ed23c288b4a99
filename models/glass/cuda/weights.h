// A GLASS version's tensors as the kernels read them, on the card. Private to this folder.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_WEIGHTS_H_
#define BACKSTORY_MODELS_GLASS_CUDA_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "models/glass/config.h"
#include "models/glass/cuda/kernels.h"
#include "models/grab/cuda/device.h"
#include "models/tensor_map.h"

namespace backstory::glass::cuda {

// `value` as `parts` bf16 numbers that sum to it, each the rest's nearest.
void SplitToBf16(float value, int parts, uint16_t* out);

using Element = std::function<float(int n, int k)>;
// A matrix [n][k] (n a multiple of 8, k of 32) in the order of ByColumns (tile.cuh): for each n8 tile, each 32 of k and
// each part, lane 4 g + c has of row g columns 2c, 2c + 1, 2c + 8, 2c + 9, and the same 16 further on.
std::vector<uint16_t> PackByColumns(int n, int k, int parts, const Element& element);
// (n a multiple of 16, k of 32): for each 16 of k, each pair of n8 tiles and each part, lane 4 g + c has of row g
// columns 2c, 2c + 1, 2c + 8, 2c + 9, and the same of row g + 8 (ffn.cuh).
std::vector<uint16_t> PackByRows(int n, int k, int parts, const Element& element);

struct CardWeights {
  grab::CudaBuffer memory;
  Model model;
};

// FAILED_PRECONDITION naming a field that the kernels are not made for; else as LoadWeights.
absl::StatusOr<std::unique_ptr<CardWeights>> UploadWeights(const Config& config, const TensorMap& tensors, int parts,
                                                           grab::CudaDevice* device);

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_WEIGHTS_H_
