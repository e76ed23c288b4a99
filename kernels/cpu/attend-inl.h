// Attention and its explanation, included once per target. One kernel's body: over the size bar of a header.
#if defined(BACKSTORY_KERNELS_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#undef BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#endif

#include <algorithm>
#include <cassert>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/cpu/logits-inl.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// Softmax as the score function: weights are exp2(t - running maximum), normalised at the end. A score function without
// normalisation (SiLU) keeps `top` at zero, replaces Weights and leaves Finish to copy.
struct Softmax {
  HWY_ALIGN float sum[kAttendTile][kPanel];  // by lane
  float top[kAttendTile];

  HWY_INLINE void Start(size_t r, bool self, float logit2) {
    top[r] = self ? logit2 : kMinusInf;
    std::fill_n(sum[r], kPanel, 0.0f);
    sum[r][0] = self ? 1.0f : 0.0f;
  }

  // What logits whose maxima by lane are `maxima` [16], each to be shifted by `shift`, are to be lowered by: raises the
  // running maximum to theirs and rescales the output so far.
  HWY_INLINE float Raise(size_t r, float shift, size_t o_floats, const float* maxima, float* o) {
    const Tag d;
    Vec row_top = hn::Load(d, maxima);
    for (size_t j = kLanes; j < kPanel; j += kLanes) row_top = hn::Max(row_top, hn::Load(d, maxima + j));
    row_top = hn::Add(row_top, hn::Set(d, shift));
    if (!hn::AllFalse(d, hn::Gt(row_top, hn::Set(d, top[r])))) {
      const float new_top = hn::GetLane(hn::MaxOfLanes(d, row_top));
      const Vec shrink = Exp2(hn::Set(d, top[r] - new_top));
      for (size_t j = 0; j < kPanel; j += kLanes) hn::Store(hn::Mul(hn::Load(d, sum[r] + j), shrink), d, sum[r] + j);
      for (size_t j = 0; j < o_floats; j += kLanes) hn::Store(hn::Mul(hn::Load(d, o + j), shrink), d, o + j);
      top[r] = new_top;
    }
    return (top[r] == kMinusInf ? 0.0f : top[r]) - shift;
  }

  HWY_INLINE void Finish(size_t r, const float* from, size_t n, float* o, float* lse) const {
    const Tag d;
    Vec lanes = hn::Load(d, sum[r]);
    for (size_t j = kLanes; j < kPanel; j += kLanes) lanes = hn::Add(lanes, hn::Load(d, sum[r] + j));
    const float total = hn::GetLane(hn::SumOfLanes(d, lanes));
    Scale(from, n, total > 0 ? 1.0f / total : 0.0f, o);
    if (lse == nullptr) return;
    *lse = total > 0 ? static_cast<float>((static_cast<double>(top[r]) + std::log2(static_cast<double>(total))) * kLn2)
                     : kMinusInf;
  }
};

// Working memory of one tile: [kAttendTile] outputs in progress, as many scaled queries, [kAttendSub] rows of logits.
struct TileMemory {
  size_t o_stride;
  float* o;
  float* q;
  float* s;

  explicit TileMemory(const AttendArgs& a)
      : o_stride(a.shape.v_panels() * kPanel),
        o(a.workspace),
        q(o + kAttendTile * o_stride),
        s(q + kAttendTile * PairPadded(a.shape.d_k)) {}
};

// Part `part` of `parts` of one head's K or V of the page to come, which is brought closer while this page is worked
// on.
HWY_INLINE Ahead AheadOf(const void* page, size_t head, size_t head_bytes, size_t part, size_t parts) {
  const size_t lines = head_bytes / 64, first = part * lines / parts, last = (part + 1) * lines / parts;
  return {static_cast<const char*>(page) + head * head_bytes + first * 64, (last - first) * 64};
}

// Rows [r0, r0 + rows) of the tile that starts at query i0, against page p.
template <class Ops, class Score>
HWY_INLINE void AttendSub(const Call& call, const TileMemory& memory, size_t i0, size_t r0, size_t rows, size_t p,
                          size_t tile_rows, uint32_t* cursors, Score* score) {
  const AttendArgs& a = *call.args;
  Window w;
  RowPage look[kAttendSub];
  bool all_flat = true;
  for (size_t r = 0; r < rows; ++r) {
    const size_t i = i0 + r0 + r;
    if (r == 0 || a.runs != nullptr) {
      look[r].reaches = Reach(call.Runs(i), p * kPageRows, &cursors[r0 + r], &w);
    } else {
      look[r].reaches = look[0].reaches;
      cursors[r0 + r] = cursors[r0];
    }
    if (look[r].reaches) look[r] = LookAtPage(call, i, p, cursors[r0 + r]);
    all_flat &= look[r].flat;
  }
  if (w.first >= w.last) return;
  Ahead next_k, next_v;
  const bool last_page = p + 1 == a.pages.size();
  const size_t next_head = call.kv_head + (last_page ? 1 : 0);
  if (next_head < a.shape.kv_heads) {
    const PageView& next = a.pages[last_page ? 0 : p + 1];
    const size_t part = r0 / kAttendSub, parts = (tile_rows + kAttendSub - 1) / kAttendSub;
    const size_t bytes = a.shape.element_bytes();
    next_k = AheadOf(next.k, next_head, a.shape.k_head_size() * bytes, part, parts);
    next_v = AheadOf(next.v, next_head, a.shape.v_head_size() * bytes, part, parts);
  }
  const auto* q = OperandsOf<Ops>(memory.q) + r0 * a.shape.k_depth();
  HWY_ALIGN float maxima[kAttendSub * kPanel];
  if (all_flat) {
    Dots<Ops, false>(call, q, rows, p, w, memory.s, next_k, maxima);
  } else {
    for (size_t r = 0; r < rows; ++r) {
      float* row = memory.s + r * kPageRows;
      if (look[r].reaches && !look[r].flat) {
        StartLogits(call, i0 + r0 + r, p, cursors[r0 + r], w, row);
      } else {
        FillPiece(0.0f, w.first, w.last, row);
      }
    }
    Dots<Ops, true>(call, q, rows, p, w, memory.s, next_k, maxima);
  }
  float* o = memory.o + r0 * memory.o_stride;
  float lower[kAttendSub];
  for (size_t r = 0; r < rows; ++r) {
    lower[r] = !look[r].reaches
                   ? HUGE_VALF
                   : score->Raise(r0 + r, look[r].shift, memory.o_stride, maxima + r * kPanel, o + r * memory.o_stride);
  }
  Ops::Weights({memory.s, kPageRows, rows, w.first, w.last, lower, score->sum[r0]});
  const auto* v =
      static_cast<const typename Ops::Stored*>(a.pages[p].v) + call.kv_head * a.shape.v_head_size() + w.first * kPanel;
  constexpr size_t kStride = kPageRows * sizeof(float) / sizeof(typename Ops::Operand);
  Ops::template Panels<true>(OperandsOf<Ops>(memory.s) + w.first, kStride, rows, v, kPageRows * kPanel,
                             a.shape.v_panels(), w.last - w.first, o, memory.o_stride, next_v);
}

// Scales the query; the self key opens the softmax with weight 1 at its own logit.
template <class Ops, class Score>
HWY_INLINE void StartRow(const Call& call, const TileMemory& memory, size_t i, size_t r, Score* score) {
  const AttendArgs& a = *call.args;
  float* o = memory.o + r * memory.o_stride;
  const float* q = StartQuery<Ops>(call, i, memory.s, OperandsOf<Ops>(memory.q) + r * a.shape.k_depth());
  std::memset(o, 0, memory.o_stride * sizeof(float));
  if (a.self_k == nullptr) return score->Start(r, false, 0);
  const size_t kv_row = i * a.shape.kv_heads + call.kv_head;
  float logit = Dot(q, a.self_k + kv_row * a.shape.d_k, a.shape.d_k);
  if (const float* bias = call.Bias(i)) logit += (bias[a.bias.n_pos - 1] + bias[a.bias.n_pos]) * call.scale2;
  score->Start(r, true, logit);
  std::memcpy(o, a.self_v + kv_row * a.shape.d_v, a.shape.d_v * sizeof(float));
  if constexpr (Ops::kRounds) {
    // A page that only other rows of the tile see adds zeros here, which may flush a denormal: it must not be there.
    const Tag d;
    for (size_t x = 0; x < memory.o_stride; x += kLanes) {
      const Vec v = hn::Load(d, o + x);
      hn::Store(hn::IfThenElseZero(hn::Ge(hn::Abs(v), hn::Set(d, FLT_MIN)), v), d, o + x);
    }
  }
}

template <class Ops, class Score>
HWY_INLINE void AttendWith(const AttendArgs& a) {
  assert(a.scale > 0 && a.heads % a.shape.kv_heads == 0);
  const TileMemory memory(a);
  Call call(a);
  Score score;
  uint32_t cursors[kAttendTile];
  for (size_t head = 0; head < a.heads; ++head) {
    call.SetHead(head);
    for (size_t i0 = 0; i0 < a.queries; i0 += kAttendTile) {
      const size_t rows = std::min(kAttendTile, a.queries - i0);
      std::fill_n(cursors, rows, 0u);
      for (size_t r = 0; r < rows; ++r) StartRow<Ops>(call, memory, i0 + r, r, &score);
      for (size_t p = 0; p < a.pages.size(); ++p) {
        for (size_t r = 0; r < rows; r += kAttendSub) {
          AttendSub<Ops>(call, memory, i0, r, std::min(kAttendSub, rows - r), p, rows, cursors, &score);
        }
      }
      for (size_t r = 0; r < rows; ++r) {
        const size_t row = (i0 + r) * a.heads + head;
        score.Finish(r, memory.o + r * memory.o_stride, a.shape.d_v, a.o + row * a.shape.d_v,
                     a.lse == nullptr ? nullptr : a.lse + row);
      }
    }
  }
}

template <class Bf16Ops>
void Attend(const AttendArgs& args) {
  if (args.shape.dtype == Dtype::kF32) return AttendWith<F32Ops, Softmax>(args);
  AttendWith<Bf16Ops, Softmax>(args);
}

template <class Ops>
HWY_INLINE void AttendMassWith(const AttendMassArgs& args) {
  const Tag d;
  const AttendArgs& a = args.attend;
  const size_t width = a.pages.size() * kPageRows;
  const Vec share = hn::Set(d, 1.0f / static_cast<float>(a.heads));
  const TileMemory memory(a);
  Call call(a);
  for (size_t i = 0; i < a.queries; ++i) {
    for (size_t head = 0; head < a.heads; ++head) {
      call.SetHead(head);
      StartQuery<Ops>(call, i, memory.s, OperandsOf<Ops>(memory.q));
      const Vec lse = hn::Set(d, a.lse[i * a.heads + head] * kLog2E);
      uint32_t cursor = 0;
      for (size_t p = 0; p < a.pages.size(); ++p) {
        Window w;
        if (!Reach(call.Runs(i), p * kPageRows, &cursor, &w)) continue;
        StartLogits(call, i, p, cursor, w, memory.s);
        Dots<Ops, true>(call, OperandsOf<Ops>(memory.q), 1, p, w, memory.s, {});
        float* mass = args.mass + i * width + p * kPageRows;
        for (size_t j = w.first; j < w.last; j += kLanes) {
          const Vec weight = Exp2(hn::Min(hn::Sub(hn::Load(d, memory.s + j), lse), hn::Zero(d)));
          hn::StoreU(hn::MulAdd(weight, share, hn::LoadU(d, mass + j)), d, mass + j);
        }
      }
    }
  }
}

template <class Bf16Ops>
void AttendMass(const AttendMassArgs& args) {
  if (args.attend.shape.dtype == Dtype::kF32) return AttendMassWith<F32Ops>(args);
  AttendMassWith<Bf16Ops>(args);
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
