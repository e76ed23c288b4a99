#include "kernels/attend.h"

#include <algorithm>

namespace backstory {

PageKind ClassifyPage(std::span<const KeyRun> runs, size_t page, size_t count, size_t n_pos) {
  const size_t begin = page * kPageRows, end = begin + count;
  size_t pieces = 0, covered = 0;
  bool saturated = true;
  for (const KeyRun& run : runs) {
    const size_t from = std::max<size_t>(run.begin, begin), to = std::min<size_t>(run.end, end);
    if (from >= to) continue;
    ++pieces;
    covered += to - from;
    const size_t lowest_rank = run.rank - (to - 1 - run.begin);
    saturated &= run.time == KeyRun::kNoBias || lowest_rank + 1 >= n_pos;
  }
  if (pieces == 0) return PageKind::kHidden;
  if (!saturated || covered != count || pieces > 2) return PageKind::kTable;
  return pieces == 1 ? PageKind::kUniform : PageKind::kSplit;
}

}  // namespace backstory
