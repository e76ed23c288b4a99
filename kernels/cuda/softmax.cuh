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
  // What a thread's weights of a page may add up to before the row's reference moves: moving it costs a pass over O and
  // is rarely needed, and 2^16 is harmless to fp32. Each row decides by itself.
  static constexpr float kSlack = 65536;

  float top[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum[2] = {0, 0};

  // From the dot products s: the weights p, exp2 of their logits over the reference, in bf16. Returns in `rescale` what O
  // of former pages has to be multiplied by: 1 nearly always, 0 for the first page. The sums are already.
  //
  // A reference that is there (not needed only if kFirst) is taken to be good, for then scaling, exponentials and sums
  // need no maximum before them. A weight that is too large shows in its thread's sum; s is still there then.
  template <bool kFirst>
  __device__ __forceinline__ void Step(float scale, const float (&bias)[2], const float (&s)[64], uint32_t (&p)[32],
                                       float (&rescale)[2]) {
    rescale[0] = rescale[1] = 1;
    if (kFirst && top[0] == kNegativeInfinity) Move(scale, bias, {true, true}, s, rescale);
    const float offset[2] = {fmaf(bias[0], scale, -top[0]), fmaf(bias[1], scale, -top[1])};
    float more[2];
    Weights(scale, offset, s, p, more);
    const bool large[2] = {more[0] > kSlack, more[1] > kSlack};
    if (__any_sync(0xffffffff, large[0] || large[1])) {
      Move(scale, bias, large, s, rescale);
      const float moved[2] = {fmaf(bias[0], scale, -top[0]), fmaf(bias[1], scale, -top[1])};
      Weights(scale, moved, s, p, more);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = fmaf(sum[r], rescale[r], more[r]);
  }

 private:
  static __device__ __forceinline__ void Weights(float scale, const float (&offset)[2], const float (&s)[64],
                                                 uint32_t (&p)[32], float (&sums)[2]) {
    float part[2][2] = {};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int r = i % 2;
      const float x = Exp2(fmaf(s[2 * i], scale, offset[r])), y = Exp2(fmaf(s[2 * i + 1], scale, offset[r]));
      part[r][0] += x;
      part[r][1] += y;
      p[i] = PackBf16(x, y);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sums[r] = part[r][0] + part[r][1];
  }

  // Moves the reference of rows that any of their threads wants moved to the page's maximum, if that is above it.
  __device__ __forceinline__ void Move(float scale, const float (&bias)[2], const bool (&move)[2], const float (&s)[64],
                                       float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = s[2 * r];
#pragma unroll
      for (int i = 1; i < 32; ++i) most = fmaxf(most, s[i / 2 * 4 + 2 * r + i % 2]);
      most = fmaf(QuadMax(most), scale, bias[r] * scale);
      const unsigned quad = __ballot_sync(0xffffffff, move[r]) >> (threadIdx.x % 32 / 4 * 4) & 0xf;
      if (quad == 0 || most <= top[r]) continue;
      rescale[r] = top[r] == kNegativeInfinity ? 0 : Exp2(top[r] - most);
      top[r] = most;
    }
  }
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_SOFTMAX_CUH_
