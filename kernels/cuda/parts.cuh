// Split-KV. The results of a tile's splits are merged in order, by one rule, wherever they are: in shared memory when
// one item computes them one after the other, else in a workspace that stays in the L2, by the warp that comes last.
#ifndef BACKSTORY_KERNELS_CUDA_PARTS_CUH_
#define BACKSTORY_KERNELS_CUDA_PARTS_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax.cuh"

namespace backstory::cuda {

// A part is an unnormalised result: a thread holds kD / 2 of O's values of two rows in accumulator order, the rows'
// reference logits `top`, and its share of their sums. Empty: top -inf, O and sum 0.

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
  __device__ __forceinline__ void Add(const float (&o)[kD / 2], const float (&newer_top)[2],
                                      const float (&newer_sum)[2]) {
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
    top_[0] = top_[1] = kNegativeInfinity;
    sum_[0] = sum_[1] = 0;
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

  __device__ __forceinline__ void Store(int part, const float (&o)[kD / 2], const float (&top)[2],
                                        const float (&sum)[2]) {
    float* to = At(part);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      __stcg(reinterpret_cast<float4*>(to + n * 128), make_float4(o[4 * n], o[4 * n + 1], o[4 * n + 2], o[4 * n + 3]));
    }
    __stcg(reinterpret_cast<float4*>(to + kD / 8 * 128), make_float4(top[0], sum[0], top[1], sum[1]));
  }

  // After an item's stores: whether all other items of the tile are done. The last one resets the counter.
  __device__ __forceinline__ bool IsLast(const WorkItem& item) {
    __syncwarp();
    uint32_t before = 0;
    if (threadIdx.x % 32 == 0) before = AddReleasing(counter_, 1);
    before = __shfl_sync(0xffffffff, before, 0);
    __syncwarp();
    if (before + 1 != static_cast<uint32_t>(item.tile_items)) return false;
    if (threadIdx.x % 32 == 0) *counter_ = 0;
    return true;
  }

  // After an item's stores: waits for the other items of the tile.
  __device__ __forceinline__ void Meet(const WorkItem& item) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      AddReleasing(counter_, 1);
      while (LoadAcquiring(counter_) < static_cast<uint32_t>(item.tile_items)) continue;
    }
    __syncwarp();
  }
  // The last to leave resets the counter.
  __device__ __forceinline__ void Leave(const WorkItem& item) {
    if (threadIdx.x % 32 == 0 && AddReleasing(counter_, 1) + 1 == 2 * static_cast<uint32_t>(item.tile_items))
      *counter_ = 0;
  }

  // Merges the column blocks [begin, end) of the kD / 8 and hands each to `write(block, float4)`: two columns of both
  // rows, unnormalised. `weights` is scratch of the warp, [parts][32 lanes] float4. Returns the rows' top, sum and what
  // normalises them.
  template <typename Write>
  __device__ __forceinline__ void Merge(const WorkItem& item, int begin, int end, float* weights, float (&top)[2],
                                        float (&sum)[2], float (&inverse)[2], Write write) const {
    float4* const mine = reinterpret_cast<float4*>(weights) + threadIdx.x % 32;
    const int first = item.first_splits, parts = 1 + item.splits - first;
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = kNegativeInfinity, sum[r] = 0;
    for (int at = 0; at < parts; at += kAtOnce) {
      float4 facts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (at + i < parts) facts[i] = Facts(at + i == 0 ? 0 : first + at + i - 1);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (at + i >= parts) break;
        const float newer_top[2] = {facts[i].x, facts[i].z}, newer_sum[2] = {facts[i].y, facts[i].w};
        float older[2], newer[2];
        MergeWeights(top, sum, newer_top, newer_sum, older, newer);
        mine[(at + i) * 32] = make_float4(older[0], newer[0], older[1], newer[1]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = QuadSum(sum[r]), inverse[r] = Inverse(sum[r]);
    for (int n = begin; n < end; n += kBlocks) {
      float4 o[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) o[b] = make_float4(0, 0, 0, 0);
      for (int at = 0; at < parts; at += kAtOnce) {
        float4 x[kAtOnce][kBlocks];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float* const from = At(at + i == 0 ? 0 : first + at + i - 1) + n * 128;
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
            if (at + i < parts && n + b < end) x[i][b] = __ldcg(reinterpret_cast<const float4*>(from + b * 128));
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (at + i >= parts) break;
          const float4 w = mine[(at + i) * 32];
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
            o[b] = make_float4(fmaf(x[i][b].x, w.y, o[b].x * w.x), fmaf(x[i][b].y, w.y, o[b].y * w.x),
                               fmaf(x[i][b].z, w.w, o[b].z * w.z), fmaf(x[i][b].w, w.w, o[b].w * w.z));
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (n + b < end) write(n + b, o[b]);
      }
    }
  }

 private:
  static constexpr int kAtOnce = 2,
                       kBlocks = 2;  // parts and column blocks in flight; more, and the page loop spills registers
  __device__ __forceinline__ float4 Facts(int part) const {
    return __ldcg(reinterpret_cast<const float4*>(At(part) + kD / 8 * 128));
  }
  __device__ __forceinline__ float* At(int part) const {
    return base_ + static_cast<uint32_t>(part * kWarps * PartLayout<kD>::kFloats);
  }
  float* base_;
  uint32_t* counter_;
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_PARTS_CUH_
