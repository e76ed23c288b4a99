#include "kernels/gemm.h"

#include <cassert>

namespace backstory {

PackedMatrix::PackedMatrix(const float* b, size_t k, size_t n, size_t ldb)
    : k_(k), n_(n), panels_((n + kPanel - 1) / kPanel * kPanel * k) {
  assert(ldb >= n);
  for (size_t column = 0; column < n; ++column) {
    float* to = panels_.data() + column / kPanel * k * kPanel + column % kPanel;
    for (size_t row = 0; row < k; ++row) to[row * kPanel] = b[row * ldb + column];
  }
}

}  // namespace backstory
