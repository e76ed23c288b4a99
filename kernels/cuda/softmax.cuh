// The online softmax of 64 query rows held by one warpgroup: two rows a thread, in accumulator layout (wgmma.cuh). Logits
// count in units of log 2.
#ifndef BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_
#define BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_

#ifndef BS_SLACK
#define BS_SLACK 8
#endif
#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

constexpr float kNegativeInfinity = -__builtin_huge_valf();

// The bias of one page for this thread's two rows, as it comes from the table, before scaling.
struct PageBias {
  float above[2] = {0, 0};
  float below[2] = {0, 0};  // read only where the page has a boundary
};

// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// What normalises a row; no row sum is a subnormal, 0 is the empty row's.
__device__ __forceinline__ float Inverse(float sum) { return sum > 0 ? __fdividef(1, sum) : 0; }

// Pages that are SPLIT or not full: the rows below the boundary get the difference to the bias above it, rows beyond the
// valid ones vanish.
__device__ __forceinline__ void ApplyBoundaries(const PageEntry& entry, const PageBias& bias, float (&s)[64]) {
  const int first = 2 * static_cast<int>(threadIdx.x % 4), boundary = entry.boundary - first,
            valid = entry.valid - first;
  const float more[2] = {bias.below[0] - bias.above[0], bias.below[1] - bias.above[1]};
  // Column of s[i], counted from `first`: i / 4 * 8 + i % 2.
  if (entry.boundary != 0) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if (i / 4 * 8 + i % 2 < boundary) s[i] += more[i / 2 % 2];
    }
  }
  if (entry.valid != kPageRows) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if (i / 4 * 8 + i % 2 >= valid) s[i] = kNegativeInfinity;
    }
  }
}

// Running state of two rows: maximum (a little stale on purpose), this thread's share of the sum.
struct OnlineSoftmax {
  // How far, in powers of two, logits may exceed the reference before it moves: rescaling O is rarely needed, and 2^8 is
  // harmless to fp32 sums. Each row decides by itself.
  static constexpr float kSlack = BS_SLACK;

  float top[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum[2] = {0, 0};

  // Replaces the dot products s by exp2 of their logits over the reference. Returns in `rescale` what the sums of former
  // pages (and O) have to be multiplied by; the sums are already.
  __device__ __forceinline__ void Step(float scale, const float (&bias)[2], float (&s)[64], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Four chains each for maximum and sum: one warp of this group runs on a scheduler, so latency counts.
      float most[4] = {s[2 * r], s[2 * r + 1], s[4 + 2 * r], s[5 + 2 * r]};
#pragma unroll
      for (int i = 4; i < 32; ++i) most[i % 4] = fmaxf(most[i % 4], s[i / 2 * 4 + 2 * r + i % 2]);
      const float page_top = QuadMax(fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])));
      const float shift = bias[r] * scale, candidate = fmaf(page_top, scale, shift);
      const float now = candidate > top[r] + kSlack ? candidate : top[r];
      rescale[r] = Exp2(top[r] - now);
      top[r] = now;
      const float offset = shift - now;
      float part[4] = {sum[r] * rescale[r], 0, 0, 0};
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& x = s[i / 2 * 4 + 2 * r + i % 2];
        x = Exp2(fmaf(x, scale, offset));
        part[i % 4] += x;
      }
      sum[r] = (part[0] + part[1]) + (part[2] + part[3]);
    }
  }
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_
