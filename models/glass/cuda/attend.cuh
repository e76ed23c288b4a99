// Attention of 16 rows and one head of up to 32 dimensions to keys in card memory, one warp. Private to this folder.
//
// Why not kernels/cuda/attend: its wgmma tiles are 64 or 128 query rows by 128 keys of 64 or 128 dimensions; here a
// user's keys are 151 of 32 dimensions and a search has 20 rows, so that seven eighths of such a tile would be padding,
// and the launch alone would cost more than the attention (about 1 us of a warp's time).
#ifndef BACKSTORY_MODELS_GLASS_CUDA_ATTEND_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_ATTEND_CUH_

#include "models/glass/cuda/rows.cuh"

namespace backstory::glass::cuda {

constexpr int kHeadDim = 32, kKeyBlock = 32;

// Keys of one head, as B operands read them: in both tables eight numbers in a row (16 bytes) are what a lane needs of
// a block of 32.
//   k  [kS][keys][32]: dimension 8t + 2c + e at place 8c + 2t + e
//   vt [kS][32][keys]: key 32b + 8t + 2c + e at place 32b + 8c + 2t + e
template <int kS>
struct HeadKeys {
  const __nv_bfloat16 *k, *vt;
  int64_t k_part, vt_part;  // from part to part
  int capacity;             // keys of a row of vt, a multiple of 32
};
__host__ __device__ constexpr int PlaceIn32(int i) { return i / 2 % 4 * 8 + i / 8 * 2 + i % 2; }

// What a lane needs of a block of keys, loaded ahead of its use. In one part; three would not fit into registers.
template <int kS>
struct KeyBlock {
  uint4 k[kS == 1 ? 4 : 1], v[kS == 1 ? 4 : 1];
  __device__ __forceinline__ static uint4 K(const HeadKeys<kS>& keys, int block, int tile, int part) {
    return LoadWritten(reinterpret_cast<const uint4*>(
        keys.k + part * keys.k_part + static_cast<int64_t>(block * kKeyBlock + 8 * tile + Lane() / 4) * kHeadDim +
        8 * (Lane() % 4)));
  }
  __device__ __forceinline__ static uint4 V(const HeadKeys<kS>& keys, int block, int tile, int part) {
    return LoadWritten(reinterpret_cast<const uint4*>(keys.vt + part * keys.vt_part +
                                                      static_cast<int64_t>(8 * tile + Lane() / 4) * keys.capacity +
                                                      block * kKeyBlock + 8 * (Lane() % 4)));
  }
  __device__ __forceinline__ void Load(const HeadKeys<kS>& keys, int block, int blocks) {
    if constexpr (kS == 1) {
      if (block >= blocks) return;
#pragma unroll
      for (int t = 0; t < 4; ++t) k[t] = K(keys, block, t, 0);
#pragma unroll
      for (int t = 0; t < 4; ++t) v[t] = V(keys, block, t, 0);
    }
  }
};

struct Softmax {
  float top[2] = {kHidden, kHidden}, sum[2] = {0, 0};  // of rows g and g + 8; sums of this lane's keys alone
};

// o += softmax part of key block `block`, of which `ahead` was loaded. q: A operand of both k16 steps. bias(tile t,
// half) returns what to add to row g + 8 half, keys 32 block + 8 t + 2 c and the next: kHidden or less for one that is
// not seen.
template <int kS, typename Bias>
__device__ __forceinline__ void AttendBlock(const uint32_t (&q)[2][kS][4], const HeadKeys<kS>& keys, int block,
                                            const KeyBlock<kS>& ahead, const Bias& bias, Softmax* softmax,
                                            float (&o)[4][4]) {
  float s[4][4] = {};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    uint4 k[kS];
#pragma unroll
    for (int part = 0; part < kS; ++part) {
      k[part] = kS == 1 ? ahead.k[t % (kS == 1 ? 4 : 1)] : KeyBlock<kS>::K(keys, block, t, part);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t b0[kS], b1[kS];
#pragma unroll
      for (int part = 0; part < kS; ++part) {
        b0[part] = half == 0 ? k[part].x : k[part].z;
        b1[part] = half == 0 ? k[part].y : k[part].w;
      }
      MmaParts<kS>(s[t], q[half], b0, b1);
    }
  }
  float top[2] = {softmax->top[0], softmax->top[1]};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 b = bias(t, half);
      s[t][2 * half] += b.x, s[t][2 * half + 1] += b.y;
      top[half] = fmaxf(top[half], fmaxf(s[t][2 * half], s[t][2 * half + 1]));
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
    const float scale = __expf(softmax->top[half] - top[half]);
    softmax->top[half] = top[half];
    softmax->sum[half] *= scale;
#pragma unroll
    for (int n = 0; n < 4; ++n) o[n][2 * half] *= scale, o[n][2 * half + 1] *= scale;
  }
#pragma unroll
  for (int t = 0; t < 4; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[t][i] = __expf(s[t][i] - top[i / 2]);
      softmax->sum[i / 2] += s[t][i];
    }
  }
  uint32_t p[2][kS][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows g, g + 8 of tile 2 half, then of tile 2 half + 1
      uint32_t parts[kS];
      const float* pair = s[2 * half + i / 2] + i % 2 * 2;
      Split<kS>(pair[0], pair[1], parts);
#pragma unroll
      for (int part = 0; part < kS; ++part) p[half][part][i] = parts[part];
    }
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    uint4 v[kS];
#pragma unroll
    for (int part = 0; part < kS; ++part) {
      v[part] = kS == 1 ? ahead.v[n % (kS == 1 ? 4 : 1)] : KeyBlock<kS>::V(keys, block, n, part);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t b0[kS], b1[kS];
#pragma unroll
      for (int part = 0; part < kS; ++part) {
        b0[part] = half == 0 ? v[part].x : v[part].z;
        b1[part] = half == 0 ? v[part].y : v[part].w;
      }
      MmaParts<kS>(o[n], p[half], b0, b1);
    }
  }
}

// Parts of one softmax, computed by different warps: [parts][16 rows][kPartStride] fp32: 32 sums of values, top, sum.
constexpr int kPartStride = kHeadDim + 2;
constexpr int kPartFloats = 16 * kPartStride;

__device__ __forceinline__ void StorePart(const Softmax& softmax, const float (&o)[4][4], float* part) {
  const int g = Lane() / 4, c = Lane() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = softmax.sum[half];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    float* row = part + (g + 8 * half) * kPartStride;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      *reinterpret_cast<float2*>(row + 8 * n + 2 * c) = make_float2(o[n][2 * half], o[n][2 * half + 1]);
    }
    if (c == 0) *reinterpret_cast<float2*>(row + kHeadDim) = make_float2(softmax.top[half], sum);
  }
}

// Dimensions 2 pair, 2 pair + 1 of a row over all its parts, `step` floats apart. Without any key: zero.
__device__ __forceinline__ float2 MergeParts(const float* row, int parts, int step, int pair) {
  float top = kHidden;
#pragma unroll 1
  for (int i = 0; i < parts; ++i) top = fmaxf(top, row[i * step + kHeadDim]);
  float sum = 0, x = 0, y = 0;
#pragma unroll 1
  for (int i = 0; i < parts; ++i) {
    const float scale = __expf(row[i * step + kHeadDim] - top);
    sum += scale * row[i * step + kHeadDim + 1];
    const float2 o = *reinterpret_cast<const float2*>(row + i * step + 2 * pair);
    x += scale * o.x;
    y += scale * o.y;
  }
  const float share = sum > 0 ? __fdividef(1.0f, sum) : 0.0f;
  return make_float2(x * share, y * share);
}

// The accumulators of a 16 x 32 product as A operands of two k16 steps.
template <int kS>
__device__ __forceinline__ void AsQueries(const float (&acc)[4][4], uint32_t (&q)[2][kS][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t parts[kS];
      const float* pair = acc[2 * half + i / 2] + i % 2 * 2;
      Split<kS>(pair[0], pair[1], parts);
#pragma unroll
      for (int part = 0; part < kS; ++part) q[half][part][i] = parts[part];
    }
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_ATTEND_CUH_
