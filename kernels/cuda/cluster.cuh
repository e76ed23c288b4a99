// Instructions for blocks of a cluster, which reach each other's shared memory.
#ifndef BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_
#define BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster arrive and wait. Orders initialised barriers (FenceBarrierInit), no other
// memory.
__device__ __forceinline__ void ClusterArrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The address of block `rank`'s counterpart of a place in shared memory.
__device__ __forceinline__ uint32_t InBlock(uint32_t shared_address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address), "r"(rank));
  return there;
}
// Stores to the same place in block `rank`, where eight bytes count towards `full`.
__device__ __forceinline__ void SendPair(float2 pair, uint32_t to, BarrierAt full, uint32_t rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(InBlock(to, rank)),
      "f"(pair.x), "f"(pair.y), "r"(InBlock(full.address, rank))
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

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_CLUSTER_CUH_
