// Where things stand in a decoder block's shared memory, and how blocks of a cluster hand rows to each other. Private
// to step.cu.
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
  static constexpr bool kAhead = kS == 1;
  static constexpr int Max(int a, int b) { return a > b ? a : b; }
  static constexpr int kX = 0;                                     // [kRows][kXStride] fp32: the same in all blocks
  static constexpr int kZ = kX + kRows * kXStride * 4;             // planes, width kD
  static constexpr int kNear = kZ + PlaneBytes(kS, kRows, kD);     // planes: memory branch, for a gate that reads it
  static constexpr int kFar = kNear + PlaneBytes(kS, kRows, kD);   // planes: retrieved branch
  static constexpr int kInbox = kFar + PlaneBytes(kS, kRows, kD);  // [cluster][kRows / cluster][kD] fp32
  // One place for what a layer needs one after the other: a head's queries, keys and values [kRows][kQkvStride] fp32;
  // parts of softmaxes; the FFN's weights; shares of the FFN.
  static constexpr int kQkv = kInbox + kRows * kD * 4, kParts = kQkv, kFfn = kQkv;
  static constexpr int kPlaceBytes =
      Max(Max(kRows * kQkvStride * 4, kWarps* kPartFloats * 4),
          Max(kAhead ? kWarps* FfnBuffer<kD>::kBytes : 0, kWarps / 2 * kM * FfnSlab<kD>::kFloats * 4));
  static constexpr int kRowInfo = kQkv + kPlaceBytes;      // [kRows] Step
  static constexpr int kBarriers = kRowInfo + kRows * 16;  // Mailbox
  static constexpr int kHeads = kBarriers + 128;           // three sets of planes, width heads * 32
  __host__ __device__ static int HeadsBytes(int heads) { return PlaneBytes(kS, kRows, heads * kHeadDim); }
  // What is added to a row's logits, fp32: of memory, 0 or kHidden [key_capacity], the same for all rows; of places,
  // ln(count) or kHidden [kRows][BiasStride].
  __host__ __device__ static int MemoryBias(int heads) { return kHeads + 3 * HeadsBytes(heads); }
  __host__ __device__ static int SetBias(const Model& m) { return MemoryBias(m.heads) + m.key_capacity * 4; }
  __host__ __device__ static int BiasStride(const Model& m) { return m.set_capacity + 8; }
  static size_t Bytes(const Model& m) {
    return static_cast<size_t>(SetBias(m) + (m.set_capacity > 0 ? kRows * BiasStride(m) * 4 : 0));
  }
};

// Blocks of a cluster hand each other rows by stores that count at a barrier of the receiver (st.async): unlike
// barrier.cluster, whose release and acquire cost some 1,300 cycles here, nobody waits for more than the bytes it
// reads.
//
// Each of the four exchanges of a layer has its own place and barrier, used once a layer. A place is safe to write
// again: a block sends into exchange n + 1 of a layer only after what it got in exchange n, and in the FFN's first
// exchange every block sends to every other, after it has read what the layer's earlier exchanges brought.
enum Exchange { kSelfHeads, kCrossHeads, kFfnShares, kFfnRows, kExchanges };

struct Mailbox {
  uint32_t barriers;  // shared address of [kExchanges] mbarriers
  uint32_t rank, cluster;

  __device__ backstory::cuda::BarrierAt At(Exchange exchange) const { return {barriers + 8 * exchange}; }
  __device__ void Init() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kExchanges; ++i) At(static_cast<Exchange>(i)).Init(1);
      backstory::cuda::FenceBarrierInit();
    }
  }
  // All threads wait until `bytes` have come from other blocks in this phase.
  __device__ void Receive(Exchange exchange, uint32_t bytes, uint32_t parity) const {
    if (threadIdx.x == 0) At(exchange).ArriveExpecting(bytes);
    backstory::cuda::WaitForCluster(At(exchange), parity);
  }
  // 16 bytes to the place of block `to` that is `address` here.
  __device__ __forceinline__ void Send(Exchange exchange, uint32_t address, uint32_t to, uint4 v) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     backstory::cuda::InBlock(address, to)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(backstory::cuda::InBlock(At(exchange).address, to))
                 : "memory");
  }
};

__device__ __forceinline__ uint4 AsBits(float4 v) {
  return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}

// Columns of one head of `planes`, in which this block has them, to the same place in all other blocks.
template <int kS>
__device__ __forceinline__ void SendHead(const Mailbox& mail, Exchange exchange, const Planes& planes, int head) {
  const int chunks = kS * planes.rows * (kHeadDim / 8);
#pragma unroll 1
  for (int i = threadIdx.x; i < chunks * static_cast<int>(mail.cluster - 1); i += kThreads) {
    const int chunk = i % chunks, row = chunk / 4 % planes.rows, part = chunk / 4 / planes.rows;
    const __nv_bfloat16* at = planes.At(part, row, head * kHeadDim + chunk % 4 * 8);
    mail.Send(exchange, SharedAddress(at), (mail.rank + 1 + i / chunks) % mail.cluster,
              *reinterpret_cast<const uint4*>(at));
  }
}
template <int kS>
__device__ __forceinline__ uint32_t HeadBytes(int rows) {
  return static_cast<uint32_t>(kS * rows * kHeadDim * 2);
}
// Of `units` dealt to the blocks in turn, how many block `rank` has.
__device__ __forceinline__ int Dealt(int units, uint32_t rank, uint32_t cluster) {
  return static_cast<int>(rank) < units ? (units - 1 - static_cast<int>(rank)) / static_cast<int>(cluster) + 1 : 0;
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_STEP_SHARED_CUH_
