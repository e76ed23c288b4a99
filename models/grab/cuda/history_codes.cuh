// What a pair of history rows is to each other, apart from its position: a time bucket, or masked. One byte a pair, in
// the order of the accumulators of attention (kernels/cuda/wgmma.cuh).
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_CODES_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_CODES_CUH_

#include <cstdint>

#include "kernels/cuda/attend.h"
#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {

// Words between rows of what is kept in shared memory by time bucket: biases, with -infinity for masked pairs behind
// the last one, and where there are few, bucket_begin. Odd, so that rows lie in different banks.
__host__ __device__ constexpr int HistoryTimeStride(int n_time) { return (n_time + 1) | 1; }
inline constexpr int kHistoryBeginsKept = 64;
// Bytes for a tile.
__host__ __device__ constexpr int HistoryTimeBytes(int n_time) {
  return (n_time <= kHistoryBeginsKept ? 2 : 1) * cuda::kPageRows * HistoryTimeStride(n_time) * 4;
}

// The codes of a thread's 64 accumulators, two query rows and 32 keys of a page: bucket, or n_time if masked.
struct PairCodes {
  uint32_t word[16];
  __device__ __forceinline__ int operator[](int i) const { return word[i / 4] >> (i % 4 * 8) & 0xff; }
};

// Of accumulator i: key, counted from the thread's first, and which of its two rows.
__device__ __forceinline__ constexpr int KeyOf(int i) { return i / 4 * 8 + i % 2; }
__device__ __forceinline__ constexpr int RowOf(int i) { return i / 2 % 2; }

// Where the codes of a tile and page are, the tile's newest page being 0: one PairCodes a thread.
__device__ __forceinline__ PairCodes* CodesOf(const CudaHistoryRows& c, int tile, int page_from_newest) {
  return reinterpret_cast<PairCodes*>(c.codes) + (int64_t{tile} * kCudaHistoryCodedPages + page_from_newest) * 256;
}

// The youngest bucket that begins at or before key j; begin(bucket) as CudaHistoryRows::bucket_begin.
template <typename Begin>
__device__ __forceinline__ int BucketOf(const Begin& begin, int n_time, int j) {
  int low = 0, high = n_time - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (begin(middle) > j) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The codes of rows `row` and `row` + 8 of the chunk with a page, for a thread whose first key is `first`. begin(r,
// bucket): of the thread's row r. A loop of a hundred instructions a pair or so, on purpose not unrolled.
template <typename Begin>
__device__ __forceinline__ PairCodes CodePairs(const CudaHistoryRows& c, int n_time, int row, int page, int first,
                                               const Begin& begin) {
  PairCodes codes;
  auto* const bytes = reinterpret_cast<uint8_t*>(codes.word);
#pragma unroll 1
  for (int r = 0; r < 2; ++r) {
    const int i = c.first + row + 8 * r;
    const CudaHistoryLimits limits = c.limits[row + 8 * r];
    const bool ties = limits.tie_last >= page * cuda::kPageRows && limits.tie_first < (page + 1) * cuda::kPageRows;
    const int64_t tie = ties ? c.tie[i] : 0;
    const auto mine = [&](int bucket) { return begin(r, bucket); };
    int bucket = BucketOf(mine, n_time, min(i, first + KeyOf(63)));
#pragma unroll 1
    for (int n = 31; n >= 0; --n) {
      const int at = n / 2 * 4 + 2 * r + n % 2, j = first + KeyOf(at);
      while (j <= i && mine(bucket) > j) ++bucket;
      bool visible = j == i || (j < i && j >= limits.oldest);
      if (ties && j >= limits.tie_first && j <= limits.tie_last) visible = visible && c.tie[j] != tie;
      bytes[at] = static_cast<uint8_t>(visible ? bucket : n_time);
    }
  }
  return codes;
}

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_CODES_CUH_
