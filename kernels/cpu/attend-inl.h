// Attention and its explanation, included once per target. One kernel's body: over the size bar of a header.
#if defined(BACKSTORY_KERNELS_CPU_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#undef BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
#endif

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/cpu/logits-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

// Softmax as the score function: weights are exp2(t - running maximum), normalised at the end. A score function without
// normalisation (SiLU) keeps `top` at zero, replaces Weight and leaves Finish to copy.
struct Softmax {
  float top[kAttendTile];
  float sum[kAttendTile];

  HWY_INLINE void Start(size_t r, bool self, float logit2) {
    top[r] = self ? logit2 : kMinusInf;
    sum[r] = self ? 1.0f : 0.0f;
  }

  // Turns logits (each to be shifted by `shift`) into weights in place and rescales the output so far.
  HWY_INLINE void Step(size_t r, const Window& w, float shift, size_t o_floats, float* s, float* o) {
    const Tag d;
    Vec row_top = hn::Load(d, s + w.first);
    for (size_t j = w.first + kLanes; j < w.last; j += kLanes) row_top = hn::Max(row_top, hn::Load(d, s + j));
    const float new_top = std::max(top[r], hn::GetLane(hn::MaxOfLanes(d, row_top)) + shift);
    const float safe_top = new_top == kMinusInf ? 0.0f : new_top;
    const Vec m = hn::Set(d, safe_top - shift);
    Vec total = hn::Zero(d);
    for (size_t j = w.first; j < w.last; j += kLanes) {
      const Vec p = Exp2(hn::Sub(hn::Load(d, s + j), m));
      hn::Store(p, d, s + j);
      total = hn::Add(total, p);
    }
    if (new_top != top[r]) {
      const Vec shrink = Exp2(hn::Set(d, top[r] - safe_top));
      sum[r] = sum[r] * hn::GetLane(shrink);
      for (size_t j = 0; j < o_floats; j += kLanes) hn::Store(hn::Mul(hn::Load(d, o + j), shrink), d, o + j);
      top[r] = new_top;
    }
    sum[r] += hn::GetLane(hn::SumOfLanes(d, total));
  }

  HWY_INLINE void Finish(size_t r, const float* from, size_t n, float* o, float* lse) const {
    const float inverse = sum[r] > 0 ? 1.0f / sum[r] : 0.0f;
    for (size_t j = 0; j < n; ++j) o[j] = from[j] * inverse;
    *lse = sum[r] > 0
               ? static_cast<float>((static_cast<double>(top[r]) + std::log2(static_cast<double>(sum[r]))) * kLn2)
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
        s(q + kAttendTile * a.shape.d_k) {}
};

// Rows [r0, r0 + rows) of the tile that starts at query i0, against page p.
template <class Score>
HWY_INLINE void AttendSub(const Call& call, const TileMemory& memory, size_t i0, size_t r0, size_t rows, size_t p,
                          uint32_t* cursors, Score* score) {
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
  const float* q = memory.q + r0 * a.shape.d_k;
  if (all_flat) {
    Dots<false>(call, q, rows, p, w, memory.s);
  } else {
    for (size_t r = 0; r < rows; ++r) {
      float* row = memory.s + r * kPageRows;
      if (look[r].reaches && !look[r].flat) {
        StartLogits(call, i0 + r0 + r, p, cursors[r0 + r], w, row);
      } else {
        FillPiece(0.0f, w.first, w.last, row);
      }
    }
    Dots<true>(call, q, rows, p, w, memory.s);
  }
  float* o = memory.o + r0 * memory.o_stride;
  for (size_t r = 0; r < rows; ++r) {
    float* row = memory.s + r * kPageRows;
    if (look[r].reaches) {
      score->Step(r0 + r, w, look[r].shift, memory.o_stride, row, o + r * memory.o_stride);
    } else {
      FillPiece(0.0f, w.first, w.last, row);
    }
  }
  const float* v = a.pages[p].v + call.kv_head * a.shape.v_head_floats() + w.first * kPanel;
  TilePanels<true>(memory.s + w.first, kPageRows, rows, v, kPageRows * kPanel, a.shape.v_panels(), w.last - w.first, o,
                   memory.o_stride);
}

// Scales the query; the self key opens the softmax with weight 1 at its own logit.
template <class Score>
HWY_INLINE void StartRow(const Call& call, const TileMemory& memory, size_t i, size_t r, Score* score) {
  const AttendArgs& a = *call.args;
  float* o = memory.o + r * memory.o_stride;
  float* q = memory.q + r * a.shape.d_k;
  call.ScaleQuery(i, q);
  std::memset(o, 0, memory.o_stride * sizeof(float));
  if (a.self_k == nullptr) return score->Start(r, false, 0);
  const size_t kv_row = i * a.shape.kv_heads + call.kv_head;
  float logit = Dot(q, a.self_k + kv_row * a.shape.d_k, a.shape.d_k);
  if (const float* bias = call.Bias(i)) logit += (bias[a.bias.n_pos - 1] + bias[a.bias.n_pos]) * call.scale2;
  score->Start(r, true, logit);
  std::memcpy(o, a.self_v + kv_row * a.shape.d_v, a.shape.d_v * sizeof(float));
}

template <class Score>
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
      for (size_t r = 0; r < rows; ++r) StartRow(call, memory, i0 + r, r, &score);
      for (size_t p = 0; p < a.pages.size(); ++p) {
        for (size_t r = 0; r < rows; r += kAttendSub) {
          AttendSub(call, memory, i0, r, std::min(kAttendSub, rows - r), p, cursors, &score);
        }
      }
      for (size_t r = 0; r < rows; ++r) {
        const size_t row = (i0 + r) * a.heads + head;
        score.Finish(r, memory.o + r * memory.o_stride, a.shape.d_v, a.o + row * a.shape.d_v, a.lse + row);
      }
    }
  }
}

void Attend(const AttendArgs& args) { AttendWith<Softmax>(args); }

void AttendMass(const AttendMassArgs& args) {
  const Tag d;
  const AttendArgs& a = args.attend;
  const size_t width = a.pages.size() * kPageRows;
  const Vec share = hn::Set(d, 1.0f / static_cast<float>(a.heads));
  const TileMemory memory(a);
  Call call(a);
  for (size_t i = 0; i < a.queries; ++i) {
    for (size_t head = 0; head < a.heads; ++head) {
      call.SetHead(head);
      call.ScaleQuery(i, memory.q);
      const Vec lse = hn::Set(d, a.lse[i * a.heads + head] * kLog2E);
      uint32_t cursor = 0;
      for (size_t p = 0; p < a.pages.size(); ++p) {
        Window w;
        if (!Reach(call.Runs(i), p * kPageRows, &cursor, &w)) continue;
        StartLogits(call, i, p, cursor, w, memory.s);
        Dots<true>(call, memory.q, 1, p, w, memory.s);
        float* mass = args.mass + i * width + p * kPageRows;
        for (size_t j = w.first; j < w.last; j += kLanes) {
          const Vec weight = Exp2(hn::Min(hn::Sub(hn::Load(d, memory.s + j), lse), hn::Zero(d)));
          hn::StoreU(hn::MulAdd(weight, share, hn::LoadU(d, mass + j)), d, mass + j);
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
