// The projections before attention: a block computes 128 output features of 64 rows of one channel, with all of both
// operands in shared memory at once. Features are the rows of the product, so that few candidates waste nothing.
#ifndef BACKSTORY_KERNELS_CUDA_PROJECT_CUH_
#define BACKSTORY_KERNELS_CUDA_PROJECT_CUH_

#include "kernels/cuda/layer.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace backstory::cuda {

struct ProjectMaps {
  CUtensorMap z, w, w_bias;
};

struct ProjectTile {
  static constexpr int kIn = 512, kFeatures = 128, kRows = 64;
  static constexpr int kSteps = kIn / 64;  // of the inner dimension, 64 columns each
  static constexpr int kThreads = 288;     // two warpgroups of 64 features, a warp that loads
  static constexpr int kWeightBytes = kFeatures * 128, kRowBytes = kRows * 128;
  static constexpr int kPitch = kFeatures * 2 + 16;  // of staged output; no bank twice
};

struct ProjectShared {
  using Tile = ProjectTile;
  alignas(1024) unsigned char w[Tile::kSteps][Tile::kWeightBytes];  // [features][64], swizzled
  alignas(1024) unsigned char z[Tile::kSteps][Tile::kRowBytes];     // [rows][64], swizzled
  alignas(16) unsigned char out[Tile::kRows * Tile::kPitch];
  uint64_t full[Tile::kSteps];
};

__device__ __forceinline__ void ProjectLoad(const ProjectArgs& a, const ProjectMaps& maps, bool is_bias, int feature,
                                            ProjectShared& shared) {
  using Tile = ProjectTile;
  const int row = blockIdx.y * Tile::kRows, channel = blockIdx.z;
  for (int i = 0; i < Tile::kSteps; ++i) {
    const BarrierAt full{SharedAddress(&shared.full[i])};
    full.ArriveExpecting(Tile::kWeightBytes + Tile::kRowBytes);
    LoadBox3(is_bias ? &maps.w_bias : &maps.w, full, shared.w[i], 64 * i, feature, channel);
  }
  if (a.overlap_previous) {
    WaitForPreviousKernel();
    LetNextKernelStart();
  }
  for (int i = 0; i < Tile::kSteps; ++i) {
    LoadBox3(&maps.z, BarrierAt{SharedAddress(&shared.full[i])}, shared.z[i], 64 * i, row, channel);
  }
}

// d[4 n + 2 r + e] is feature l / 4 + 8 r of the warp's 16, row 8 n + 2 (l % 4) + e of the tile.
__device__ __forceinline__ void ProjectMultiply(const ProjectShared& shared, int group, float (&d)[32]) {
  using Tile = ProjectTile;
#pragma unroll
  for (int i = 0; i < Tile::kSteps; ++i) {
    BarrierAt{SharedAddress(&shared.full[i])}.Wait(0);
    Pin(d);
    WgmmaFence();
    const uint32_t w = MatrixWord(SharedAddress(shared.w[i]) + group * 64 * 128, 16);
    const uint32_t z = MatrixWord(SharedAddress(shared.z[i]), 16);
#pragma unroll
    for (int x = 0; x < 4; ++x) Wgmma64(d, Descriptor(w + 2 * x), Descriptor(z + 2 * x), i + x != 0);
  }
  WgmmaCommit();
  WgmmaWait<0>();
  Pin(d);
}

__global__ void __launch_bounds__(ProjectTile::kThreads, 1)
    ProjectKernel(const __grid_constant__ ProjectArgs a, const __grid_constant__ ProjectMaps maps) {
  using Tile = ProjectTile;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<ProjectShared*>(raw);
  const int tiles = a.out / Tile::kFeatures;
  const bool is_bias = static_cast<int>(blockIdx.x) >= tiles;
  const int first = (is_bias ? blockIdx.x - tiles : blockIdx.x) * Tile::kFeatures;
  if (threadIdx.x == 0) {
    for (uint64_t& full : shared.full) BarrierAt{SharedAddress(&full)}.Init(1);
    FenceBarrierInit();
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 8) {
    if (lane == 0) ProjectLoad(a, maps, is_bias, first, shared);
    return;
  }
  float d[32];
  ProjectMultiply(shared, warp / 4, d);
  const int row = blockIdx.y * Tile::kRows, channel = blockIdx.z;
  if (is_bias) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int feature = first + 16 * warp + lane / 4 + 8 * r;
      float* const to = a.bias + (int64_t{channel} * a.bias_out + feature) * a.rows + row + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        if (feature < a.bias_out && row + lane % 4 * 2 + 8 * n < a.rows) {
          *reinterpret_cast<float2*>(to + 8 * n) = make_float2(d[4 * n + 2 * r], d[4 * n + 2 * r + 1]);
        }
      }
    }
    return;
  }
  float b[2] = {0, 0};
  if (a.b != nullptr) {
    const auto* of_tile = static_cast<const __nv_bfloat16*>(a.b) + channel * a.out + first + 16 * warp + lane / 4;
    b[0] = __bfloat162float(of_tile[0]), b[1] = __bfloat162float(of_tile[8]);
  }
  const uint32_t out = SharedAddress(shared.out);
#pragma unroll
  for (int n = 0; n < 8; n += 2) {
    const float* const x = &d[4 * n];
    const uint32_t m[4] = {PackBf16(x[0] + b[0], x[1] + b[0]), PackBf16(x[2] + b[1], x[3] + b[1]),
                           PackBf16(x[4] + b[0], x[5] + b[0]), PackBf16(x[6] + b[1], x[7] + b[1])};
    StoreTransposed(out + (8 * (n + lane / 16) + lane % 8) * Tile::kPitch + (16 * warp + lane / 8 % 2 * 8) * 2, m);
  }
  NamedSync(1, 256);
  auto* const y = static_cast<__nv_bfloat16*>(a.y) + (int64_t{channel} * a.rows + row) * a.out + first;
  for (int i = threadIdx.x; i < Tile::kRows * 16 && row + i / 16 < a.rows; i += 256) {
    *reinterpret_cast<uint4*>(y + int64_t{i / 16} * a.out + i % 16 * 8) =
        *reinterpret_cast<const uint4*>(shared.out + i / 16 * Tile::kPitch + i % 16 * 16);
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_PROJECT_CUH_
