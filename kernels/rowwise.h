// Everything that works row by row: normalisation, gates, residuals, pooling.
#ifndef BACKSTORY_KERNELS_ROWWISE_H_
#define BACKSTORY_KERNELS_ROWWISE_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace backstory {

// y = g (x - mean) / sqrt(var + eps) + b per row, two passes over the row. y may be x. g and b may be nullptr (1 and
// 0). With `add`, of x + add.
struct LayerNormArgs {
  const float* x = nullptr;  // [rows][n]
  size_t rows = 0;
  size_t n = 0;
  const float* g = nullptr;  // [n]
  const float* b = nullptr;  // [n]
  float eps = 1e-5f;
  const float* add = nullptr;  // [rows][n] or nullptr
  float* y = nullptr;  // [rows][n]
};

// Mean and centred sum of squares of one row, for statistics that are joined over parts (Chan et al.).
struct Moments {
  float mean = 0;
  float m2 = 0;
};

// Target mixing: x_c[i] += sum over s != c of beta[i][s] x_s[i], sources ascending, all from the old values.
struct MixArgs {
  static constexpr size_t kMaxChannels = 16;
  std::span<float* const> x;    // [channels], each [rows][d]
  const float* beta = nullptr;  // [rows][channels]
  size_t rows = 0;
  size_t d = 0;
};

// Sum-pools table rows: out[i] = sum over ids of token i, in order, of table[id]; zero for an empty list.
struct EmbeddingBagArgs {
  const float* table = nullptr;  // [vocab][width]
  size_t width = 0;
  const uint32_t* offsets = nullptr;  // [rows + 1]
  const uint32_t* ids = nullptr;      // < vocab
  size_t rows = 0;
  float* out = nullptr;  // [rows][width], row stride out_stride
  size_t out_stride = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_ROWWISE_H_
