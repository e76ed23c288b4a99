// The attention kernel. A block is one producer warp, which feeds Q, K and V to shared memory with the tensor copy
// engine, and two consumer warpgroups of 64 query rows each. While one warpgroup's products Q K(j+1) and P(j) V(j) run
// on the tensor cores, the other does its softmax: they hand each other the tensor cores with named barriers
// (ping-pong).
#ifndef BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_
#define BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/consumer.cuh"
#include "kernels/cuda/producer.cuh"
#include "kernels/cuda/shared.cuh"

namespace backstory::cuda {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    AttendKernel(const __grid_constant__ AttendArgs args, const __grid_constant__ AttendMaps maps) {
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<AttendShared<Shape>*>(raw);
  if (threadIdx.x == 0) {
    const AttendBarriers<Shape> barriers(shared);
    PrefetchTensorMap(&maps.q);
    PrefetchTensorMap(&maps.k);
    PrefetchTensorMap(&maps.v);
    for (int i = 0; i < Shape::kQStages; ++i) {
      barriers.QFull(i).Init(1);
      barriers.QEmpty(i).Init(Shape::kConsumerWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      barriers.KFull(i).Init(1);
      barriers.VFull(i).Init(1);
      barriers.KEmpty(i).Init(Shape::kConsumerWarps);
      barriers.VEmpty(i).Init(Shape::kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ShrinkRegisters<40>();
    if (threadIdx.x == 0) {
      if (args.overlap_previous) WaitForPreviousKernel();
      Produce<Shape>(args, maps, shared);
    }
  } else {
    GrowRegisters<232>();
    if (args.overlap_previous) WaitForPreviousKernel();
    Consumer<Shape>(args, shared).Run();
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_
