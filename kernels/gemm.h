// Dense layers: C = A B (+ bias) (relu), weights packed once.
#ifndef BACKSTORY_KERNELS_GEMM_H_
#define BACKSTORY_KERNELS_GEMM_H_

#include <cstddef>

#include "kernels/aligned.h"
#include "kernels/page.h"

namespace backstory {

// B as column panels: panel p is [k][16], columns 16p .. 16p+15 of B, zero beyond n.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // b [k][n] row-major with row stride ldb >= n.
  PackedMatrix(const float* b, size_t k, size_t n, size_t ldb);

  size_t k() const { return k_; }
  size_t n() const { return n_; }
  size_t panel_count() const { return (n_ + kPanel - 1) / kPanel; }
  const float* panel(size_t p) const { return panels_.data() + p * k_ * kPanel; }
  float At(size_t row, size_t column) const { return panel(column / kPanel)[row * kPanel + column % kPanel]; }
  size_t bytes() const { return panels_.size() * sizeof(float); }

 private:
  size_t k_ = 0, n_ = 0;
  AlignedFloats panels_;
};

// c[i][j] = f(sum over k ascending of a[i][k] b[k][j] + bias[j]), one fused multiply-add chain from zero per element:
// the bits of an element depend on its row of A and its column of B alone, never on m, on threads, or on what stands
// beside it. |error| <= k eps sum |a||b| / (1 - k eps), eps = 2^-24.
struct GemmArgs {
  const float* a = nullptr;  // [m][k], row stride lda
  size_t lda = 0;
  size_t m = 0;
  const PackedMatrix* b = nullptr;
  const float* bias = nullptr;  // [n] or nullptr
  bool relu = false;
  size_t first_panel = 0;  // columns before 16 * first_panel are neither computed nor written
  float* c = nullptr;      // [m][n], row stride ldc; must not overlap a
  size_t ldc = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_GEMM_H_
