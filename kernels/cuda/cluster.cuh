// Instructions for blocks of a cluster, which reach each other's shared memory.
#ifndef BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_
#define BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

// All threads of all blocks of the cluster arrive and wait.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void ClusterArrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The address of block `rank`'s counterpart of a place in shared memory.
__device__ __forceinline__ uint32_t InBlock(uint32_t shared_address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address), "r"(rank));
  return there;
}
// Copies `bytes` to the same place in block `rank`, where they count towards `full`.
__device__ __forceinline__ void SendBytes(const void* at, uint32_t bytes, BarrierAt full, uint32_t to, uint32_t rank) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          InBlock(to, rank)),
      "r"(SharedAddress(at)), "r"(bytes), "r"(InBlock(full.address, rank))
      : "memory");
}
__device__ __forceinline__ void ArriveInBlock(BarrierAt barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(InBlock(barrier.address, rank))
               : "memory");
}
// BarrierAt::Wait for what other blocks' arrivals publish.
__device__ __forceinline__ void WaitForCluster(BarrierAt barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier.address),
      "r"(parity)
      : "memory");
}

// LoadBox3 to the same place of all blocks of the cluster in `blocks`, a bit each, and counted there.
__device__ __forceinline__ void LoadBox3(const CUtensorMap* map, BarrierAt full, void* to, int c0, int c1, int c2,
                                         uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(SharedAddress(to)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(full.address), "r"(c0), "r"(c1), "r"(c2), "h"(blocks)
      : "memory");
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_
