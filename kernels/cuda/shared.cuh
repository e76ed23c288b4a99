// A block's shared memory and how its warps hand it to each other.
#ifndef BACKSTORY_KERNELS_CUDA_SHARED_CUH_
#define BACKSTORY_KERNELS_CUDA_SHARED_CUH_

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

template <int kDh, int kStageCount, int kQCount>
struct AttendShape {
  static constexpr int kD = kDh, kStages = kStageCount, kQStages = kQCount;
  static constexpr int kGroups = 2;  // consumer warpgroups
  static constexpr int kTileRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kConsumerWarps = 4 * kGroups;
  static constexpr int kQBytes = kTileRows * kD * 2;
  static constexpr int kPageBytes = kPageRows * kD * 2;
  // An item is in use until its result is written, its Q only until the last product with K.
  static constexpr int kItems = kQStages + 1;
};

template <class Shape>
struct AttendShared {
  alignas(1024) unsigned char q[Shape::kQStages][Shape::kQBytes];    // [halves][tile rows][64], swizzled
  alignas(1024) unsigned char k[Shape::kStages][Shape::kPageBytes];  // [halves][128][64], swizzled; v too
  alignas(1024) unsigned char v[Shape::kStages][Shape::kPageBytes];
  alignas(128) float total[Shape::kConsumerWarps][PartLayout<Shape::kD>::kOutput * 128];  // of an item's splits
  float bias[Shape::kStages][2][Shape::kTileRows];  // of the page in k: above, below the boundary
  int4 notes[Shape::kStages];  // of the page in k: boundary, valid rows, whether there is a bias above and below
  WorkItem item[Shape::kItems];
  uint64_t q_full[Shape::kQStages], q_empty[Shape::kQStages];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
};

// The barriers of AttendShared by address: its base is worked out once, not at every use.
template <class Shape>
struct AttendBarriers {
  using Shared = AttendShared<Shape>;
  uint32_t base;
  __device__ explicit AttendBarriers(const Shared& shared) : base(SharedAddress(&shared)) {
    asm volatile("" : "+r"(base));
  }
  __device__ __forceinline__ BarrierAt At(size_t offset, int i) const {
    return {base + static_cast<uint32_t>(offset) + 8 * static_cast<uint32_t>(i)};
  }
  __device__ __forceinline__ BarrierAt QFull(int i) const { return At(offsetof(Shared, q_full), i); }
  __device__ __forceinline__ BarrierAt QEmpty(int i) const { return At(offsetof(Shared, q_empty), i); }
  __device__ __forceinline__ BarrierAt KFull(int i) const { return At(offsetof(Shared, k_full), i); }
  __device__ __forceinline__ BarrierAt KEmpty(int i) const { return At(offsetof(Shared, k_empty), i); }
  __device__ __forceinline__ BarrierAt VFull(int i) const { return At(offsetof(Shared, v_full), i); }
  __device__ __forceinline__ BarrierAt VEmpty(int i) const { return At(offsetof(Shared, v_empty), i); }
};

// Which stage of a ring, and the parity of its current phase.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

struct AttendMaps {
  CUtensorMap q, k, v;
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_SHARED_CUH_
