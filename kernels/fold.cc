#include "kernels/fold.h"

#include <algorithm>

namespace backstory {

FoldCodes::FoldCodes(const float* pos, size_t n_pos, const float* time, size_t n_time, size_t d_k)
    : n_pos_(n_pos),
      d_k_(d_k),
      stride_(static_cast<size_t>(kLead) + n_pos + 2 * kPanel),
      time_(time, time + n_time * d_k) {
  pos_.resize(d_k * stride_);
  for (size_t i = 0; i < d_k; ++i) {
    for (size_t u = 0; u < stride_; ++u) {
      // Lanes before the run's first row or beyond its last are read, and left out: any entry will do there.
      const ptrdiff_t rank = static_cast<ptrdiff_t>(n_pos) - 1 + kLead - static_cast<ptrdiff_t>(u);
      const ptrdiff_t entry = std::clamp<ptrdiff_t>(rank, 0, static_cast<ptrdiff_t>(n_pos) - 1);
      pos_[i * stride_ + u] = pos[static_cast<size_t>(entry) * d_k + i];
    }
  }
}

}  // namespace backstory
