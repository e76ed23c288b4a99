// How one product runs: what pages and weights are stored in, what the other operand is turned into, and the tile that
// multiplies them. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_OPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_OPS_INL_H_
#undef BACKSTORY_KERNELS_CPU_OPS_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_OPS_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/bf16_dot.h"
#include "kernels/cpu/logits-inl.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// RoundToBf16 of kernels/dtype.h, lane by lane.
HWY_INLINE Vec RoundVec(Vec x) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> du;
  const auto bits = hn::BitCast(du, x), upper = hn::Set(du, 0xffff0000u);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const Vec rounded = hn::BitCast(d, hn::And(hn::Add(hn::Add(bits, hn::Set(du, 0x7fffu)), odd), upper));
  const Vec quiet = hn::BitCast(d, hn::And(hn::Or(bits, hn::Set(du, 0x400000u)), upper));
  const Vec zero = hn::And(x, hn::BitCast(d, hn::Set(du, 0x80000000u)));
  const Vec number = hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-126f)), zero, rounded);
  return hn::IfThenElse(hn::IsNaN(x), quiet, number);
}

// Softmax weights of one page in place, row by row: s[r][first, last) becomes exp2(s - top[r]), zero for an infinite
// top; the unrounded weights are added to sums[r], [rows][16], lane by lane: zeros at either end leave no trace.
template <bool kRound>
HWY_INLINE void WeightsOf(const WeightsArgs& args) {
  const Tag d;
  for (size_t r = 0; r < args.rows; ++r) {
    float* s = args.s + r * args.s_stride;
    const Vec m = hn::Set(d, args.top[r]);
    Vec total = hn::Load(d, args.sums + r * kPanel);
    for (size_t j = args.first; j < args.last; j += kLanes) {
      const Vec weight = Exp2(hn::Sub(hn::Load(d, s + j), m));
      hn::Store(kRound ? RoundVec(weight) : weight, d, s + j);
      total = hn::Add(total, weight);
    }
    hn::Store(total, d, args.sums + r * kPanel);
  }
}

// maxima[r] [16] = the largest of row r's `panels` panels at c, lane by lane.
HWY_INLINE void MaximaOf(const float* c, size_t ldc, size_t rows, size_t panels, float* maxima) {
  const Tag d;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t v = 0; v < kVecs; ++v) {
      const float* x = c + r * ldc + v * kLanes;
      Vec top = hn::LoadU(d, x);
      for (size_t p = 1; p < panels; ++p) top = hn::Max(top, hn::LoadU(d, x + p * kPanel));
      hn::Store(top, d, maxima + r * kPanel + v * kLanes);
    }
  }
}

// One panel of paired keys plus biases add [2 * pairs][16], rounded again.
HWY_INLINE void AddToPairs(const Bf16AddArgs& a) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> du;
  for (size_t i = 0; i < a.pairs; ++i) {
    for (size_t v = 0; v < kVecs; ++v) {
      const size_t at = 2 * kPanel * i + v * 2 * kLanes;
      const float* add = a.add + 2 * kPanel * i + v * kLanes;
      const auto both = hn::Load(du, reinterpret_cast<const uint32_t*>(a.from + at));
      const Vec low = RoundVec(hn::Add(hn::BitCast(d, hn::ShiftLeft<16>(both)), hn::Load(d, add)));
      const Vec high =
          RoundVec(hn::Add(hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u))), hn::Load(d, add + kPanel)));
      const auto packed = hn::Or(hn::ShiftRight<16>(hn::BitCast(du, low)), hn::BitCast(du, high));
      hn::Store(packed, du, reinterpret_cast<uint32_t*>(a.to + at));
    }
  }
}

struct F32Ops {
  using Stored = float;   // elements of pages and packed weights
  using Operand = float;  // elements of the rows that meet them
  static constexpr bool kRounds = false;

  template <bool kAdd>
  static HWY_INLINE void Panels(const float* a, size_t lda, size_t rows, const float* panel, size_t panel_stride,
                                size_t panels, size_t depth, float* c, size_t ldc, const Ahead& ahead = {},
                                float* maxima = nullptr) {
    ahead.Prefetch();
    TilePanels<kAdd>(a, lda, rows, panel, panel_stride, panels, depth, c, ldc);
    if (maxima != nullptr) MaximaOf(c, ldc, rows, panels, maxima);
  }
  static HWY_INLINE void Weights(const WeightsArgs& args) { WeightsOf<false>(args); }
};

// bf16 storage on any machine: operands are rounded to bf16 but held, and multiplied, as floats.
struct WidenOps {
  using Stored = Bf16;
  using Operand = float;
  static constexpr bool kRounds = true;

  template <bool kAdd>
  static HWY_INLINE void Panels(const float* a, size_t lda, size_t rows, const Bf16* panel, size_t panel_stride,
                                size_t panels, size_t depth, float* c, size_t ldc, const Ahead& ahead = {},
                                float* maxima = nullptr) {
    ahead.Prefetch();
    TilePanels<kAdd>(a, lda, rows, panel, panel_stride, panels, depth, c, ldc);
    if (maxima != nullptr) MaximaOf(c, ldc, rows, panels, maxima);
  }
  static HWY_INLINE void Weights(const WeightsArgs& args) { WeightsOf<true>(args); }
  static HWY_INLINE void AddPairs(const Bf16AddArgs& args) { AddToPairs(args); }
  // n operands -> floats.
  static HWY_INLINE void Widen(const float* from, size_t n, float* to) { std::memcpy(to, from, n * sizeof(float)); }
  // n floats -> operands, zero-padded to whole pairs. May work in place.
  static HWY_INLINE void Convert(const float* from, size_t n, float* to) {
    const Tag d;
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) hn::StoreU(RoundVec(hn::LoadU(d, from + i)), d, to + i);
    for (; i < n; ++i) to[i] = RoundToBf16(from[i]);
    if (n % 2 == 1) to[n] = 0;
  }
};

// bf16 storage where the machine multiplies pairs (bf16_dot.h).
struct DotOps {
  using Stored = Bf16;
  using Operand = Bf16;
  static constexpr bool kRounds = true;

  template <bool kAdd>
  static HWY_INLINE void Panels(const Bf16* a, size_t lda, size_t rows, const Bf16* panel, size_t panel_stride,
                                size_t panels, size_t depth, float* c, size_t ldc, const Ahead& ahead = {},
                                float* maxima = nullptr) {
    // Sums of 16 are over before their tile has hidden the maxima (8 pairs: 14 % slower than a pass of their own).
    const bool within = maxima != nullptr && depth >= 32;
    Bf16DotPanels({a, lda, rows, panel, panel_stride, panels, depth / 2, c, ldc, kAdd, ahead.from, ahead.bytes,
                   within ? maxima : nullptr});
    if (maxima != nullptr && !within) MaximaOf(c, ldc, rows, panels, maxima);
  }
  static HWY_INLINE void Weights(const WeightsArgs& args) { Bf16Weights(args); }
  static HWY_INLINE void AddPairs(const Bf16AddArgs& args) { Bf16Add(args); }
  static HWY_INLINE void Convert(const float* from, size_t n, Bf16* to) { Bf16Convert(from, n, to); }
  static HWY_INLINE void Widen(const Bf16* from, size_t n, float* to) {
    const Tag d;
    const hn::RebindToUnsigned<Tag> du;
    const hn::Rebind<uint16_t, Tag> half;
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(half, from + i)))), d, to + i);
    }
    for (; i < n; ++i) to[i] = FromBf16(from[i]);
  }
};

// Workspace is handed out in floats; operands take no more room.
template <class Ops>
HWY_INLINE typename Ops::Operand* OperandsOf(float* memory) {
  return reinterpret_cast<typename Ops::Operand*>(memory);
}

// Query i, scaled, as operands at q; returns it as floats (at `scratch`, [d_k + 1], or at q).
template <class Ops>
HWY_INLINE const float* StartQuery(const Call& call, size_t i, float* scratch, typename Ops::Operand* q) {
  if constexpr (Ops::kRounds) {
    const size_t d_k = call.args->shape.d_k;
    call.ScaleQuery(i, scratch);
    Ops::Convert(scratch, d_k, q);
    Ops::Widen(q, d_k, scratch);
    return scratch;
  } else {
    call.ScaleQuery(i, q);
    return q;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_OPS_INL_H_
