// GRAB's weights packed for the card: bf16 matrices as [out][in] rows with all channels of a layer side by side, widths
// padded by zeroes to what tensor cores read. Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_WEIGHTS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "models/grab/config.h"
#include "models/grab/cuda/device.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Padded widths.
struct CudaWidths {
  int channels = 0, layers = 0, heads = 0, tasks = 0;
  int d = 0, stride = 0;                  // token width, and padded
  int d_head = 0, d_h = 0;                // head width, and what the kernel runs: 64 or 128
  int wide = 0;                           // heads * d_h
  int latent = 0, inner = 0;              // 0: none; width of what q, k, v are made of
  int ffn = 0, hidden = 0, segments = 0;  // padded FFN, head and time buckets
  int n_pos = 0, n_time = 0, n_act = 0;
  int table = 0;  // n_pos + n_time, padded: biases of one history row and head
};
// INVALID_ARGUMENT naming what the card's kernels cannot do (d_head > 128, too wide a row).
absl::StatusOr<CudaWidths> CudaWidthsOf(const Config& config);

// Offsets, in elements of the bf16 or the fp32 part.
struct CudaLayerOffsets {
  size_t wd = 0, wqkv = 0, wbias = 0, wo = 0, w1 = 0, w2 = 0;  // bf16 [channels][out][in]
  size_t qkv_b = 0, b1 = 0;                                    // bf16 [channels][..]
  size_t b2 = 0, n1_g = 0, n1_b = 0, n2_g = 0, n2_b = 0;       // fp32 [channels][stride]
  size_t gate_w = 0, gate_b = 0;                               // fp32 [from][gate][stride], [gate]
};

struct CudaWeights {
  CudaWidths widths;
  std::vector<CudaLayerOffsets> layers;
  size_t head_w1 = 0;                            // bf16 [hidden][channels * stride]
  size_t head_b1 = 0, head_w2 = 0, head_b2 = 0;  // fp32 [hidden], [tasks][hidden], [tasks]
  size_t pos = 0, time = 0, act = 0;             // fp32 [layers][channels][n_pos | n_time | n_act][d_h]
  size_t codes = 0;                              // bf16 [layers][channels][table][d_h]: positions, then time buckets
  CudaBuffer matrices, vectors;

  const uint16_t* matrix(size_t offset) const { return matrices.as<uint16_t>() + offset; }
  const float* vector(size_t offset) const { return vectors.as<float>() + offset; }
};

// NOT_FOUND or INVALID_ARGUMENT naming the tensor; errors of the device.
absl::StatusOr<CudaWeights> LoadCudaWeights(const Config& config, const TensorMap& tensors, CudaDevice* device);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_WEIGHTS_H_
