// Products of rows with weights for the kernels around attention: a block computes 128 output features of kRows rows,
// 64 a warpgroup, with a ring of 64-column pieces of both operands that one thread keeps full. Features are the rows of
// the product, so that few candidates waste nothing. What becomes of the sums: linear_end.cuh.
#ifndef BACKSTORY_KERNELS_CUDA_LINEAR_CUH_
#define BACKSTORY_KERNELS_CUDA_LINEAR_CUH_

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace backstory::cuda {

enum class LinearEnd {
  kStore,  // rounded
  kNorm,   // added to a residual and normalised
  kMix,    // and mixed with the other channel
  kHead,   // reduced to logits
};

struct LinearMaps {
  CUtensorMap rows, w, w_second, x, y;
};

// What a launch computes. Pointers as in layer.h, [channels] outermost.
struct LinearArgs {
  int rows = 0, channels = 0;
  int in = 0, out = 0;            // widths; `in` a multiple of 64
  int second_out = 0;             // features of a second matrix with the same rows, behind the first's blocks
  bool overlap_previous = false;  // the launch's
  // What the sums start from, beside the residual x.
  const __nv_bfloat16* b = nullptr;  // [out]
  const float* b_float = nullptr;    // [out]
  // What becomes of them, beside x and y.
  bool relu = false;
  float* second = nullptr;                        // fp32 [second_out][rows]
  const float *gain = nullptr, *shift = nullptr;  // [out]
  bool write_x = false;
  const float *gate_w = nullptr, *gate_b = nullptr;  // [gate][out]; [gate] of all channels
  const float *head_w = nullptr, *head_b = nullptr;  // [tasks][out], [tasks]
  float* logits = nullptr;                           // [rows][tasks]
  int tasks = 0;
};

template <int kRowCount, int kStageCount, LinearEnd kEndOfAll>
struct LinearTile {
  static constexpr int kRows = kRowCount, kStages = kStageCount;
  static constexpr LinearEnd kEnd = kEndOfAll;
  // Twin: the warpgroups have a channel each and the same 64 features; else both have the same channel.
  static constexpr bool kTwin = kEnd == LinearEnd::kMix, kNorms = kTwin || kEnd == LinearEnd::kNorm;
  static constexpr bool kCluster = kEnd != LinearEnd::kStore, kSums = kTwin || kEnd == LinearEnd::kHead;
  static constexpr int kFeatures = kTwin ? 64 : 128;                         // of a channel
  static constexpr int kUnits = kTwin ? 2 : 1, kUnitThreads = 256 / kUnits;  // threads that share a channel
  static constexpr int kThreads = 288;                                       // two warpgroups, a warp that loads
  static constexpr int kGroupBytes = 64 * 128, kRowBytes = kRows * 128;      // of a piece
  static constexpr int kStageBytes = 2 * kGroupBytes + kUnits * kRowBytes;
  static constexpr int kXBytes = kNorms ? 4 * kRowBytes : 0;                                    // of the residual
  static constexpr int kNormBlocks = kNorms ? 512 / kFeatures : 1, kSumBlocks = kSums ? 8 : 1;  // at most, of a cluster
};

template <class Tile>
struct LinearShared {
  // A stage: [128 features][64] of weights, [rows][64] of each unit, swizzled. When all products are done, room for
  // what they became.
  alignas(1024) unsigned char ring[Tile::kStages][Tile::kStageBytes];
  alignas(1024) unsigned char x[Tile::kNorms ? Tile::kXBytes : 16];  // [units][features / 32][rows][32] fp32, swizzled
  alignas(16) float2 of_warp[8][Tile::kCluster ? Tile::kRows : 1];
  alignas(16) float2 of_row[Tile::kUnits][Tile::kNorms ? Tile::kRows : 1];
  alignas(
      16) float2 moments[Tile::kUnits][Tile::kNormBlocks][Tile::kNorms ? Tile::kRows : 1];  // from the cluster's blocks
  alignas(16) float2 sums[Tile::kSumBlocks][Tile::kSums ? Tile::kRows : 1];  // of gates or tasks, as well
  uint64_t full[Tile::kStages], empty[Tile::kStages], x_full, moments_full[Tile::kUnits], sums_full;
};

// Two blocks to a multiprocessor where they fit: one finishes its rows while the other multiplies.
template <class Tile>
constexpr int LinearBlocksPerSm() {
  return sizeof(LinearShared<Tile>) <= 113 * 1024 ? 2 : 1;
}

__device__ __forceinline__ BarrierAt At(const uint64_t& barrier) { return BarrierAt{SharedAddress(&barrier)}; }
template <class Tile>
__device__ __forceinline__ void LinearInit(LinearShared<Tile>& s) {
  for (int i = 0; i < Tile::kStages; ++i) {
    At(s.full[i]).Init(1);
    At(s.empty[i]).Init(8);
  }
  At(s.x_full).Init(1);
  for (uint64_t& full : s.moments_full) At(full).Init(1);
  At(s.sums_full).Init(1);
  FenceBarrierInit();
  const uint32_t bytes = gridDim.x * Tile::kRows * sizeof(float2);
  if (Tile::kNorms) {
    for (uint64_t& full : s.moments_full) At(full).ArriveExpecting(bytes);
  }
  if (Tile::kSums) At(s.sums_full).ArriveExpecting(bytes);
}

// One thread: weights as soon as there is room, rows once the previous kernel is over.
template <class Tile>
__device__ __forceinline__ void LinearLoad(const LinearArgs& a, const LinearMaps& maps, LinearShared<Tile>& s) {
  const int blocks = a.out / Tile::kFeatures, at = blockIdx.x, row = blockIdx.y * Tile::kRows, steps = a.in / 64;
  const bool second = at >= blocks;
  const CUtensorMap* const w = second ? &maps.w_second : &maps.w;
  const int feature = (second ? at - blocks : at) * Tile::kFeatures;
  const auto weights = [&](int i, int stage) {
    const BarrierAt full = At(s.full[stage]);
    full.ArriveExpecting(Tile::kStageBytes);
    if (Tile::kTwin) {
      LoadBox3(w, full, s.ring[stage], 64 * i, feature, 0);
      LoadBox3(w, full, s.ring[stage] + Tile::kGroupBytes, 64 * i, feature, 1);
    } else {
      LoadBox3(w, full, s.ring[stage], 64 * i, feature, blockIdx.z);
    }
  };
  const auto rows = [&](int i, int stage) {
    const BarrierAt full = At(s.full[stage]);
    unsigned char* const to = s.ring[stage] + 2 * Tile::kGroupBytes;
    LoadBox3(&maps.rows, full, to, 64 * i, row, Tile::kTwin ? 0 : blockIdx.z);
    if (Tile::kTwin) LoadBox3(&maps.rows, full, to + Tile::kRowBytes, 64 * i, row, 1);
  };
  PrefetchTensorMap(&maps.rows);
  const int early = min(steps, Tile::kStages);
#pragma unroll 1
  for (int i = 0; i < early; ++i) weights(i, i);
  if (Tile::kNorms) {
    At(s.x_full).ArriveExpecting(Tile::kXBytes);
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const int box = i % (Tile::kFeatures / 32), unit = i / (Tile::kFeatures / 32);
      LoadBox3(&maps.x, At(s.x_full), s.x + i * Tile::kRowBytes, feature + 32 * box, row,
               Tile::kTwin ? unit : blockIdx.z);
    }
  }
  WaitForPreviousKernel();
  LetNextKernelStart();
#pragma unroll 1
  for (int i = 0; i < early; ++i) rows(i, i);
  if (Tile::kEnd != LinearEnd::kHead) PrefetchTensorMap(&maps.y);
  int stage = 0;
  uint32_t phase = 0;
#pragma unroll 1
  for (int i = early; i < steps; ++i) {
    At(s.empty[stage]).Wait(phase);
    weights(i, stage);
    rows(i, stage);
    if (++stage == Tile::kStages) stage = 0, phase ^= 1;
  }
}

__device__ __forceinline__ void WgmmaRows(float (&d)[16], uint64_t w, uint64_t rows) { Wgmma32(d, w, rows, 1); }
__device__ __forceinline__ void WgmmaRows(float (&d)[32], uint64_t w, uint64_t rows) { Wgmma64(d, w, rows, 1); }
__device__ __forceinline__ void WgmmaRows(float (&d)[64], uint64_t w, uint64_t rows) { Wgmma128(d, w, rows, 1); }

// d += the warpgroup's features times the rows. d[4 n + 2 r + e] is feature l / 4 + 8 r of the warp's 16, row
// 8 n + 2 (l % 4) + e of the tile, for lane l. While one warpgroup waits for its products, the other's run.
template <class Tile>
__device__ __forceinline__ void LinearMultiply(LinearShared<Tile>& s, int group, int steps,
                                               float (&d)[Tile::kRows / 2]) {
  const uint32_t first = SharedAddress(s.ring), w_at = MatrixWord(first + group * Tile::kGroupBytes, 16);
  const uint32_t r_at = MatrixWord(first + 2 * Tile::kGroupBytes + (Tile::kTwin ? group * Tile::kRowBytes : 0), 16);
  const auto issue = [&](int stage, uint32_t phase) {
    At(s.full[stage]).Wait(phase);
    const uint32_t w = w_at + stage * (Tile::kStageBytes / 16), r = r_at + stage * (Tile::kStageBytes / 16);
    WgmmaFence();
#pragma unroll
    for (int x = 0; x < 4; ++x) WgmmaRows(d, Descriptor(w + 2 * x), Descriptor(r + 2 * x));
    WgmmaCommit();
  };
  const auto release = [&](int stage) {
    if (threadIdx.x % 32 == 0) At(s.empty[stage]).Arrive();
  };
  int left = steps;
  uint32_t phase = 0;
#pragma unroll 1
  for (; left >= Tile::kStages; left -= Tile::kStages, phase ^= 1) {  // the ring once around without a pause
    Pin(d);
#pragma unroll
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      issue(stage, phase);
      if (stage == 0) continue;
      WgmmaWait<1>();
      release(stage - 1);
    }
    WgmmaWait<0>();
    Pin(d);
    release(Tile::kStages - 1);
  }
#pragma unroll 1
  for (int stage = 0; stage < left; ++stage) {
    Pin(d);
    issue(stage, phase);
    WgmmaWait<0>();
    Pin(d);
    release(stage);
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_LINEAR_CUH_
