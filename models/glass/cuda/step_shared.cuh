// Where things stand in a decoder block's shared memory, and how blocks of a cluster hand rows to each other. Private to
// step.cu.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_STEP_SHARED_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_STEP_SHARED_CUH_

#include "kernels/cuda/cluster.cuh"
#include "models/glass/cuda/attend.cuh"
#include "models/glass/cuda/ffn.cuh"
#include "models/glass/cuda/kernels.h"
#include "models/glass/cuda/tile.cuh"

namespace backstory::glass::cuda {

// kM tiles of 16 rows. Offsets in bytes; `heads` and `set_capacity` are the model's.
template <int kS, int kD, int kM>
struct StepShared {
  static constexpr int kRows = 16 * kM;
  static constexpr int kXStride = kD + 4;
  static constexpr int kQkvStride = 3 * kHeadDim + 4;
  static constexpr int kPartBytes = kWarps * kPartFloats * 4;
  static constexpr int kSlabBytes =
      static_cast<int>(FfnSlabs<kD>::kBytes) > kPartBytes ? static_cast<int>(FfnSlabs<kD>::kBytes) : kPartBytes;
  static constexpr int kX = 0;                                          // [kRows][kXStride] fp32: the same in all blocks
  static constexpr int kZ = kX + kRows * kXStride * 4;                  // planes, width kD
  static constexpr int kNear = kZ + PlaneBytes(kS, kRows, kD);          // planes: memory branch, for a gate that reads it
  static constexpr int kFar = kNear + PlaneBytes(kS, kRows, kD);        // planes: retrieved branch
  static constexpr int kInbox = kFar + PlaneBytes(kS, kRows, kD);       // [cluster][kRows / cluster][kD] fp32
  static constexpr int kQkv = kInbox + kRows * kD * 4;                  // [kRows][kQkvStride] fp32: of one head
  static constexpr int kSlabs = kQkv + kRows * kQkvStride * 4;          // shares of the FFN, parts of softmaxes
  static constexpr int kRowInfo = kSlabs + kSlabBytes;                  // [kRows] Step
  static constexpr int kHeads = kRowInfo + kRows * 16;                  // three sets of planes, width heads * 32
  __host__ __device__ static int HeadsBytes(int heads) { return PlaneBytes(kS, kRows, heads * kHeadDim); }
  __host__ __device__ static int Counts(int heads) { return kHeads + 3 * HeadsBytes(heads); }  // [kRows][set_capacity] u16
  static size_t Bytes(const Model& m) {
    return static_cast<size_t>(Counts(m.heads)) + static_cast<size_t>(kRows) * static_cast<size_t>(m.set_capacity) * 2;
  }
};

__device__ __forceinline__ void ClusterSync() {
  backstory::cuda::ClusterArrive();
  backstory::cuda::ClusterWait();
}

__device__ __forceinline__ void StoreRemote(uint32_t address, uint4 v) {
  asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void StoreRemote(uint32_t address, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

// Columns of one head of `planes`, in which this block has them, to the same place in all other blocks.
template <int kS>
__device__ __forceinline__ void SendHead(const Planes& planes, int head, uint32_t rank, uint32_t cluster) {
  const int chunks = kS * planes.rows * (kHeadDim / 8);
  for (int i = threadIdx.x; i < chunks * static_cast<int>(cluster - 1); i += kThreads) {
    const int chunk = i % chunks, row = chunk / 4 % planes.rows, part = chunk / 4 / planes.rows;
    const uint32_t to = (rank + 1 + i / chunks) % cluster;
    const __nv_bfloat16* at = planes.At(part, row, head * kHeadDim + chunk % 4 * 8);
    StoreRemote(backstory::cuda::InBlock(SharedAddress(at), to), *reinterpret_cast<const uint4*>(at));
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_STEP_SHARED_CUH_
