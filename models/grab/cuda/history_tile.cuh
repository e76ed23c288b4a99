// A block of history attention: its shared memory, its barriers, and what it works on.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TILE_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TILE_CUH_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {

template <int kDh, int kKStageCount, int kVStageCount>
struct HistoryShape {
  static constexpr int kD = kDh, kKStages = kKStageCount, kVStages = kVStageCount;
  static constexpr int kTileRows = 128, kPageRows = cuda::kPageRows;
  static constexpr int kThreads = 3 * 128;  // a producer and two consumer warpgroups
  static constexpr int kConsumerWarps = 8;
  static constexpr int kQBytes = kTileRows * kD * 2, kPageBytes = kPageRows * kD * 2;
};

// Followed by the time biases of the tile's rows (history_bias.cuh).
template <class Shape>
struct HistoryShared {
  alignas(1024) unsigned char q[Shape::kQBytes];                      // [halves][tile rows][64], swizzled
  alignas(1024) unsigned char k[Shape::kKStages][Shape::kPageBytes];  // [halves][128][64], swizzled; v too
  alignas(1024) unsigned char v[Shape::kVStages][Shape::kPageBytes];
  uint64_t q_full, k_full[Shape::kKStages], k_empty[Shape::kKStages], v_full[Shape::kVStages], v_empty[Shape::kVStages];
};

template <class Shape>
struct HistoryBarriers {
  using Shared = HistoryShared<Shape>;
  uint32_t base;
  __device__ explicit HistoryBarriers(const Shared& shared) : base(cuda::SharedAddress(&shared)) {
    asm volatile("" : "+r"(base));
  }
  __device__ __forceinline__ cuda::BarrierAt At(size_t offset, int i) const {
    return {base + static_cast<uint32_t>(offset) + 8 * static_cast<uint32_t>(i)};
  }
  __device__ __forceinline__ cuda::BarrierAt QFull() const { return At(offsetof(Shared, q_full), 0); }
  __device__ __forceinline__ cuda::BarrierAt KFull(int i) const { return At(offsetof(Shared, k_full), i); }
  __device__ __forceinline__ cuda::BarrierAt KEmpty(int i) const { return At(offsetof(Shared, k_empty), i); }
  __device__ __forceinline__ cuda::BarrierAt VFull(int i) const { return At(offsetof(Shared, v_full), i); }
  __device__ __forceinline__ cuda::BarrierAt VEmpty(int i) const { return At(offsetof(Shared, v_empty), i); }
};

// The query rows of a block and the pages of its split, of those that any of the rows sees.
struct HistoryTile {
  int channel, head;
  int row, rows;              // of the channel's chunk
  int page_newest;            // of all splits
  int page_last, page_begin;  // walked from the last one down
  int splits;                 // with pages

  __device__ HistoryTile(const CudaHistoryArgs& a, int tile_rows, int split) {
    channel = static_cast<int>(blockIdx.x) / a.heads;
    head = static_cast<int>(blockIdx.x) % a.heads;
    const CudaHistoryRows& c = a.channel[channel];
    const int tiles = (c.rows + tile_rows - 1) / tile_rows;
    row = (tiles - 1 - static_cast<int>(blockIdx.y)) * tile_rows;  // longest first
    rows = row < 0 ? 0 : min(tile_rows, c.rows - row);
    if (rows == 0) return;
    page_newest = (c.first + row + rows - 1) / cuda::kPageRows;
    page_begin = c.limits[row].oldest / cuda::kPageRows;  // later rows see no older keys
    const int pages = page_newest - page_begin + 1, of_split = (pages + a.splits - 1) / a.splits;
    splits = (pages + of_split - 1) / of_split;
    page_last = page_newest - split * of_split;
    page_begin = max(page_begin, page_last - of_split + 1);
    if (split >= splits) rows = 0;
  }

  // [tile rows][kD + 2] of a split: sums of weighted V, the reference and the sum of weights.
  __device__ float* Part(const CudaHistoryArgs& a, int split, int tile_rows, int d_h) const {
    return a.parts + ((int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * a.splits + split) * tile_rows * (d_h + 2);
  }
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TILE_CUH_
