// w2 relu(w1 z) of 16 rows without its hidden layer ever leaving registers: a warp computes 32 hidden values of each row,
// which as accumulators are the A operand of their share of the second product. Private to this folder.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_

#include "models/glass/cuda/tile.cuh"

namespace backstory::glass::cuda {

// Shares of warps that are added up in shared memory: 16 rows of kStride fp32 each.
template <int kD>
struct FfnSlab {
  static constexpr int kStride = kD + 8;
  static constexpr int kFloats = 16 * kStride;
};

// out[m] += the share that hidden values 32 u .. 32 u + 31 have in rows row + 16 m .., for units u = first, first + step, ..
// < end; one warp. w1 [ffn][kD] by columns, w2 [kD][ffn] by rows: [ffn / 16][kD / 16][kS][lane] of 16 bytes, two n8 tiles of
// one k16 step each.
template <int kS, int kD, int kM>
__device__ __forceinline__ void FfnShare(const void* w1, const void* w2, const Planes& z, int row, int end, int first, int step,
                                         float (&out)[kM][kD / 8][4]) {
  const ByColumns<kS> up{static_cast<const uint4*>(w1), kD / 32};
  for (int unit = first; unit < end; unit += step) {
    float hidden[kM][4][4] = {};
    Product<kS, kM, 4>(hidden, z, 0, up, 4 * unit, 0, kD / 32, row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kM][kS][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t parts[kS];
          const float* pair = hidden[m][2 * half + i / 2] + i % 2 * 2;
          Split<kS>(fmaxf(pair[0], 0.0f), fmaxf(pair[1], 0.0f), parts);
#pragma unroll
          for (int s = 0; s < kS; ++s) a[m][s][i] = parts[s];
        }
      }
      const uint4* down = static_cast<const uint4*>(w2) + static_cast<int64_t>(2 * unit + half) * (kD / 16) * kS * 32 + Lane();
#pragma unroll
      for (int pair = 0; pair < kD / 16; ++pair) {
        uint4 b[kS];
#pragma unroll
        for (int s = 0; s < kS; ++s) b[s] = __ldg(down + (pair * kS + s) * 32);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t b0[kS], b1[kS];
#pragma unroll
          for (int s = 0; s < kS; ++s) b0[s] = n == 0 ? b[s].x : b[s].z, b1[s] = n == 0 ? b[s].y : b[s].w;
#pragma unroll
          for (int m = 0; m < kM; ++m) MmaParts<kS>(out[m][2 * pair + n], a[m], b0, b1);
        }
      }
    }
  }
}

// This lane's places of a slab, written, or added to `out`.
template <int kD>
__device__ __forceinline__ void StoreSlab(const float (&out)[kD / 8][4], float* slab) {
  slab += Lane() / 4 * FfnSlab<kD>::kStride + 2 * (Lane() % 4);
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    *reinterpret_cast<float2*>(slab + 8 * n) = make_float2(out[n][0], out[n][1]);
    *reinterpret_cast<float2*>(slab + 8 * FfnSlab<kD>::kStride + 8 * n) = make_float2(out[n][2], out[n][3]);
  }
}
template <int kD>
__device__ __forceinline__ void AddSlab(const float* slab, float (&out)[kD / 8][4]) {
  slab += Lane() / 4 * FfnSlab<kD>::kStride + 2 * (Lane() % 4);
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    const float2 a = *reinterpret_cast<const float2*>(slab + 8 * n);
    const float2 b = *reinterpret_cast<const float2*>(slab + 8 * FfnSlab<kD>::kStride + 8 * n);
    out[n][0] += a.x, out[n][1] += a.y, out[n][2] += b.x, out[n][3] += b.y;
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
