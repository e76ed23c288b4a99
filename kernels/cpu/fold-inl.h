// Folds bias into the keys of a page, for one target. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_FOLD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_FOLD_INL_H_
#undef BACKSTORY_KERNELS_CPU_FOLD_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_FOLD_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/fold.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// The part of a run that lies in one panel of 16 rows: lanes [first, last).
struct FoldPiece {
  size_t first, last;
  const float* pos;   // of lane 0; dims codes.stride() apart
  const float* time;  // [d_k]
};

// The biases of vector v of the panel's 16 lanes, dim i; zero where no piece is.
HWY_INLINE Vec BiasOf(const FoldPiece* pieces, size_t count, size_t stride, size_t i, size_t v) {
  const Tag d;
  Vec bias = hn::Zero(d);
  for (size_t p = 0; p < count; ++p) {
    const FoldPiece& piece = pieces[p];
    const Vec value = hn::Add(hn::LoadU(d, piece.pos + i * stride + v * kLanes), hn::Set(d, piece.time[i]));
    if (piece.first == 0 && piece.last == kPanel) return value;
    const size_t from = v * kLanes;
    const auto before_last = hn::FirstN(d, std::min(piece.last > from ? piece.last - from : 0, kLanes));
    const auto before_first = hn::FirstN(d, std::min(piece.first > from ? piece.first - from : 0, kLanes));
    bias = hn::IfThenElse(hn::AndNot(before_first, before_last), value, bias);
  }
  return bias;
}

// All heads of one panel, kFoldDims of their dims at a time.
constexpr size_t kFoldDims = 64;

template <class Bf16Ops>
HWY_INLINE void FoldPanel(const FoldBiasArgs& a, const FoldPiece* pieces, size_t count, size_t panel) {
  const Tag d;
  HWY_ALIGN float bias[kFoldDims * kPanel];
  const size_t stride = a.codes->stride(), d_k = a.shape.d_k, depth = a.shape.k_depth();
  for (size_t i0 = 0; i0 < depth; i0 += kFoldDims) {
    const size_t dims = std::min(kFoldDims, depth - i0);
    for (size_t i = 0; i < dims; ++i) {
      for (size_t v = 0; v < kVecs; ++v) {
        const Vec b = i0 + i < d_k ? BiasOf(pieces, count, stride, i0 + i, v) : hn::Zero(d);  // the padding of a pair
        hn::Store(b, d, bias + i * kPanel + v * kLanes);
      }
    }
    for (size_t h = 0; h < a.shape.kv_heads; ++h) {
      const size_t at = h * a.shape.k_head_size() + panel * kPanel * depth + i0 * kPanel;
      if (a.shape.dtype == Dtype::kBf16) {
        Bf16Ops::AddPairs({static_cast<const Bf16*>(a.from) + at, bias, dims / 2, static_cast<Bf16*>(a.to) + at});
        continue;
      }
      const float* from = static_cast<const float*>(a.from) + at;
      float* to = static_cast<float*>(a.to) + at;
      for (size_t x = 0; x < dims * kPanel; x += kLanes) {
        hn::Store(hn::Add(hn::Load(d, from + x), hn::Load(d, bias + x)), d, to + x);
      }
    }
  }
}

template <class Bf16Ops>
void FoldBias(const FoldBiasArgs& a) {
  const size_t base = a.page * kPageRows, panel_elements = kPanel * a.shape.k_depth();
  size_t next = 0;
  for (size_t panel = 0; panel < kPageRows / kPanel; ++panel) {
    const size_t begin = base + panel * kPanel, end = begin + kPanel;
    while (next < a.runs.size() && a.runs[next].end <= begin) ++next;
    FoldPiece pieces[kPanel];
    size_t count = 0;
    for (size_t r = next; r < a.runs.size() && a.runs[r].begin < end; ++r) {
      const KeyRun& run = a.runs[r];
      if (run.time == KeyRun::kNoBias || run.begin == run.end) continue;
      const ptrdiff_t rank = static_cast<ptrdiff_t>(run.rank) + static_cast<ptrdiff_t>(run.begin) -
                             static_cast<ptrdiff_t>(begin);  // of lane 0, as if the run went that far
      pieces[count++] = {std::max<size_t>(run.begin, begin) - begin, std::min<size_t>(run.end, end) - begin,
                         a.codes->Pos(rank), a.codes->Time(run.time)};
    }
    if (count > 0) {
      FoldPanel<Bf16Ops>(a, pieces, count, panel);
      continue;
    }
    const size_t bytes = panel_elements * a.shape.element_bytes();
    for (size_t h = 0; h < a.shape.kv_heads; ++h) {
      const size_t at = (h * a.shape.k_head_size() + panel * panel_elements) * a.shape.element_bytes();
      std::memcpy(static_cast<char*>(a.to) + at, static_cast<const char*>(a.from) + at, bytes);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_FOLD_INL_H_
