// What goes between global memory and the registers of a consumer: the self key and value in, results out.
#ifndef BACKSTORY_KERNELS_CUDA_ROWS_CUH_
#define BACKSTORY_KERNELS_CUDA_ROWS_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax.cuh"

namespace backstory::cuda {

// The two query rows a thread of a consumer warpgroup works on: `tile_row` of its tile and the eighth after it.
template <int kD>
struct ThreadRows {
  const AttendArgs& a;
  int tile_row;

  // The self key's logit and value, or nothing: where the online softmax starts.
  __device__ __forceinline__ void Start(const WorkItem& item, OnlineSoftmax& softmax, float (&o)[kD / 2]) const {
    softmax = OnlineSoftmax();
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] = 0;
    if (a.self_k == nullptr || item.split_begin != 0) return;
    const int lane = threadIdx.x % 4, kv_head = item.head / (a.heads / a.kv_heads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int in_tile = min(tile_row + 8 * r, item.rows - 1);  // rows beyond the last are computed, never written
      const int64_t row = item.row + in_tile;
      const auto* q = static_cast<const __nv_bfloat16*>(a.q) + row * a.q_stride + item.head * kD;
      const auto* k = static_cast<const __nv_bfloat16*>(a.self_k) + row * a.self_stride + kv_head * kD;
      const auto* v = static_cast<const __nv_bfloat16*>(a.self_v) + row * a.self_stride + kv_head * kD;
      float dot = 0;
#pragma unroll
      for (int x = 0; x < kD / 32; ++x) dot += Dot8(q + 32 * x + 8 * lane, k + 32 * x + 8 * lane);
#pragma unroll
      for (int x = 0; x < kD / 8; ++x) {  // accumulator layout
        const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(v + 8 * x + 2 * lane));
        o[4 * x + 2 * r] = pair.x;
        o[4 * x + 2 * r + 1] = pair.y;
      }
      float bias = 0;
      if (item.self_segment >= 0) bias = a.bias[item.bias + int64_t{item.self_segment} * item.bias_stride + in_tile];
      softmax.top[r] = (QuadSum(dot) + bias) * (a.scale * kLog2E);
      softmax.sum[r] = lane == 0 ? 1 : 0;
    }
  }

  // This thread's columns of one row, from element `at` of the output on.
  __device__ __forceinline__ void StoreRow(const float (&o)[kD / 2], int r, float inverse, int64_t at) const {
    if (a.o_is_float) {
      float* const to = static_cast<float*>(a.o) + at;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) =
            make_float2(o[4 * n + 2 * r] * inverse, o[4 * n + 2 * r + 1] * inverse);
      }
    } else {
      __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(a.o) + at;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + 8 * n) = PackBf16(o[4 * n + 2 * r] * inverse, o[4 * n + 2 * r + 1] * inverse);
      }
    }
  }

  // Two neighbouring columns of block n.
  __device__ __forceinline__ void StorePair(int64_t row, int head, int n, float x, float y) const {
    const int64_t to = row * a.o_stride + head * kD + 8 * n + 2 * (threadIdx.x % 4);
    if (a.o_is_float) {
      *reinterpret_cast<float2*>(static_cast<float*>(a.o) + to) = make_float2(x, y);
    } else {
      *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(a.o) + to) = PackBf16(x, y);
    }
  }
  __device__ __forceinline__ void StoreLse(const WorkItem& item, const int64_t (&row)[2], const bool (&write)[2],
                                           const float (&top)[2], const float (&sum)[2]) const {
    if (a.lse == nullptr || threadIdx.x % 4 != 0) return;
    constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!write[r]) continue;
      a.lse[row[r] * a.heads + item.head] = sum[r] > 0 ? (top[r] + log2f(sum[r])) * kLn2 : kNegativeInfinity;
    }
  }

 private:
  // The product of eight values each, 16-byte aligned.
  static __device__ __forceinline__ float Dot8(const __nv_bfloat16* a, const __nv_bfloat16* b) {
    const uint4 a8 = *reinterpret_cast<const uint4*>(a), b8 = *reinterpret_cast<const uint4*>(b);
    const uint32_t aw[4] = {a8.x, a8.y, a8.z, a8.w}, bw[4] = {b8.x, b8.y, b8.z, b8.w};
    float dot = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dot = fmaf(__uint_as_float(aw[i] << 16), __uint_as_float(bw[i] << 16), dot);
      dot = fmaf(__uint_as_float(aw[i] & 0xffff0000), __uint_as_float(bw[i] & 0xffff0000), dot);
    }
    return dot;
  }
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_ROWS_CUH_
