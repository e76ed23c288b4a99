// The bias and the mask of history pairs, for the accumulators of one page's logits: two query rows a thread.
//
// What a row's keys have in common is known without looking at them. Seen from row i, a key's position stays n_pos - 1
// beyond that distance, and its time bucket b begins at key bucket_begin[b]: walking to older keys, buckets only rise.
// So most pages have one bucket for a row (its bias is one number in a register), the next most have two with a boundary
// key that differs by row, and the few near the diagonal, with a tie or at a window's end look pairs up.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {

// What a page takes beside one bias a row; the same for all lanes of a warp.
struct PageLook {
  bool pairs;    // positions differ or keys are masked
  bool buckets;  // more than two time buckets in some row
  bool split;    // two in some row
};

// Masked logits. Finite, so that a row whose first pages are all masked has a reference that later ones replace.
inline constexpr float kMasked = -1e30f;

class HistoryBias {
 public:
  static constexpr int kPageRows = cuda::kPageRows;

  // Of rows `row` and `row` + 8 of the channel's chunk, which lane / 4 counts within the warp's 16.
  __device__ __forceinline__ HistoryBias(const CudaHistoryArgs& a, int channel, int head, int row)
      : a_(a),
        channel_(channel),
        r_(row),
        table_(a.table + ((channel * a.chunk_rows + row) * a.heads + head) * a.table_width),
        begins_(a.channel[channel].bucket_begin + int64_t{row} * a.n_time) {
    const CudaHistoryLimits first = Limits(0), second = Limits(1);
    oldest_ = __reduce_max_sync(0xffffffff, max(first.oldest, second.oldest));
    tie_last_ = __reduce_max_sync(0xffffffff, max(first.tie_last, second.tie_last));
    nearest_ = __reduce_min_sync(0xffffffff, Index(0));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& x = row_[r];
      x.bucket = 0;
      x.begin = Begins(r)[0];
      x.above = Far(r) + Table(r)[a.n_pos];
      Fetch(r, x);
    }
  }

  // Pages are looked at from the newest down, each once.
  __device__ __forceinline__ PageLook Look(int page) {
    const int first = page * kPageRows, last = first + kPageRows - 1;
    bool buckets = false, split = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& x = row_[r];
      while (x.begin > last) Advance(r, x);
      split |= x.begin > first;
      buckets |= x.begin > first && x.next_begin > first;
    }
    return {nearest_ - last < a_.n_pos - 1 || oldest_ > first || tie_last_ >= first,
            static_cast<bool>(__any_sync(0xffffffff, buckets)), static_cast<bool>(__any_sync(0xffffffff, split))};
  }

  // Adds to s what differs within the page; what a row has in common goes to `bias`, in natural units.
  __device__ __forceinline__ void Add(const PageLook& look, int page, float (&s)[64], float (&bias)[2]) {
    const int first = page * kPageRows + 2 * (threadIdx.x % 4);  // key of s[0]
    if (look.pairs) {
      AddPositions(first, s);
      if (tie_last_ >= page * kPageRows) MaskTies(page * kPageRows, s);
    }
    if (look.buckets) {
      AddBuckets(first, s);
      bias[0] = bias[1] = 0;
      return;
    }
    if (look.split) {
      // Column of s[i], counted from `first`: i / 4 * 8 + i % 2.
      const int boundary[2] = {row_[0].begin - first, row_[1].begin - first};
      const float more[2] = {row_[0].below - row_[0].above, row_[1].below - row_[1].above};
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (i / 4 * 8 + i % 2 < boundary[i / 2 % 2]) s[i] += more[i / 2 % 2];
      }
    }
    bias[0] = row_[0].above, bias[1] = row_[1].above;
  }

 private:
  // From where the walk stands down to `begin` keys take the bias `above`, then down to next_begin `below`, which is
  // that of `bucket`. Both are with the far position's.
  struct Row {
    int bucket, begin, next_begin;
    float above, below;
  };

  __device__ __forceinline__ const CudaHistoryRows& Channel() const { return a_.channel[channel_]; }
  __device__ __forceinline__ int Index(int r) const { return Channel().first + r_ + 8 * r; }
  __device__ __forceinline__ CudaHistoryLimits Limits(int r) const { return Channel().limits[r_ + 8 * r]; }
  __device__ __forceinline__ const float* Table(int r) const {
    return table_ + static_cast<int64_t>(r) * 8 * a_.heads * a_.table_width;
  }
  __device__ __forceinline__ const int32_t* Begins(int r) const { return begins_ + r * 8 * a_.n_time; }
  __device__ __forceinline__ float Far(int r) const { return Table(r)[a_.n_pos - 1]; }

  __device__ __forceinline__ void Fetch(int r, Row& x) {
    x.next_begin = 0;
    if (x.begin <= 0) return;
    do {
      x.next_begin = Begins(r)[++x.bucket];
    } while (x.next_begin == x.begin);  // ends: the last bucket begins at key 0
    x.below = Far(r) + Table(r)[a_.n_pos + x.bucket];
  }
  __device__ __forceinline__ void Advance(int r, Row& x) {
    x.begin = x.next_begin;
    x.above = x.below;
    Fetch(r, x);
  }

  __device__ __forceinline__ void AddPositions(int first, float (&s)[64]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = Index(r) - first;  // position of s[2 r]
      const int most = at > 0 ? max(0, Index(r) - Limits(r).oldest) : 0;  // positions beyond are masked
      const float* const table = Table(r);
      const float far = Far(r);
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int position = at - (n / 2 * 8 + n % 2);
        const float bias = table[max(0, min(position, a_.n_pos - 1))] - far;
        float& to = s[n / 2 * 4 + 2 * r + n % 2];
        to = static_cast<unsigned>(position) <= static_cast<unsigned>(most) ? to + bias : kMasked;
      }
    }
  }

  __device__ __forceinline__ void MaskTies(int page_first, float (&s)[64]) {
    const int first = page_first + 2 * (threadIdx.x % 4);
    bool older = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const CudaHistoryLimits limits = Limits(r);
      older |= limits.tie_last >= 0 && limits.tie_first < page_first;
      if (limits.tie_last < page_first || limits.tie_first >= page_first + kPageRows) continue;
      const int64_t* const ties = Channel().tie;
      const int64_t tie = ties[Index(r)];
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int j = first + n / 2 * 8 + n % 2;
        if (j >= limits.tie_first && j <= limits.tie_last && ties[j] == tie) s[n / 2 * 4 + 2 * r + n % 2] = kMasked;
      }
    }
    if (!__any_sync(0xffffffff, older)) tie_last_ = -1;
  }

  __device__ __forceinline__ void AddBuckets(int first, float (&s)[64]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& x = row_[r];
#pragma unroll
      for (int n = 31; n >= 0; --n) {
        while (x.begin > first + n / 2 * 8 + n % 2) Advance(r, x);
        s[n / 2 * 4 + 2 * r + n % 2] += x.above;
      }
    }
  }

  const CudaHistoryArgs& a_;
  const int channel_, r_;
  const float* const table_;    // of the first row; the second's is eight rows on
  const int32_t* const begins_;
  int oldest_, tie_last_, nearest_;  // over the warp's rows: the largest two, the smallest index
  Row row_[2];
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
