// The bias and the mask of history pairs, for the accumulators of one page's logits: two query rows a thread.
//
// What a row's keys have in common is known without looking at them. Seen from row i, a key's position stays n_pos - 1
// beyond that distance, and its time bucket b begins at key bucket_begin[b]: walking to older keys, buckets only rise.
// So most pages have one bucket for a row (its bias is one number in a register), the next most have two with a
// boundary key that differs by row. Near the diagonal every pair differs: there the pairs' buckets and masks, which all
// heads and layers share, were worked out before (history_codes.cuh); elsewhere they are where a page has a mask or
// more buckets.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/softmax.cuh"
#include "models/grab/cuda/history_codes.cuh"
#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {

// What a page takes beside one bias a row; the same for all lanes of a warp.
struct PageLook {
  bool near;        // positions differ
  bool coded;       // a bucket or a mask for each pair
  bool split;       // two buckets in some row
  PairCodes codes;  // if they were worked out before
};

// Below every logit and finite: the reference of a row that has seen no key, so that masked ones weigh nothing there
// too.
inline constexpr float kNoKeySeen = -1e30f;

class HistoryBias {
 public:
  static constexpr int kPageRows = cuda::kPageRows;

  // Of rows `row` and `row` + 8 of the channel's chunk, which lane / 4 counts within the warp's 16. `times`: this
  // warp's 16 rows of time biases in shared memory; their bucket_begin 128 rows on.
  __device__ __forceinline__ HistoryBias(const CudaHistoryArgs& a, int channel, int head, int row, int page_newest,
                                         float* times)
      : a_(a), channel_(channel), head_(head), r_(row), page_newest_(page_newest), times_(times) {}

  // What reads memory of the rows: begun early, awaited late. All lanes.
  __device__ __forceinline__ void Start() {
    const int stride = HistoryTimeStride(a_.n_time), lane = threadIdx.x % 32;
    const uint32_t at = cuda::SharedAddress(times_);
    const int64_t table_stride = static_cast<int64_t>(a_.heads) * a_.table_width;
    const float* const times = Table(0) + a_.n_pos - lane / 4 * table_stride;
    const int32_t* const begins = Channel().bucket_begin + int64_t{r_ - lane / 4} * a_.n_time;
    for (int t = lane; t < a_.n_time; t += 32) {
#pragma unroll
      for (int r = 0; r < 16; ++r) CopyWord(at + (r * stride + t) * 4, times + r * table_stride + t);
      if (a_.n_time > kHistoryBeginsKept) continue;
#pragma unroll
      for (int r = 0; r < 16; ++r) CopyWord(at + ((kPageRows + r) * stride + t) * 4, begins + r * a_.n_time + t);
    }
    if (lane < 16) times_[lane * stride + a_.n_time] = cuda::kNegativeInfinity;
  }
  __device__ __forceinline__ void FinishStart() {
    const CudaHistoryLimits first = Limits(0), second = Limits(1);
    oldest_ = __reduce_max_sync(0xffffffff, max(first.oldest, second.oldest));
    tie_last_ = __reduce_max_sync(0xffffffff, max(first.tie_last, second.tie_last));
    tie_first_ = __reduce_min_sync(0xffffffff, min(first.tie_first < 0 ? INT32_MAX : first.tie_first,
                                                   second.tie_first < 0 ? INT32_MAX : second.tie_first));
    nearest_ = __reduce_min_sync(0xffffffff, Index(0));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_[r].begin = row_[r].next_begin = INT32_MAX;  // the walk has not begun
      far_[r] = Table(r)[a_.n_pos - 1];
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
    times_ += static_cast<int>(threadIdx.x) % 32 / 4 * HistoryTimeStride(a_.n_time);
  }

  // Pages are looked at from the newest down, each once.
  __device__ __forceinline__ PageLook Look(int page) {
    const int first = page * kPageRows, last = first + kPageRows - 1;
    PageLook look = {};
    look.near = look.coded = nearest_ - last < a_.n_pos - 1;
    if (look.near) {
      LoadCodes(page, look);
      return look;
    }
    bool buckets = false, split = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row& x = row_[r];
      if (x.begin > last) Walk(r, x, last);
      split |= x.begin > first;
      buckets |= x.begin > first && x.next_begin > first;
    }
    look.coded = __any_sync(0xffffffff, buckets) || oldest_ > first || (tie_last_ >= first && tie_first_ <= last);
    look.split = __any_sync(0xffffffff, split);
    if (look.coded) LoadCodes(page, look);
    return look;
  }

  // Adds to s what differs within the page; what a row has in common goes to `bias`, in natural units.
  __device__ __forceinline__ void Add(const PageLook& look, int page, float (&s)[64], float (&bias)[2]) {
    const int first = page * kPageRows + 2 * (threadIdx.x % 4);  // key of s[0]
    if (look.coded) {
      AddCoded(look, page, first, s, bias);
      return;
    }
    if (look.split) {
      const int boundary[2] = {row_[0].begin - first, row_[1].begin - first};
      const float more[2] = {row_[0].below - row_[0].above, row_[1].below - row_[1].above};
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (KeyOf(i) < boundary[RowOf(i)]) s[i] += more[RowOf(i)];
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
    return a_.table + ((channel_ * a_.chunk_rows + r_ + 8 * r) * a_.heads + head_) * a_.table_width;
  }
  __device__ __forceinline__ int Begin(int r, int bucket) const {
    if (a_.n_time > kHistoryBeginsKept) return Channel().bucket_begin[int64_t{r_ + 8 * r} * a_.n_time + bucket];
    return __float_as_int(times_[(kPageRows + 8 * r) * HistoryTimeStride(a_.n_time) + bucket]);
  }
  __device__ __forceinline__ const float* Times(int r) const { return times_ + 8 * r * HistoryTimeStride(a_.n_time); }
  static __device__ __forceinline__ void CopyWord(uint32_t to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
  }

  __device__ __forceinline__ void Fetch(int r, Row& x) {
    x.next_begin = 0;
    if (x.begin <= 0) return;
    do {
      x.next_begin = Begin(r, ++x.bucket);
    } while (x.next_begin == x.begin);  // ends: the last bucket begins at key 0
    x.below = far_[r] + Times(r)[x.bucket];
  }
  // To the bucket of key `last`, or of the row itself.
  __device__ __forceinline__ void Walk(int r, Row& x, int last) {
    if (x.next_begin <= last) {
      x.begin = x.next_begin;
      x.above = x.below;
    } else {
      x.bucket = BucketOf([&](int bucket) { return Begin(r, bucket); }, a_.n_time, min(last, Index(r)));
      x.begin = Begin(r, x.bucket);
      x.above = far_[r] + Times(r)[x.bucket];
    }
    Fetch(r, x);
  }

  __device__ __forceinline__ void LoadCodes(int page, PageLook& look) const {
    const int n = page_newest_ - page;
    if (n < kCudaHistoryCodedPages) look.codes = CodesOf(Channel(), r_ / kPageRows, n)[threadIdx.x - 128];
  }

  __device__ __forceinline__ void AddCoded(const PageLook& look, int page, int first, float (&s)[64],
                                           float (&bias)[2]) {
    PairCodes codes = look.codes;
    if (page_newest_ - page >= kCudaHistoryCodedPages) {
      codes = CodePairs(Channel(), a_.n_time, r_, page, first, [&](int r, int bucket) { return Begin(r, bucket); });
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] += Times(RowOf(i))[codes[i]];
    bias[0] = far_[0], bias[1] = far_[1];
    if (!look.near) return;
    bias[0] = bias[1] = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = Index(r) - first;  // position of s[2 r]
      const float* const table = Table(r);
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (RowOf(i) == r) s[i] += table[max(0, min(at - KeyOf(i), a_.n_pos - 1))];
      }
    }
  }

  const CudaHistoryArgs& a_;
  const int channel_, head_, r_, page_newest_;
  float* times_;
  float far_[2];                                 // the far position's bias
  int oldest_, tie_first_, tie_last_, nearest_;  // over the warp's rows
  Row row_[2];
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_BIAS_CUH_
