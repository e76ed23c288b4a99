// What the blocks that finish a layer (finish.cuh) keep in shared memory, and what fills it.
#ifndef BACKSTORY_KERNELS_CUDA_FINISH_SHARED_CUH_
#define BACKSTORY_KERNELS_CUDA_FINISH_SHARED_CUH_

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

struct FinishMaps {
  CUtensorMap attended, w_o, w_1, w_2;
};

struct FinishTile {
  static constexpr int kD = 512, kWide = 512, kFfn = 1024;
  static constexpr int kSlices = 8;   // blocks of a channel
  static constexpr int kRows = 64;    // of a cluster
  static constexpr int kGroupRows = 32;
  static constexpr int kThreads = 288;  // two warpgroups, a warp that loads
  static constexpr int kTileBytes = 64 * 128;        // of 64 rows or features by 64 columns
  static constexpr int kGroupBytes = kTileBytes / 2;  // of a warpgroup's rows
  static constexpr int kStages = 10;                 // tiles of weights on their way
  static constexpr int kWeightTiles = kWide / 64 + 2 * kD / 64 + kFfn / 64;
};

struct FinishShared {
  using Tile = FinishTile;
  // What is multiplied, 64 columns a piece, swizzled: the attended values in the first half, then y = LN1 in the second;
  // when both are done with, all of the FFN's inner layer; at last, the other channel's rows.
  alignas(1024) unsigned char act[Tile::kFfn / 64][Tile::kTileBytes];
  alignas(1024) unsigned char weights[Tile::kStages][Tile::kTileBytes];
  alignas(16) float2 moments[2][Tile::kSlices][Tile::kRows];  // of a block's features: mean, sum of squares about it
  alignas(16) float2 gates[2 * Tile::kSlices][Tile::kRows];   // a block's share of both gates' arguments
  alignas(16) float2 of_warp[8][Tile::kGroupRows];
  alignas(16) float2 of_row[2][Tile::kGroupRows];
  uint64_t weights_full[Tile::kStages], weights_empty[Tile::kStages];
  uint64_t attended_full;
  uint64_t y_full[2], inner_free[2], inner_full[2], moments_full[2][2], gates_full[2], other_full[2];  // by group
};
static_assert(sizeof(FinishShared) <= 232448);

__device__ __forceinline__ BarrierAt At(const uint64_t& barrier) { return BarrierAt{SharedAddress(&barrier)}; }

// Before the cluster meets: every barrier, with what will be counted on it from elsewhere. All are used once.
__device__ __forceinline__ void FinishInit(FinishShared& s, int blocks) {
  using Tile = FinishTile;
  for (int i = 0; i < Tile::kStages; ++i) {
    At(s.weights_full[i]).Init(1);
    At(s.weights_empty[i]).Init(8);
  }
  const auto expect = [](uint64_t& barrier, uint32_t bytes) {
    At(barrier).Init(1);
    FenceBarrierInit();
    At(barrier).ArriveExpecting(bytes);
  };
  expect(s.attended_full, Tile::kWide / 64 * Tile::kTileBytes);
  for (int g = 0; g < 2; ++g) {
    expect(s.y_full[g], (Tile::kSlices - 1) * Tile::kGroupBytes);
    At(s.inner_free[g]).Init(Tile::kSlices);
    expect(s.inner_full[g], (Tile::kSlices - 1) * 2 * Tile::kGroupBytes);
    for (int i = 0; i < 2; ++i) expect(s.moments_full[i][g], (Tile::kSlices - 1) * Tile::kGroupRows * sizeof(float2));
    expect(s.gates_full[g], (blocks - 1) * Tile::kGroupRows * sizeof(float2));
    expect(s.other_full[g], 2 * Tile::kGroupBytes);
  }
  FenceBarrierInit();
}

// One thread: weights in the order of use, the attended rows as soon as the previous kernel is over.
__device__ __forceinline__ void FinishLoad(const FinishArgs& a, const FinishMaps& maps, int channel, int slice, int row,
                                           FinishShared& s) {
  using Tile = FinishTile;
  for (int t = 0; t < Tile::kWeightTiles; ++t) {
    if (t == Tile::kStages) {
      ClusterWait();  // the other blocks' barriers exist
      if (a.overlap_previous) WaitForPreviousKernel();
      LoadBox3(&maps.attended, At(s.attended_full), s.act[slice], 64 * slice, row, channel,
               static_cast<uint16_t>(0xff << (Tile::kSlices * channel)));
    }
    const int stage = t % Tile::kStages, round = t / Tile::kStages;
    if (round > 0) At(s.weights_empty[stage]).Wait((round - 1) % 2);
    const BarrierAt full = At(s.weights_full[stage]);
    full.ArriveExpecting(Tile::kTileBytes);
    constexpr int kTo1 = Tile::kWide / 64, kTo2 = kTo1 + 2 * Tile::kD / 64;
    if (t < kTo1) {
      LoadBox3(&maps.w_o, full, s.weights[stage], 64 * t, 64 * slice, channel);
    } else if (t < kTo2) {
      LoadBox3(&maps.w_1, full, s.weights[stage], (t - kTo1) / 2 * 64, 128 * slice + (t - kTo1) % 2 * 64, channel);
    } else {
      LoadBox3(&maps.w_2, full, s.weights[stage], 64 * (t - kTo2), 64 * slice, channel);
    }
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_FINISH_SHARED_CUH_
