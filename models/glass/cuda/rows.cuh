// Steps between the products of a layer: weights loaded ahead, and the norm. Private to this folder.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_ROWS_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_ROWS_CUH_

#include "models/glass/cuda/tile.cuh"

namespace backstory::glass::cuda {

// Volatile, or the compiler would move loads that are to overlap with a barrier back behind it.
__device__ __forceinline__ uint4 LoadNow(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}
// The same of memory that this kernel may have written itself.
__device__ __forceinline__ uint4 LoadWritten(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

// Weights of one n8 tile over up to kPairs steps of 32, on their way before they are needed.
template <int kS, int kPairs>
struct Ahead {
  uint4 b[kS == 1 ? kPairs : 1];
  const uint4* at = nullptr;  // three parts would not fit into registers: these are loaded where they are used
  __device__ __forceinline__ void Load(const ByColumns<kS>& w, int tile, int pairs) {
    at = w.data + tile * w.pairs * kS * 32 + Lane();
    if constexpr (kS == 1) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p) b[p] = p < pairs ? LoadNow(at + p * 32) : make_uint4(0, 0, 0, 0);
    }
  }
  // acc[m] += rows 16 m .. of a, columns from `column` on, times steps from .. to of the tile.
  template <int kM>
  __device__ __forceinline__ void Multiply(float (&acc)[kM][4], const Planes& a, int column, int from, int to) const {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (p < from || p >= to) continue;
      uint4 w[kS];
#pragma unroll
      for (int s = 0; s < kS; ++s) w[s] = kS == 1 ? b[p % (kS == 1 ? kPairs : 1)] : __ldg(at + (p * kS + s) * 32);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b0[kS], b1[kS];
#pragma unroll
        for (int s = 0; s < kS; ++s) {
          b0[s] = half == 0 ? w[s].x : w[s].z;
          b1[s] = half == 0 ? w[s].y : w[s].w;
        }
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          uint32_t x[kS][4];
          LoadA<kS>(a, 16 * m, column + 32 * (p - from) + 16 * half, x);
          MmaParts<kS>(acc[m], x, b0, b1);
        }
      }
    }
  }
};

// z = x / sqrt(mean(x^2) + 1e-6) * g in parts; x [kRows][stride] fp32, d of kD columns mean something (the rest is
// zero, as in g). A warp per row; its rows go side by side, so that their latencies overlap.
template <int kS, int kD, int kRows>
__device__ __forceinline__ void NormRows(const float* x, int stride, int d, const float* g, const Planes& z) {
  static_assert(kD % 32 == 0);
  constexpr int kEach = (kRows + kWarps - 1) / kWarps, kPairs = (kD / 2 + 31) / 32;
  float2 v[kEach][kPairs], w[kPairs];
  float sum[kEach];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int pair = Lane() + 32 * p;
    w[p] = pair < kD / 2 ? __ldg(reinterpret_cast<const float2*>(g) + pair) : make_float2(0, 0);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int r = Warp() + kWarps * i;
    sum[i] = 0;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = Lane() + 32 * p;
      v[i][p] =
          r < kRows && pair < kD / 2 ? *reinterpret_cast<const float2*>(x + r * stride + 2 * pair) : make_float2(0, 0);
      sum[i] += v[i][p].x * v[i][p].x + v[i][p].y * v[i][p].y;
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int r = Warp() + kWarps * i;
    const float scale = rsqrtf(__fdividef(sum[i], static_cast<float>(d)) + 1e-6f);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = Lane() + 32 * p;
      if (r < kRows && pair < kD / 2)
        StorePair<kS>(z, r, 2 * pair, v[i][p].x * scale * w[p].x, v[i][p].y * scale * w[p].y);
    }
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_ROWS_CUH_
