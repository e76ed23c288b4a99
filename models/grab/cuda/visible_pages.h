// What candidates see of one channel, as pages for kernels/cuda/attend.h: which pages of the pool serve as they are,
// and which rows must be copied to scratch pages with their bias folded in. Needs no CUDA.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_VISIBLE_PAGES_H_
#define BACKSTORY_MODELS_GRAB_CUDA_VISIBLE_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/attend.h"
#include "models/grab/key_runs.h"

namespace backstory::grab {

struct VisiblePages {
  // `page` is the page's place in the channel. Bias segment t is position n_pos - 1 with time bucket t.
  std::vector<cuda::PageEntry> direct;
  // Rows for scratch pages, 128 to a page, oldest first.
  struct Fold {
    uint32_t row = 0;
    uint16_t position = 0;
    uint16_t time = 0;
  };
  std::vector<Fold> folded;
  size_t pages() const { return direct.size() + (folded.size() + cuda::kPageRows - 1) / cuda::kPageRows; }
};

// `runs` as CandidateRuns makes them, of a channel of `rows` rows. A page serves as it is if all of its rows are
// visible, lie beyond the position codebook's end and in at most two time buckets; other pages' visible rows are
// folded. Rows beyond a page's last are taken to be zero in the pool.
VisiblePages FindVisiblePages(std::span<const KeyRun> runs, size_t rows, size_t n_pos);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_VISIBLE_PAGES_H_
