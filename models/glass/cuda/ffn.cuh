// w2 relu(w1 z) of 16 rows without its hidden layer ever leaving registers: a warp computes 32 hidden values of each row,
// which as accumulators are the A operand of their share of the second product. Private to this folder.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_

#include "models/glass/cuda/tile.cuh"

namespace backstory::glass::cuda {

// What warps add up: [kWarps][16][stride] fp32.
template <int kD>
struct FfnSlabs {
  static constexpr int kStride = kD + 8;
  static constexpr int kFloats = 16 * kStride;
  static constexpr size_t kBytes = size_t{kWarps} * kFloats * 4;
  __device__ static __forceinline__ float Sum(const float* slabs, int row, int column) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += slabs[w * kFloats + row * kStride + column];
    return sum;
  }
};

// Hidden values 32 u .. 32 u + 31 of units u = first + step i < end, by one warp; its slab becomes the sum of their shares
// (zero without any). w1 [ffn][kD] by columns, w2 [kD][ffn] by rows: [ffn / 16][kD / 16][kS][lane] of 16 bytes, two n8
// tiles of one k16 step each. `row`: of z.
template <int kS, int kD>
__device__ __forceinline__ void FfnParts(const void* w1, const void* w2, const Planes& z, int row, int end, int first, int step,
                                         float* slabs) {
  const ByColumns<kS> up{static_cast<const uint4*>(w1), kD / 32};
  float out[kD / 8][4] = {};
  for (int unit = first; unit < end; unit += step) {
    float hidden[1][4][4] = {};
    Product<kS, 1, 4>(hidden, z, 0, up, 4 * unit, 0, kD / 32, row);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kS][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t parts[kS];
        const float* pair = hidden[0][2 * half + i / 2] + i % 2 * 2;
        Split<kS>(fmaxf(pair[0], 0.0f), fmaxf(pair[1], 0.0f), parts);
#pragma unroll
        for (int s = 0; s < kS; ++s) a[s][i] = parts[s];
      }
      const uint4* down = static_cast<const uint4*>(w2) + static_cast<int64_t>(2 * unit + half) * (kD / 16) * kS * 32 + Lane();
#pragma unroll(kS == 1 ? kD / 16 : 2)
      for (int pair = 0; pair < kD / 16; ++pair) {
        uint4 b[kS];
#pragma unroll
        for (int s = 0; s < kS; ++s) b[s] = __ldg(down + (pair * kS + s) * 32);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t b0[kS], b1[kS];
#pragma unroll
          for (int s = 0; s < kS; ++s) b0[s] = n == 0 ? b[s].x : b[s].z, b1[s] = n == 0 ? b[s].y : b[s].w;
          MmaParts<kS>(out[2 * pair + n], a, b0, b1);
        }
      }
    }
  }
  float* slab = slabs + Warp() * FfnSlabs<kD>::kFloats;
  const int g = Lane() / 4, c = Lane() % 4;
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<float2*>(slab + (g + 8 * half) * FfnSlabs<kD>::kStride + 8 * n + 2 * c) =
          make_float2(out[n][2 * half], out[n][2 * half + 1]);
    }
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
