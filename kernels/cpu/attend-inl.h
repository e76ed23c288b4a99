// Attention, its explanation and the merge, for one target. Included once per target.
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
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace backstory {
namespace HWY_NAMESPACE {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr float kMinusInf = -HUGE_VALF;

// One head of one attend call as its parts need it. Logits are in units of log2 from here on: queries are scaled once by
// scale * log2(e), and so is every bias.
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
    const float* from = args->q + (i * args->heads + head) * args->shape.d_k;
    for (size_t x = 0; x < args->shape.d_k; ++x) q[x] = from[x] * scale2;
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
  // One run holds all 128 rows at one bias: it is added to the maximum instead of to 128 logits. Whether a page is flat is
  // a matter of the row's own runs, so its bits stay its own.
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
template <bool kAdd>
HWY_INLINE void Dots(const Call& call, const float* q, size_t rows, size_t p, const Window& w, float* s) {
  const PageShape& shape = call.args->shape;
  const float* panels = call.args->pages[p].k + call.kv_head * shape.k_head_floats() + w.first * shape.d_k;
  TilePanels<kAdd>(q, shape.d_k, rows, panels, kPanel * shape.d_k, (w.last - w.first) / kPanel, shape.d_k, s + w.first,
                   kPageRows);
}

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
    *lse = sum[r] > 0 ? static_cast<float>((static_cast<double>(top[r]) + std::log2(static_cast<double>(sum[r]))) * kLn2)
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

void Merge(const MergeArgs& m) {
  const Tag d;
  for (size_t i = 0; i < m.rows; ++i) {
    float top = kMinusInf;
    for (const float* lse : m.lse) top = std::max(top, lse[i]);
    float sum = 0;
    float* out = m.out_o + i * m.d_v;
    for (size_t part = 0; part < m.lse.size(); ++part) {
      const float lse = m.lse[part][i];
      const float weight = lse == kMinusInf ? 0.0f : hn::GetLane(Exp2(hn::Set(d, (lse - top) * kLog2E)));
      const float* o = m.o[part] + i * m.d_v;
      // The first part is read before it is overwritten, element by element, so it may be the output.
      for (size_t x = 0; x < m.d_v; ++x) {
        const float add = weight > 0 ? weight * o[x] : 0.0f;
        out[x] = part == 0 ? add : out[x] + add;
      }
      sum += weight;
    }
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    for (size_t x = 0; x < m.d_v; ++x) out[x] *= inverse;
    m.out_lse[i] = sum > 0 ? static_cast<float>(static_cast<double>(top) + std::log(static_cast<double>(sum))) : kMinusInf;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace backstory
HWY_AFTER_NAMESPACE();

#endif  // BACKSTORY_KERNELS_CPU_ATTEND_INL_H_
