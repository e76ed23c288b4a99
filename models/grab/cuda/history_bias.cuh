// The bias and the mask of history pairs, for the accumulators of one page's logits: two query rows a thread.
//
// What a row's keys have in common is known without looking at them. Seen from row i, a key's position stays n_pos - 1
// beyond that distance, and its time bucket b begins at key bucket_begin[b]: walking to older keys, buckets only rise.
// So most pages have one bucket for a row (its bias is one number in a register), the next most have two with a
// boundary key that differs by row. Near the diagonal every pair differs: there the pairs' buckets and masks, which all
// heads and layers share, are worked out once (codes), newest pages first. Other pages with masks or many buckets are
// walked.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/softmax.cuh"
#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {

// What a page takes beside one bias a row; the same for all lanes of a warp.
struct PageLook {
  bool coded;    // as the codes say
  bool pairs;    // positions differ or keys are masked
  bool buckets;  // more than two time buckets in some row
  bool split;    // two in some row
};

// Below every logit and finite: the reference of a row that has seen no key, so that masked ones weigh nothing there
// too.
inline constexpr float kNoKeySeen = -1e30f;

// Floats between rows of the time biases in shared memory: one a bucket and -infinity, which masked pairs take. Odd, so
// that rows lie in different banks.
__host__ __device__ constexpr int HistoryTimeStride(int n_time) { return (n_time + 1) | 1; }
// With more, pairs are not coded.
inline constexpr int kHistoryTimesCoded = 128;

// The youngest bucket that begins at or before key j.
__device__ __forceinline__ int BucketOf(const int32_t* begins, int n_time, int j) {
  int low = 0, high = n_time - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (begins[middle] > j) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The codes of a thread: one for each of its accumulators, bucket or n_time (masked).
struct PairCodes {
  uint32_t word[16];
  __device__ __forceinline__ int operator[](int i) const { return word[i / 4] >> (i % 4 * 8) & 0xff; }
};

// Where the codes of a tile's page are, the tile's newest page being 0: [thread of the consumers] PairCodes.
__device__ __forceinline__ PairCodes* CodesOf(const CudaHistoryRows& c, int tile, int page_from_last) {
  return reinterpret_cast<PairCodes*>(c.codes) + (int64_t{tile} * kCudaHistoryCodedPages + page_from_last) * 256;
}

class HistoryBias {
 public:
  static constexpr int kPageRows = cuda::kPageRows;

  // Of rows `row` and `row` + 8 of the channel's chunk, which lane / 4 counts within the warp's 16. `times`: this
  // warp's 16 rows of time biases in shared memory, or null if there are too many.
  __device__ __forceinline__ HistoryBias(const CudaHistoryArgs& a, int channel, int head, int row, int tile_row,
                                         int page_last, float* times)
      : a_(a),
        channel_(channel),
        r_(row),
        page_last_(page_last),
        table_(a.table + ((channel * a.chunk_rows + row) * a.heads + head) * a.table_width),
        begins_(a.channel[channel].bucket_begin + int64_t{row} * a.n_time),
        codes_(CodesOf(a.channel[channel], tile_row / kPageRows, 0) + (threadIdx.x - 128)),
        times_(times) {}

  // What reads memory of the row. All lanes.
  __device__ __forceinline__ void Start() {
    const int stride = HistoryTimeStride(a_.n_time), lane = threadIdx.x % 32;
    if (times_ != nullptr) {
      const float* const table = table_ + a_.n_pos - static_cast<int64_t>(lane / 4) * a_.heads * a_.table_width;
#pragma unroll 8
      for (int r = 0; r < 16; ++r) {
        const float* const from = table + static_cast<int64_t>(r) * a_.heads * a_.table_width;
        for (int t = lane; t <= a_.n_time; t += 32) {
          times_[r * stride + t] = t < a_.n_time ? from[t] : cuda::kNegativeInfinity;
        }
      }
      __syncwarp();
      times_ += lane / 4 * stride;
    }
    const CudaHistoryLimits first = Limits(0), second = Limits(1);
    oldest_ = __reduce_max_sync(0xffffffff, max(first.oldest, second.oldest));
    tie_last_ = __reduce_max_sync(0xffffffff, max(first.tie_last, second.tie_last));
    nearest_ = __reduce_min_sync(0xffffffff, Index(0));
#pragma unroll
    for (int r = 0; r < 2; ++r) row_[r].begin = row_[r].next_begin = INT32_MAX;  // the walk has not begun
  }

  // Pages are looked at from the newest down, each once.
  __device__ __forceinline__ PageLook Look(int page) {
    const int first = page * kPageRows, last = first + kPageRows - 1;
    const bool near = nearest_ - last < a_.n_pos - 1,
               codes = times_ != nullptr && page_last_ - page < kCudaHistoryCodedPages;
    if (near && codes) return {.coded = true, .pairs = true};
    bool buckets = false, split = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& x = row_[r];
      if (x.begin > last) Walk(r, x, last);
      split |= x.begin > first;
      buckets |= x.begin > first && x.next_begin > first;
    }
    PageLook look{.pairs = near || oldest_ > first || tie_last_ >= first,
                  .buckets = static_cast<bool>(__any_sync(0xffffffff, buckets)),
                  .split = static_cast<bool>(__any_sync(0xffffffff, split))};
    look.coded = codes && (look.pairs || look.buckets);
    return look;
  }

  // Adds to s what differs within the page; what a row has in common goes to `bias`, in natural units.
  __device__ __forceinline__ void Add(const PageLook& look, int page, float (&s)[64], float (&bias)[2]) {
    const int first = page * kPageRows + 2 * (threadIdx.x % 4);  // key of s[0]
    if (look.coded) {
      AddCoded(page, first, s, bias);
      return;
    }
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
  // To the bucket of key `last`, or of the row itself.
  __device__ __forceinline__ void Walk(int r, Row& x, int last) {
    if (x.next_begin <= last) {
      Advance(r, x);
      return;
    }
    x.bucket = BucketOf(Begins(r), a_.n_time, min(last, Index(r)));
    x.begin = Begins(r)[x.bucket];
    x.above = Far(r) + Table(r)[a_.n_pos + x.bucket];
    Fetch(r, x);
  }

  __device__ __forceinline__ void AddCoded(int page, int first, float (&s)[64], float (&bias)[2]) {
    const PairCodes codes = codes_[static_cast<int64_t>(page_last_ - page) * 256];
    const bool near = nearest_ - (page * kPageRows + kPageRows - 1) < a_.n_pos - 1;
    const int stride = HistoryTimeStride(a_.n_time);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* const times = times_ + 8 * r * stride;
#pragma unroll
      for (int n = 0; n < 32; ++n) s[n / 2 * 4 + 2 * r + n % 2] += times[codes[n / 2 * 4 + 2 * r + n % 2]];
      bias[r] = 0;
      if (!near) {
        bias[r] = Far(r);
        continue;
      }
      const int at = Index(r) - first;  // position of s[2 r]
      const float* const table = Table(r);
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        s[n / 2 * 4 + 2 * r + n % 2] += table[max(0, min(at - (n / 2 * 8 + n % 2), a_.n_pos - 1))];
      }
    }
  }

  __device__ __forceinline__ void AddPositions(int first, float (&s)[64]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = Index(r) - first;                                    // position of s[2 r]
      const int most = at > 0 ? max(0, Index(r) - Limits(r).oldest) : 0;  // positions beyond are masked
      const float* const table = Table(r);
      const float far = Far(r);
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int position = at - (n / 2 * 8 + n % 2);
        const float bias = table[max(0, min(position, a_.n_pos - 1))] - far;
        float& to = s[n / 2 * 4 + 2 * r + n % 2];
        to = static_cast<unsigned>(position) <= static_cast<unsigned>(most) ? to + bias : cuda::kNegativeInfinity;
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
        if (j >= limits.tie_first && j <= limits.tie_last && ties[j] == tie) {
          s[n / 2 * 4 + 2 * r + n % 2] = cuda::kNegativeInfinity;
        }
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
  const int channel_, r_, page_last_;
  const float* const table_;  // of the first row; the second's is eight rows on
  const int32_t* const begins_;
  const PairCodes* const codes_;
  float* times_;
  int oldest_, tie_last_, nearest_;  // over the warp's rows: the largest two, the smallest index
  Row row_[2];
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
