// Dense layers: C = A B (+ bias) (relu), weights packed once.
#ifndef BACKSTORY_KERNELS_GEMM_H_
#define BACKSTORY_KERNELS_GEMM_H_

#include <cstddef>
#include <cstdint>

#include "kernels/aligned.h"
#include "kernels/page.h"

namespace backstory {

// B as column panels, columns 16p .. 16p+15 of B in panel p, zero beyond n:
//   fp32  [k][16]
//   bf16  [ceil(k / 2)][16][2], rounded; rows 2i and 2i + 1 side by side
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // b [k][n] row-major with row stride ldb >= n.
  PackedMatrix(const float* b, size_t k, size_t n, size_t ldb, Dtype dtype = Dtype::kF32);

  size_t k() const { return k_; }
  size_t n() const { return n_; }
  Dtype dtype() const { return dtype_; }
  size_t panel_count() const { return (n_ + kPanel - 1) / kPanel; }
  const float* panel(size_t p) const { return f32_.data() + p * panel_size(); }
  const Bf16* bf16_panel(size_t p) const { return bf16_.data() + p * panel_size(); }
  size_t panel_size() const { return (dtype_ == Dtype::kF32 ? k_ : PairPadded(k_)) * kPanel; }
  float At(size_t row, size_t column) const;
  size_t bytes() const { return f32_.size() * sizeof(float) + bf16_.size() * sizeof(Bf16); }

 private:
  size_t k_ = 0, n_ = 0;
  Dtype dtype_ = Dtype::kF32;
  AlignedArray<float> f32_;  // one of the two
  AlignedArray<Bf16> bf16_;
};

// c[i][j] = f(sum over k ascending of a[i][k] b[k][j] + bias[j]), one chain from zero per element: the bits of an
// element depend on its row of A and its column of B alone, never on m, on threads, or on what stands beside it.
//   fp32  fused multiply-adds.  |error| <= k eps sum |a||b| / (1 - k eps), eps = 2^-24
//   bf16  A is rounded to bf16 row by row; products of pairs are exact, sums fp32. Beside the rounding of A and B the
//         same bound holds with 2k for k, + k 2^-126 where the machine's instruction takes denormals for zero.
struct GemmArgs {
  const float* a = nullptr;  // [m][k], row stride lda
  size_t lda = 0;
  size_t m = 0;
  const PackedMatrix* b = nullptr;
  const float* bias = nullptr;  // [n] or nullptr
  bool relu = false;
  // Columns outside panels [first_panel, end_panel) are neither computed nor written.
  size_t first_panel = 0;
  size_t end_panel = SIZE_MAX;
  float* c = nullptr;  // [m][n], row stride ldc; must not overlap a
  size_t ldc = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_GEMM_H_
