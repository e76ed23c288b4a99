#include "kernels/gemm.h"

#include <cassert>

namespace backstory {

PackedMatrix::PackedMatrix(const float* b, size_t k, size_t n, size_t ldb, Dtype dtype) : k_(k), n_(n), dtype_(dtype) {
  assert(ldb >= n);
  const size_t size = panel_count() * panel_size();
  if (dtype == Dtype::kF32) {
    f32_ = AlignedArray<float>(size);
  } else {
    bf16_ = AlignedArray<Bf16>(size);
  }
  for (size_t column = 0; column < n; ++column) {
    const size_t to = column / kPanel * panel_size(), j = column % kPanel;
    for (size_t row = 0; row < k; ++row) {
      const float value = b[row * ldb + column];
      if (dtype == Dtype::kF32) {
        f32_[to + row * kPanel + j] = value;
      } else {
        bf16_[to + (row / 2 * kPanel + j) * 2 + row % 2] = ToBf16(value);
      }
    }
  }
}

float PackedMatrix::At(size_t row, size_t column) const {
  const size_t p = column / kPanel, j = column % kPanel;
  if (dtype_ == Dtype::kF32) return panel(p)[row * kPanel + j];
  return FromBf16(bf16_panel(p)[(row / 2 * kPanel + j) * 2 + row % 2]);
}

}  // namespace backstory
