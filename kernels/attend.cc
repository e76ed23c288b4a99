#include "kernels/attend.h"

#include <algorithm>
#include <cstring>
#include <vector>

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

void FoldBias(const FoldBiasArgs& args) {
  const PageShape& shape = args.shape;
  std::memcpy(args.to->k(), args.from.k, shape.k_size() * shape.element_bytes());
  std::memcpy(args.to->v(), args.from.v, shape.v_size() * shape.element_bytes());
  const size_t begin = args.page * kPageRows;
  std::vector<float> k(shape.kv_heads * shape.d_k), v(shape.kv_heads * shape.d_v);
  for (const KeyRun& run : args.runs) {
    if (run.time == KeyRun::kNoBias) continue;
    const size_t from = std::max<size_t>(run.begin, begin), to = std::min<size_t>(run.end, begin + kPageRows);
    for (size_t row = from; row < to; ++row) {
      const size_t rank = std::min<size_t>(run.rank - (row - run.begin), args.n_pos - 1);
      ReadRow(shape, row - begin, args.from, k.data(), v.data());
      for (size_t i = 0; i < k.size(); ++i) {
        const size_t dim = i % shape.d_k;
        k[i] += args.bpos[rank * shape.d_k + dim] + args.btime[run.time * shape.d_k + dim];
      }
      WriteRow(shape, row - begin, k.data(), v.data(), args.to);
    }
  }
}

}  // namespace backstory
