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

HWY_INLINE void FoldPanel(const FoldBiasArgs& a, const FoldPiece* pieces, size_t count, size_t panel) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> du;
  const size_t stride = a.codes->stride(), d_k = a.shape.d_k, head_size = a.shape.k_head_size();
  const size_t at = panel * kPanel * a.shape.k_depth();
  for (size_t v = 0; v < kVecs; ++v) {
    if (a.shape.dtype == Dtype::kF32) {
      for (size_t i = 0; i < d_k; ++i) {
        const Vec bias = BiasOf(pieces, count, stride, i, v);
        const size_t place = at + i * kPanel + v * kLanes;
        for (size_t h = 0; h < a.shape.kv_heads; ++h) {
          const Vec k = hn::Load(d, static_cast<const float*>(a.from) + h * head_size + place);
          hn::Store(hn::Add(k, bias), d, static_cast<float*>(a.to) + h * head_size + place);
        }
      }
      continue;
    }
    for (size_t i = 0; i < d_k; i += 2) {
      const Vec even = BiasOf(pieces, count, stride, i, v);
      const Vec odd = i + 1 < d_k ? BiasOf(pieces, count, stride, i + 1, v) : hn::Zero(d);
      const size_t place = at + i * kPanel + v * 2 * kLanes;
      for (size_t h = 0; h < a.shape.kv_heads; ++h) {
        const Bf16* from = static_cast<const Bf16*>(a.from) + h * head_size + place;
        const auto both = hn::Load(du, reinterpret_cast<const uint32_t*>(from));
        const Vec low = RoundVec(hn::Add(hn::BitCast(d, hn::ShiftLeft<16>(both)), even));
        const Vec high = RoundVec(hn::Add(hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u))), odd));
        const auto packed = hn::Or(hn::ShiftRight<16>(hn::BitCast(du, low)), hn::BitCast(du, high));
        hn::Store(packed, du, reinterpret_cast<uint32_t*>(static_cast<Bf16*>(a.to) + h * head_size + place));
      }
    }
  }
}

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
      FoldPanel(a, pieces, count, panel);
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
