// The online softmax of 64 query rows held by one warpgroup: two rows a thread, in accumulator layout (wgmma.cuh).
// Logits count in units of log 2.
#ifndef BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_
#define BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

constexpr float kNegativeInfinity = -__builtin_huge_valf();
constexpr float kLog2E = 1.44269504088896341f;

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

// Pages that are SPLIT or not full: the rows below the boundary get the difference to the bias above it, rows beyond
// the valid ones vanish.
__device__ __forceinline__ void ApplyBoundaries(int boundary, int valid, const PageBias& bias, float (&s)[64]) {
  const int first = 2 * static_cast<int>(threadIdx.x % 4);
  const float more[2] = {bias.below[0] - bias.above[0], bias.below[1] - bias.above[1]};
  // Column of s[i], counted from `first`: i / 4 * 8 + i % 2.
  if (boundary != 0) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if (i / 4 * 8 + i % 2 < boundary - first) s[i] += more[i / 2 % 2];
    }
  }
  if (valid != kPageRows) {
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      if (i / 4 * 8 + i % 2 >= valid - first) s[i] = kNegativeInfinity;
    }
  }
}

// Running state of two rows: the reference logit (a maximum, a little stale on purpose), this thread's share of the
// sum.
struct OnlineSoftmax {
  // How far, in powers of two, logits may exceed the reference before it moves: moving it costs a pass over O and is
  // rarely needed, and 2^8 is harmless to fp32 sums. Each row decides by itself.
  static constexpr float kSlack = 8;

  float top[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum[2] = {0, 0};

  // Replaces the dot products s by exp2 of their logits over the reference. Returns in `rescale` what O of former pages
  // has to be multiplied by: 1 nearly always, 0 for the first page. The sums are already.
  __device__ __forceinline__ void Step(float scale, const float (&bias)[2], float (&s)[64], float (&rescale)[2]) {
    const bool first = top[0] == kNegativeInfinity;  // of both rows
    const float base[2] = {first ? 0 : top[0], first ? 0 : top[1]};
    const float offset[2] = {fmaf(bias[0], scale, -base[0]), fmaf(bias[1], scale, -base[1])};
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = fmaf(s[i], scale, offset[i / 2 % 2]);
    // Among floats of which some exceed kSlack > 0, the largest is the largest as an integer too.
    int most[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      most[i / 2 % 4] = __vimax3_s32(most[i / 2 % 4], __float_as_int(s[i]), __float_as_int(s[i + 1]));
    }
    const int largest = max(__vimax3_s32(most[0], most[1], most[2]), most[3]);
    rescale[0] = rescale[1] = 1;
    if (__any_sync(0xffffffff, first || largest > __float_as_int(kSlack))) Move(first, base, s, rescale);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float part[4] = {sum[r] * rescale[r], 0, 0, 0};  // four chains: one warp of this group runs on a scheduler
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& x = s[i / 2 * 4 + 2 * r + i % 2];
        x = Exp2(x);
        part[i % 4] += x;
      }
      sum[r] = (part[0] + part[1]) + (part[2] + part[3]);
    }
  }

 private:
  // Moves the reference of rows that have none or exceed it by far to the page's maximum.
  __device__ __forceinline__ void Move(bool first, const float (&base)[2], float (&s)[64], float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = s[2 * r];
#pragma unroll
      for (int i = 1; i < 32; ++i) most = fmaxf(most, s[i / 2 * 4 + 2 * r + i % 2]);
      most = QuadMax(most);
      const float shift = first || most > kSlack ? most : 0;
      rescale[r] = first ? 0 : Exp2(-shift);
      top[r] = base[r] + shift;
#pragma unroll
      for (int i = 0; i < 32; ++i) s[i / 2 * 4 + 2 * r + i % 2] -= shift;
    }
  }
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_
