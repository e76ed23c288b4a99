// Attention of a tile of query rows over a list of K/V pages: the one kernel every model and every selection shares.
//
//   logit(i, j) = (q_i . k_j + pos_i[rank_ij] + time_i[bucket_ij]) scale + log w_j        over the visible rows j of i
//   O_i = sum_j softmax_j(logit) v_j,   LSE_i = ln sum_j exp(logit)                       (self key included if given)
//
// Masks and relative bias come as KeyRuns. A row outside every run of a query is invisible to it: isolated candidates,
// causal rows with tie groups, windows and prefixes are all lists of runs. Within a run the time bucket is constant and
// the rank counts down by one per row, so that a page is one of
//   UNIFORM  one run, saturated rank: one scalar per query row, added in the softmax pass
//   SPLIT    two such runs, one boundary
//   TABLE    anything else: the bias row is laid out beside the logits first
//   FOLDED   the page points to a scratch copy whose K already holds the bias (fold.h), runs say kNoBias
// All four give the same logits. Which one a page is, is a matter of the query's own runs.
//
// Numerics of fp32 pages: fp32 throughout. bf16 pages: scale log2(e) q is rounded to bf16 once, weights are rounded to
// bf16 where they meet V, and all else is fp32: dot products of bf16 pairs, bias, softmax, row sums (of the unrounded
// weights), the self key's K and V. Against exact arithmetic on the same rounded q, K, V the weights' rounding adds
//   |dO| <= 2^-8 sum_j p_j |v_j| <= 2^-8 max |v|        and nothing to LSE.
// Either way the reduction of a query row goes over its self key first, then its pages in order, columns in
// 16-wide panels, so its bits depend on its own key list alone: not on other rows of the tile, on threads, or on
// invisible rows beside the visible ones. exp has a relative error <= 2e-7 down to 2^-126 of the row's running maximum
// and is zero from 2^-127 on. An empty key list gives (0, -inf).
#ifndef BACKSTORY_KERNELS_ATTEND_H_
#define BACKSTORY_KERNELS_ATTEND_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/page.h"

namespace backstory {

// Rows [begin, end) of the page list are visible; row j has rank `rank - (j - begin)` (>= 0 on all of the run) and time
// bucket `time`.
struct KeyRun {
  static constexpr uint32_t kNoBias = UINT32_MAX;  // as `time`: neither position nor time bias
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t rank = 0;
  uint32_t time = 0;
  bool operator==(const KeyRun&) const = default;
};

enum class PageKind { kHidden, kUniform, kSplit, kTable };
// How the rows [128 page, 128 page + count) look through `runs`.
PageKind ClassifyPage(std::span<const KeyRun> runs, size_t page, size_t count, size_t n_pos);

// Row bias tables: per query and head one row of n_pos + n_time floats: position entries newest-last, that is entry u
// is q . Bpos[n_pos - 1 - u], then q . Btime[t]. Packing the codebooks in that order makes it one GEMM.
struct BiasTable {
  const float* rows = nullptr;  // [queries][heads][stride]; nullptr: no bias at all. 16 readable floats after the last
  size_t stride = 0;            // >= n_pos + n_time
  size_t n_pos = 0;             // ranks clip at n_pos - 1
  size_t n_time = 0;
};

struct AttendArgs {
  size_t queries = 0;
  size_t heads = 1;  // a multiple of shape.kv_heads; head h reads kv head h / (heads / kv_heads)
  PageShape shape;
  float scale = 1;           // > 0
  const float* q = nullptr;  // [queries][heads][d_k], contiguous
  BiasTable bias;
  std::span<const PageView> pages;      // page p holds rows [128 p, 128 p + 128)
  const float* const* log_w = nullptr;  // [pages], each nullptr or [128]; nullptr: all rows weigh 1
  // Ascending, disjoint runs. One list for all queries (isolated candidates), or one per query (causal rows).
  std::span<const KeyRun> shared_runs;
  const std::span<const KeyRun>* runs = nullptr;  // [queries]; nullptr: shared_runs
  // The query's own key, seen with rank 0 and time bucket 0 of its bias row. nullptr: no self key.
  const float* self_k = nullptr;  // [queries][kv_heads][d_k]
  const float* self_v = nullptr;  // [queries][kv_heads][d_v]
  float* o = nullptr;             // [queries][heads][d_v], contiguous
  float* lse = nullptr;           // [queries][heads], or nullptr: not wanted
  float* workspace = nullptr;     // AttendWorkspaceFloats(shape), 64-byte aligned
};

inline constexpr size_t kAttendTile = 192;  // query rows that share one pass over the pages
inline constexpr size_t kAttendSub = 24;    // query rows whose logits are in flight
inline size_t AttendWorkspaceFloats(const PageShape& shape) {
  return kAttendTile * (shape.v_panels() * kPanel + PairPadded(shape.d_k)) +
         std::max(kAttendSub * kPageRows, shape.d_k) + kPanel;
}

// Explanation: mass[i][j] += sum over heads of exp(logit(i, j) - lse[i][h]) / heads, for rows j of the page list, with
// lse as attend left it (or merged over parts). o and self_* are not used.
struct AttendMassArgs {
  AttendArgs attend;
  float* mass = nullptr;  // [queries][128 pages]
};

// Merges parts of one softmax: (O, LSE) of each part -> (O, LSE) of the whole. A part with lse = -inf has no weight
// whatever its O; all parts empty gives (0, -inf).
struct MergeArgs {
  size_t rows = 0;  // queries x heads
  size_t d_v = 0;
  std::span<const float* const> o;    // [parts], each [rows][d_v]
  std::span<const float* const> lse;  // [parts], each [rows]
  float* out_o = nullptr;             // may be o[0]
  float* out_lse = nullptr;           // may be lse[0]
};

}  // namespace backstory

#endif  // BACKSTORY_KERNELS_ATTEND_H_
