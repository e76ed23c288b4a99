// A layer after attention. A cluster of eight blocks a channel computes 64 rows of all channels; block i of a channel has
// an eighth of every matrix's output features. What all of them need goes over the cluster's shared memory: activations in
// bf16, moments of norms, gates. Features are the rows of the products, so that few candidates waste nothing; a
// warpgroup has half of the rows, and from end to end nothing to do with the other.
#ifndef BACKSTORY_KERNELS_CUDA_FINISH_CUH_
#define BACKSTORY_KERNELS_CUDA_FINISH_CUH_

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/finish_group.cuh"
#include "kernels/cuda/finish_shared.cuh"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/ptx.cuh"

namespace backstory::cuda {

__global__ void __launch_bounds__(FinishTile::kThreads, 1)
    FinishKernel(const __grid_constant__ FinishArgs a, const __grid_constant__ FinishMaps maps) {
  using Tile = FinishTile;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<FinishShared*>(raw);
  const int blocks = a.channels * Tile::kSlices, rank = ClusterRank(), row = blockIdx.x / blocks * Tile::kRows;
  if (threadIdx.x == 0) FinishInit(shared, blocks);
  __syncthreads();
  ClusterArrive();
  const int group = threadIdx.x / 128;
  if (group == 2) {
    if (threadIdx.x % 32 == 0) {
      FinishLoad(a, maps, rank / Tile::kSlices, rank % Tile::kSlices, row, shared);
    } else {
      ClusterWait();
    }
  } else {
    ClusterWait();
    FinishGroup(a, rank / Tile::kSlices, rank % Tile::kSlices, row + Tile::kGroupRows * group, shared).Run();
  }
  ClusterArrive();  // no block leaves while others may still write to it
  ClusterWait();
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_FINISH_CUH_
