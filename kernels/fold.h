// FOLDED pages: the newest rows' position and time bias added to their keys once per request, instead of a table row
// per query. logit = q . (k + pos[rank] + time[bucket]) scale, so a folded page needs no bias (KeyRun::kNoBias).
#ifndef BACKSTORY_KERNELS_FOLD_H_
#define BACKSTORY_KERNELS_FOLD_H_

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/attend.h"
#include "kernels/page.h"

namespace backstory {

// The bias codebooks, laid out so that 16 rows of falling rank are one load: per dim, newest last, the entry of ranks
// >= n_pos - 1 repeated before the others.
class FoldCodes {
 public:
  FoldCodes() = default;
  // pos [n_pos][d_k], time [n_time][d_k], row-major, shared by the heads.
  FoldCodes(const float* pos, size_t n_pos, const float* time, size_t n_time, size_t d_k);

  size_t n_pos() const { return n_pos_; }
  size_t d_k() const { return d_k_; }
  // Entries of 16 rows whose first has this rank (which may be negative or beyond the codebook); add dim * stride().
  const float* Pos(ptrdiff_t rank) const {
    const ptrdiff_t before = static_cast<ptrdiff_t>(n_pos_) - 1 - rank;
    return pos_.data() + (before < -kLead ? 0 : kLead + before);
  }
  size_t stride() const { return stride_; }
  const float* Time(size_t bucket) const { return time_.data() + bucket * d_k_; }
  size_t bytes() const { return (pos_.size() + time_.size()) * sizeof(float); }

 private:
  static constexpr ptrdiff_t kLead = kPanel;
  size_t n_pos_ = 0, d_k_ = 0, stride_ = 0;
  std::vector<float> pos_;   // [d_k][stride]
  std::vector<float> time_;  // [n_time][d_k]
};

// K' = K + (pos[rank] + time[bucket]) of the rows of page `page` that the runs show, rounded to what the page is stored
// in; other rows keep their values, and V is not touched. In bf16 a key is thus rounded twice:
// |error of a logit| <= 2^-8 scale sum |q| |k + bias| beside that of k itself.
struct FoldBiasArgs {
  PageShape shape;
  const void* from = nullptr;  // K of the page
  size_t page = 0;
  std::span<const KeyRun> runs;  // of all queries
  const FoldCodes* codes = nullptr;
  void* to = nullptr;  // shape.k_size() elements, 64-byte aligned; not `from`
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_FOLD_H_
