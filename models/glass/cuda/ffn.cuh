// w2 relu(w1 z) of 16 rows without its hidden layer ever leaving registers: a warp computes 32 hidden values of each
// row, which as accumulators are the A operand of their share of the second product. Private to this folder.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_

#include "models/glass/cuda/rows.cuh"

namespace backstory::glass::cuda {

// Shares of warps that are added up in shared memory: 16 rows of kStride fp32 each.
template <int kD>
struct FfnSlab {
  static constexpr int kStride = kD + 8;
  static constexpr int kFloats = 16 * kStride;
};

// out[m] += the share that hidden values 32 u .. 32 u + 31 have in rows row + 16 m .., for units u = first, first +
// step, .. < end; one warp. w1 [ffn][kD] by columns, w2 [kD][ffn] by rows: [ffn / 16][kD / 16][kS][lane] of 16 bytes,
// two n8 tiles of one k16 step each.
template <int kS, int kD, int kM>
__device__ __forceinline__ void FfnShare(const void* w1, const void* w2, const Planes& z, int row, int end, int first,
                                         int step, float (&out)[kM][kD / 8][4]) {
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
      const uint4* down =
          static_cast<const uint4*>(w2) + static_cast<int64_t>(2 * unit + half) * (kD / 16) * kS * 32 + Lane();
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

// A warp's weights of one unit, in shared memory ahead of their use. Every lane copies and later reads its own 16 bytes
// of a fragment, so that no barrier is needed: waiting for its own copies is enough. Half the buffer is refilled while
// the other half is multiplied.
template <int kD>
struct FfnBuffer {
  static constexpr int kUp = 2 * (kD / 32), kDown = kD / 16;  // fragments of 512 bytes: of 16 hidden values
  static constexpr int kBytes = (kUp + kDown) * 512;
  uint4* at;  // of this lane: fragments are 32 apart

  __device__ __forceinline__ void Copy(int to, const void* from, int64_t first, int count) const {
#pragma unroll
    for (int f = 0; f < count; ++f) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(SharedAddress(at + (to + f) * 32)),
                   "l"(static_cast<const uint4*>(from) + (first + f) * 32 + Lane())
                   : "memory");
    }
  }
  // Each is one group, empty where there is no such unit.
  __device__ __forceinline__ void FetchUp(const void* w1, int unit, int end) const {
    if (unit < end) Copy(0, w1, int64_t{unit} * kUp, kUp);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __device__ __forceinline__ void FetchDown(const void* w2, int unit, int end) const {
    if (unit < end) Copy(kUp, w2, int64_t{unit} * kDown, kDown);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __device__ __forceinline__ void WaitForAllButOne() const { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
};

// FfnShare in one part, in units of 16 hidden values, the first of which was fetched before.
template <int kD, int kM>
__device__ __forceinline__ void FfnShareAhead(const FfnBuffer<kD>& buffer, const void* w1, const void* w2,
                                              const Planes& z, int row, int end, int first, int step,
                                              float (&out)[kM][kD / 8][4]) {
  for (int unit = first; unit < end; unit += step) {
    float hidden[kM][2][4] = {};
    buffer.WaitForAllButOne();
#pragma unroll
    for (int p = 0; p < kD / 32; ++p) {
      const uint4 b[2] = {buffer.at[p * 32], buffer.at[(kD / 32 + p) * 32]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          uint32_t x[1][4];
          LoadA<1>(z, row + 16 * m, 32 * p + 16 * half, x);
#pragma unroll
          for (int n = 0; n < 2; ++n) Mma(hidden[m][n], x[0], half == 0 ? b[n].x : b[n].z, half == 0 ? b[n].y : b[n].w);
        }
      }
    }
    buffer.FetchUp(w1, unit + step, end);
    buffer.WaitForAllButOne();
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t parts[1];
        const float* pair = hidden[m][i / 2] + i % 2 * 2;
        Split<1>(fmaxf(pair[0], 0.0f), fmaxf(pair[1], 0.0f), parts);
        a[m][i] = parts[0];
      }
    }
#pragma unroll
    for (int pair = 0; pair < kD / 16; ++pair) {
      const uint4 b = buffer.at[(FfnBuffer<kD>::kUp + pair) * 32];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        Mma(out[m][2 * pair], a[m], b.x, b.y);
        Mma(out[m][2 * pair + 1], a[m], b.z, b.w);
      }
    }
    buffer.FetchDown(w2, unit + step, end);
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

// Shares of all warps of a block in kWarps / 2 slabs of kM tiles each; afterwards, a barrier behind, their sum is the
// block's. The shares of warps w and w + kWarps / 2 are added first.
template <int kD, int kM>
__device__ __forceinline__ void GatherShares(float (&out)[kM][kD / 8][4], float* slabs) {
  constexpr int kHalf = kWarps / 2;
  float* slab = slabs + Warp() % kHalf * kM * FfnSlab<kD>::kFloats;
#pragma unroll
  for (int phase = 1; phase >= 0; --phase) {
    if (Warp() / kHalf == phase) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float* tile = slab + m * FfnSlab<kD>::kFloats;
        if (phase == 0) AddSlab<kD>(tile, out[m]);
        StoreSlab<kD>(out[m], tile);
      }
    }
    __syncthreads();
  }
}
template <int kD, int kM>
__device__ __forceinline__ float4 SumOfShares(const float* slabs, int row, int column, float4 sum) {
#pragma unroll
  for (int s = 0; s < kWarps / 2; ++s) {
    const float4 v = *reinterpret_cast<const float4*>(slabs + (s * kM + row / 16) * FfnSlab<kD>::kFloats +
                                                      row % 16 * FfnSlab<kD>::kStride + column);
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  return sum;
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_FFN_CUH_
