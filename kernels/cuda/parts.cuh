// Split-KV. The results of a tile's splits are merged in order, by one rule, wherever they are: in shared memory when one
// item computes them one after the other, else in a workspace that stays in the L2, by the warp that comes last.
#ifndef BACKSTORY_KERNELS_CUDA_PARTS_CUH_
#define BACKSTORY_KERNELS_CUDA_PARTS_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax.cuh"

namespace backstory::cuda {

// A part is an unnormalised result: a thread holds kD / 2 of O's values of two rows in accumulator order, the rows' reference
// logits `top`, and its share of their sums. Empty: top -inf, O and sum 0.

// Weights of the older and the newer part in their merger, per row; moves `top` and `sum` to the merger's.
__device__ __forceinline__ void MergeWeights(float (&top)[2], float (&sum)[2], const float (&newer_top)[2],
                                             const float (&newer_sum)[2], float (&older)[2], float (&newer)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float both = fmaxf(top[r], newer_top[r]), reference = both == kNegativeInfinity ? 0 : both;
    older[r] = Exp2(top[r] - reference);
    newer[r] = Exp2(newer_top[r] - reference);
    top[r] = both;
    sum[r] = fmaf(newer_sum[r], newer[r], sum[r] * older[r]);
  }
}

// A thread's part in memory: [kD / 8][32 lanes][4] floats, then (top, sum) of both rows [32 lanes][4].
template <int kD>
struct PartLayout {
  static constexpr int kOutput = kD / 8, kFloats = 32 * (kD / 2 + 4);  // float4 rows; floats of a warp's part
};

// The running total of an item's splits, in shared memory; a thread touches its own values only.
template <int kD>
class RunningTotal {
 public:
  __device__ explicit RunningTotal(float* of_warp) : at_(of_warp + threadIdx.x % 32 * 4) {}

  // total = merge(total, newer); leaves the result in shared memory.
  __device__ __forceinline__ void Add(const float (&o)[kD / 2], const float (&newer_top)[2], const float (&newer_sum)[2]) {
    const bool first = top_[0] == kNegativeInfinity && top_[1] == kNegativeInfinity;
    float older[2], newer[2];
    MergeWeights(top_, sum_, newer_top, newer_sum, older, newer);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      float4* const to = reinterpret_cast<float4*>(at_ + n * 128);
      const float4 x = first ? make_float4(0, 0, 0, 0) : *to;
      *to = make_float4(fmaf(o[4 * n], newer[0], x.x * older[0]), fmaf(o[4 * n + 1], newer[0], x.y * older[0]),
                        fmaf(o[4 * n + 2], newer[1], x.z * older[1]), fmaf(o[4 * n + 3], newer[1], x.w * older[1]));
    }
  }
  // o, top, sum = merge(total, them).
  __device__ __forceinline__ void AddInto(float (&o)[kD / 2], float (&top)[2], float (&sum)[2]) const {
    float older[2], newer[2], total_top[2] = {top_[0], top_[1]}, total_sum[2] = {sum_[0], sum_[1]};
    MergeWeights(total_top, total_sum, top, sum, older, newer);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const float4 x = *reinterpret_cast<const float4*>(at_ + n * 128);
      o[4 * n] = fmaf(o[4 * n], newer[0], x.x * older[0]);
      o[4 * n + 1] = fmaf(o[4 * n + 1], newer[0], x.y * older[0]);
      o[4 * n + 2] = fmaf(o[4 * n + 2], newer[1], x.z * older[1]);
      o[4 * n + 3] = fmaf(o[4 * n + 3], newer[1], x.w * older[1]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = total_top[r], sum[r] = total_sum[r];
  }
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int r = 0; r < 2; ++r) top_[r] = kNegativeInfinity, sum_[r] = 0;
  }

 private:
  float* at_;
  float top_[2] = {kNegativeInfinity, kNegativeInfinity};
  float sum_[2] = {0, 0};
};

// The parts of one tile's 16 rows in the workspace [part][warp], and who has left one.
template <int kD, int kWarps>
class Parts {
 public:
  __device__ __forceinline__ Parts(const AttendArgs& a, const WorkItem& item, int warp)
      : base_(static_cast<float*>(a.parts) + (int64_t{item.first_part} * kWarps + warp) * PartLayout<kD>::kFloats +
              threadIdx.x % 32 * 4),
        counter_(static_cast<uint32_t*>(a.counters) + item.tile_counter * kWarps + warp) {}

  __device__ __forceinline__ void Store(int part, const float (&o)[kD / 2], const float (&top)[2], const float (&sum)[2]) {
    float* to = At(part);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      __stcg(reinterpret_cast<float4*>(to + n * 128), make_float4(o[4 * n], o[4 * n + 1], o[4 * n + 2], o[4 * n + 3]));
    }
    __stcg(reinterpret_cast<float4*>(to + kD / 8 * 128), make_float4(top[0], sum[0], top[1], sum[1]));
  }

  // After an item's stores: whether all other splits are there. The last one resets the counter for the next launch.
  __device__ __forceinline__ bool IsLast(const WorkItem& item) {
    __threadfence();
    __syncwarp();
    uint32_t done = item.split_end - item.split_begin;
    if (threadIdx.x % 32 == 0) {
      done += atomicAdd(counter_, done);
      if (done == static_cast<uint32_t>(item.splits)) *counter_ = 0;
    }
    done = __shfl_sync(0xffffffff, done, 0);
    __threadfence();
    return done == static_cast<uint32_t>(item.splits);
  }

  // Part 0, which is the first item's, then every later split's.
  __device__ __forceinline__ void Merge(const WorkItem& item, float (&o)[kD / 2], float (&top)[2], float (&sum)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = kNegativeInfinity, sum[r] = 0;
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] = 0;
    for (int part = 0; part < item.splits; part = part == 0 ? item.first_splits : part + 1) {
      const float* from = At(part);
      float4 x[kD / 8];
      const float4 facts = __ldcg(reinterpret_cast<const float4*>(from + kD / 8 * 128));
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) x[n] = __ldcg(reinterpret_cast<const float4*>(from + n * 128));
      const float newer_top[2] = {facts.x, facts.z}, newer_sum[2] = {facts.y, facts.w};
      float older[2], newer[2];
      MergeWeights(top, sum, newer_top, newer_sum, older, newer);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        o[4 * n] = fmaf(x[n].x, newer[0], o[4 * n] * older[0]);
        o[4 * n + 1] = fmaf(x[n].y, newer[0], o[4 * n + 1] * older[0]);
        o[4 * n + 2] = fmaf(x[n].z, newer[1], o[4 * n + 2] * older[1]);
        o[4 * n + 3] = fmaf(x[n].w, newer[1], o[4 * n + 3] * older[1]);
      }
    }
  }

 private:
  __device__ __forceinline__ float* At(int part) const { return base_ + int64_t{part} * kWarps * PartLayout<kD>::kFloats; }

  float* base_;
  uint32_t* counter_;
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_PARTS_CUH_
