// The logits of one page: who sees it, with which bias, and the dot products. Included once per target.
#if defined(BACKSTORY_KERNELS_CPU_LOGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BACKSTORY_KERNELS_CPU_LOGITS_INL_H_
#undef BACKSTORY_KERNELS_CPU_LOGITS_INL_H_
#else
#define BACKSTORY_KERNELS_CPU_LOGITS_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/attend.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kMinusInf = -HUGE_VALF;

// to = scale from, n floats.
HWY_INLINE void Scale(const float* from, size_t n, float scale, float* to) {
  const Tag d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, from + i), hn::Set(d, scale)), d, to + i);
  for (; i < n; ++i) to[i] = from[i] * scale;
}

// One head of one attend call as its parts need it. Logits are in units of log2 from here on: queries are scaled once
// by scale * log2(e), and so is every bias.
struct Call {
  const AttendArgs* args;
  float scale2;
  size_t head = 0;
  size_t kv_head = 0;

  explicit Call(const AttendArgs& a) : args(&a), scale2(a.scale * kLog2E) {}
  void SetHead(size_t h) {
    head = h;
    kv_head = h / (args->heads / args->shape.kv_heads);
  }
  HWY_INLINE const float* Bias(size_t i) const {
    return args->bias.rows == nullptr ? nullptr : args->bias.rows + (i * args->heads + head) * args->bias.stride;
  }
  HWY_INLINE std::span<const KeyRun> Runs(size_t i) const {
    return args->runs == nullptr ? args->shared_runs : args->runs[i];
  }
  // Query row i, scaled, into q [d_k].
  HWY_INLINE void ScaleQuery(size_t i, float* q) const {
    Scale(args->q + (i * args->heads + head) * args->shape.d_k, args->shape.d_k, scale2, q);
  }
};

HWY_INLINE float Dot(const float* a, const float* b, size_t n) {
  const Tag d;
  Vec sum = hn::Zero(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// Stores `value` over [from, to) of `row` and up to one vector beyond `to`: callers fill ascending pieces.
HWY_INLINE void FillPiece(float value, size_t from, size_t to, float* row) {
  const Tag d;
  const Vec v = hn::Set(d, value);
  for (size_t j = from; j < to; j += kLanes) hn::StoreU(v, d, row + j);
}

// The bias row of one query over columns [first, last) of a page whose rows start at `base`: -inf where invisible.
// May write up to 16 floats beyond `last`.
HWY_INLINE void LayBias(std::span<const KeyRun> runs, size_t base, size_t first, size_t last, const float* bias,
                        size_t n_pos, float scale2, float* row) {
  const Tag d;
  size_t at = first;
  for (const KeyRun& run : runs) {
    if (run.begin >= base + last) break;
    if (run.end <= base + first) continue;
    const size_t from = std::max<size_t>(run.begin, base + first) - base;
    const size_t to = std::min<size_t>(run.end, base + last) - base;
    if (at < from) FillPiece(kMinusInf, at, from, row);
    at = to;
    if (bias == nullptr || run.time == KeyRun::kNoBias) {
      FillPiece(0.0f, from, to, row);
      continue;
    }
    const float time = bias[n_pos + run.time];
    const size_t rank = run.rank - (base + from - run.begin);  // of column `from`; falls by one per column
    size_t ramp = from;                                        // first column whose rank is below n_pos - 1
    if (rank >= n_pos - 1) {
      ramp = std::min(to, from + (rank - (n_pos - 1)) + 1);
      FillPiece((bias[0] + time) * scale2, from, ramp, row);
    }
    const Vec t = hn::Set(d, time), scale = hn::Set(d, scale2);
    for (size_t j = ramp; j < to; j += kLanes) {
      const Vec position = hn::LoadU(d, bias + (n_pos - 1 + j - from - rank));
      hn::StoreU(hn::Mul(hn::Add(position, t), scale), d, row + j);
    }
  }
  if (at < last) FillPiece(kMinusInf, at, last, row);
}

// Columns of one page that a sub-tile looks at, in whole panels, and which of its rows look at all.
struct Window {
  size_t first = kPageRows;  // multiple of 16
  size_t last = 0;           // multiple of 16
};

// Moves `cursor` to the first run that reaches into the page; false if the row sees nothing of it.
HWY_INLINE bool Reach(std::span<const KeyRun> runs, size_t base, uint32_t* cursor, Window* window) {
  size_t at = *cursor;
  while (at < runs.size() && runs[at].end <= base) ++at;
  *cursor = static_cast<uint32_t>(at);
  if (at == runs.size() || runs[at].begin >= base + kPageRows) return false;
  size_t end = runs[at].end;
  for (size_t next = at + 1; next < runs.size() && runs[next].begin < base + kPageRows; ++next) end = runs[next].end;
  const size_t from = std::max<size_t>(runs[at].begin, base) - base;
  const size_t to = std::min<size_t>(end, base + kPageRows) - base;
  window->first = std::min(window->first, from / kPanel * kPanel);
  window->last = std::max(window->last, (to + kPanel - 1) / kPanel * kPanel);
  return true;
}

// How one query row enters one page.
struct RowPage {
  bool reaches = false;
  // One run holds all 128 rows at one bias: it is added to the maximum instead of to 128 logits. Whether a page is flat
  // is a matter of the row's own runs, so its bits stay its own.
  bool flat = false;
  float shift = 0;  // the bias of a flat page
};

HWY_INLINE RowPage LookAtPage(const Call& call, size_t i, size_t p, uint32_t cursor) {
  const AttendArgs& a = *call.args;
  const KeyRun& run = call.Runs(i)[cursor];
  const size_t base = p * kPageRows, end = base + kPageRows;
  RowPage look{.reaches = true};
  if (run.begin > base || run.end < end || (a.log_w != nullptr && a.log_w[p] != nullptr)) return look;
  const float* bias = call.Bias(i);
  if (bias == nullptr || run.time == KeyRun::kNoBias) {
    look.flat = true;
  } else if (run.rank - (end - 1 - run.begin) >= a.bias.n_pos - 1) {
    look.flat = true;
    look.shift = (bias[0] + bias[a.bias.n_pos + run.time]) * call.scale2;
  }
  return look;
}

// Where the logits of query i over columns [w.first, w.last) of page p start from: bias, log weight, -inf if invisible.
// May write up to 16 floats beyond w.last.
HWY_INLINE void StartLogits(const Call& call, size_t i, size_t p, uint32_t cursor, const Window& w, float* s) {
  const Tag d;
  const AttendArgs& a = *call.args;
  LayBias(call.Runs(i).subspan(cursor), p * kPageRows, w.first, w.last, call.Bias(i), a.bias.n_pos, call.scale2, s);
  const float* log_w = a.log_w == nullptr ? nullptr : a.log_w[p];
  for (size_t j = w.first; log_w != nullptr && j < w.last; j += kLanes) {
    hn::Store(hn::MulAdd(hn::LoadU(d, log_w + j), hn::Set(d, kLog2E), hn::Load(d, s + j)), d, s + j);
  }
}

// Dot products of `rows` scaled queries with columns [w.first, w.last) of page p, added to what stands in s or not.
template <class Ops, bool kAdd>
HWY_INLINE void Dots(const Call& call, const typename Ops::Operand* q, size_t rows, size_t p, const Window& w, float* s,
                     const Ahead& ahead, float* maxima = nullptr) {
  const PageShape& shape = call.args->shape;
  const size_t depth = shape.k_depth();
  const auto* panels = static_cast<const typename Ops::Stored*>(call.args->pages[p].k) +
                       call.kv_head * shape.k_head_size() + w.first * depth;
  Ops::template Panels<kAdd>(q, depth, rows, panels, kPanel * depth, (w.last - w.first) / kPanel, depth, s + w.first,
                             kPageRows, ahead, maxima);
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_LOGITS_INL_H_
