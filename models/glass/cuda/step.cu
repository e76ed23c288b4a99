// One position of the decoder for up to 32 beams of a user: a cluster of blocks shares the layer's heads, keys and
// hidden units, each block holding all rows, and exchanges through shared memory: a layer has four such exchanges.
// Weights stream from the L2 into registers, each block reading its share.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "models/glass/cuda/step_search.cuh"

namespace backstory::glass::cuda {
namespace {

// x += memory branch, blended with the retrieved one by the gate; in every block. The weights of a warp's tile are on
// their way before the other blocks' heads are.
template <int kS, int kD, int kM>
__device__ void AddCross(const Block<kS, kD, kM>& b, int layer, bool search, uint32_t bytes) {
  using At = StepShared<kS, kD, kM>;
  static_assert(kD / 8 <= kWarps);
  const DecoderLayerWeights& w = b.m.decoder[layer];
  const int tile = min(Warp(), kD / 8 - 1), column = 8 * tile + 2 * (Lane() % 4), g = Lane() / 4;
  const bool working = Warp() < kD / 8;
  Ahead<kS, kHeadsMax> of_near, of_far;
  of_near.Load({static_cast<const uint4*>(w.memory_o), b.m.heads}, tile, b.m.heads);
  if (!search) {
    b.mail.Receive(kCrossHeads, bytes, layer & 1);
    return AddOutput(b, w.memory_o, b.Wide(1), of_near);
  }
  of_far.Load({static_cast<const uint4*>(w.retrieved_o), b.m.heads}, tile, b.m.heads);
  b.mail.Receive(kCrossHeads, bytes, layer & 1);
  const Planes near_planes = b.Narrow(At::kNear), far_planes = b.Narrow(At::kFar);
  float near[kM][4] = {}, far[kM][4] = {};
  of_near.Multiply(near, b.Wide(1), 0, 0, b.m.heads);
  of_far.Multiply(far, b.Wide(2), 0, 0, b.m.heads);
  Ahead<kS, 2 * (kD / 32)> of_gate;
  of_gate.Load({static_cast<const uint4*>(w.gate), 2 * (kD / 32)}, tile, 2 * (kD / 32));
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = i / 2 * 16 + g + i % 2 * 8;
    if (!working) continue;
    StorePair<kS>(far_planes, row, column, far[i / 2][i % 2 * 2], far[i / 2][i % 2 * 2 + 1]);
    if (!b.m.gate_reads_state)
      StorePair<kS>(near_planes, row, column, near[i / 2][i % 2 * 2], near[i / 2][i % 2 * 2 + 1]);
  }
  __syncthreads();
  if (!working) return;
  float gate[kM][4] = {};
  of_gate.Multiply(gate, b.m.gate_reads_state ? b.Narrow(At::kZ) : near_planes, 0, 0, kD / 32);
  of_gate.Multiply(gate, far_planes, 0, kD / 32, 2 * (kD / 32));
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float open = __fdividef(1.0f, 1.0f + __expf(-(gate[m][e] + __ldg(w.gate_b + column + e % 2))));
      b.x()[(16 * m + g + 8 * (e / 2)) * At::kXStride + column + e % 2] += (1 - open) * near[m][e] + open * far[m][e];
    }
  }
}

// This warp's tile of the first head that this block has.
template <int kS, int kD, int kM>
__device__ __forceinline__ void LoadHead(const Block<kS, kD, kM>& b, int layer, Ahead<kS, kD / 32>& to) {
  const ByColumns<kS> w{static_cast<const uint4*>(b.m.decoder[layer].qkv), kD / 32};
  if (static_cast<int>(b.rank) < b.m.heads) to.Load(w, (Warp() / 4 * b.m.heads + b.rank) * 4 + Warp() % 4, kD / 32);
}

// x += FFN: hidden units are dealt to blocks and warps, shares of a row are summed by the block that owns it, which
// then sends the row to all.
template <int kS, int kD, int kM>
__device__ void AddFfn(const Block<kS, kD, kM>& b, int layer, Ahead<kS, kD / 32>& next) {
  using At = StepShared<kS, kD, kM>;
  constexpr int kQuads = kD / 4;
  const int owned = At::kRows / static_cast<int>(b.cluster);
  const DecoderLayerWeights& w = b.m.decoder[layer];
  float* inbox = reinterpret_cast<float*>(b.shared + At::kInbox);
  float share[kM][kD / 8][4] = {};
  if constexpr (At::kAhead) {
    FfnShareAhead<kD, kM>(b.buffer(), w.w1, w.w2, b.Narrow(At::kZ), 0, b.m.ffn / 16, b.rank + b.cluster * Warp(),
                          b.cluster * kWarps, share);
    __syncthreads();  // slabs take the weights' place
  } else {
    FfnShare<kS, kD, kM>(w.w1, w.w2, b.Narrow(At::kZ), 0, b.m.ffn / 32, b.rank + b.cluster * Warp(), b.cluster * kWarps,
                         share);
  }
  GatherShares<kD, kM>(share, b.slabs());
#pragma unroll 1
  for (int i = threadIdx.x; i < At::kRows * kQuads; i += kThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    const float4 sum = SumOfShares<kD, kM>(b.slabs(), row, column, make_float4(0, 0, 0, 0));
    float* to = inbox + (static_cast<int>(b.rank) * owned + row % owned) * kD + column;
    if (row / owned == static_cast<int>(b.rank)) {
      *reinterpret_cast<float4*>(to) = sum;
    } else {
      b.mail.Send(kFfnShares, SharedAddress(to), row / owned, AsBits(sum));
    }
  }
  constexpr uint32_t kRowBytes = kD * 4;
  __syncthreads();
  b.mail.Receive(kFfnShares, (b.cluster - 1) * owned * kRowBytes, layer & 1);
#pragma unroll 1
  for (int i = threadIdx.x; i < owned * kQuads; i += kThreads) {
    const int row = i / kQuads, column = i % kQuads * 4;
    float* x = b.x() + (static_cast<int>(b.rank) * owned + row) * At::kXStride + column;
    float4 sum = *reinterpret_cast<const float4*>(x);
#pragma unroll 1
    for (uint32_t from = 0; from < b.cluster; ++from) {
      const float4 v = *reinterpret_cast<const float4*>(inbox + (static_cast<int>(from) * owned + row) * kD + column);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    *reinterpret_cast<float4*>(x) = sum;
#pragma unroll 1
    for (uint32_t to = 1; to < b.cluster; ++to) {
      b.mail.Send(kFfnRows, SharedAddress(x), (b.rank + to) % b.cluster, AsBits(sum));
    }
  }
  if (layer + 1 < b.m.decoder_layers) LoadHead(b, layer + 1, next);
  __syncthreads();
  b.mail.Receive(kFfnRows, (At::kRows - owned) * kRowBytes, layer & 1);
}

// Logits of all rows, dealt to blocks by columns, and log-sum-exp, dealt by rows.
template <int kS, int kD, int kM>
__device__ void Logits(const Block<kS, kD, kM>& b) {
  using At = StepShared<kS, kD, kM>;
  const ByColumns<kS> w{static_cast<const uint4*>(b.m.head), kD / 32};
  const int tiles = (b.m.vocabulary + 7) / 8, width = tiles * 8;
  float* logits = b.batch.logits + static_cast<int64_t>(b.first_row) * width;
#pragma unroll 1
  for (int tile = b.rank + b.cluster * Warp(); tile < tiles; tile += b.cluster * kWarps) {
    float acc[kM][1][4] = {};
    Product<kS, kM, 1>(acc, b.Narrow(At::kZ), 0, w, tile, 0, kD / 32);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + Lane() / 4 + 8 * half;
        if (row >= b.rows) continue;
        *reinterpret_cast<float2*>(logits + static_cast<int64_t>(row) * width + 8 * tile + 2 * (Lane() % 4)) =
            make_float2(acc[m][0][2 * half], acc[m][0][2 * half + 1]);
      }
    }
  }
  // Also, nobody leaves while others may still send to it.
  backstory::cuda::ClusterArrive();
  backstory::cuda::ClusterWait();
#pragma unroll 1
  for (int row = b.rank + b.cluster * Warp(); row < b.rows; row += b.cluster * kWarps) {
    const float* of = logits + static_cast<int64_t>(row) * width;
    float top = -INFINITY, sum = 0;
#pragma unroll 4
    for (int i = Lane(); i < b.m.vocabulary; i += 32) top = fmaxf(top, of[i]);
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
#pragma unroll 4
    for (int i = Lane(); i < b.m.vocabulary; i += 32) sum += expf(of[i] - top);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (Lane() == 0) b.batch.lse[b.first_row + row] = top + logf(sum);
  }
}

template <int kS, int kD, int kM>
__global__ void __launch_bounds__(kThreads, 1)
    StepKernel(const __grid_constant__ Model m, const Batch batch, int step, uint32_t cluster) {
  extern __shared__ __align__(128) char shared[];
  JoinChain();
  using At = StepShared<kS, kD, kM>;
  const Group group = batch.group[blockIdx.x / cluster];
  if (group.user < 0) return;
  const UserInput& input = batch.user[group.user];
  const int live = step == 0 ? 1 : batch.live[(step - 1) * batch.users + group.user];
  if (group.first >= live) return;
  const Block<kS, kD, kM> b{m,
                            batch,
                            shared,
                            input,
                            group.user,
                            step,
                            input.first_row + group.first,
                            min(live - group.first, At::kRows),
                            backstory::cuda::ClusterRank(),
                            cluster,
                            {SharedAddress(shared + At::kBarriers), backstory::cuda::ClusterRank(), cluster}};
  b.mail.Init();
  backstory::cuda::ClusterArrive();  // nobody writes into a block that has not begun
  Begin(b);
  backstory::cuda::ClusterWait();
  const bool search = m.search && step > 0;  // the first position must not see what the first code retrieves
  const uint32_t head_bytes = HeadBytes<kS>(At::kRows);
  const uint32_t self_bytes = (m.heads - Dealt(m.heads, b.rank, cluster)) * head_bytes;
  const int units = (search ? 2 : 1) * m.heads;
  const uint32_t cross_bytes = (units - Dealt(units, b.rank, cluster)) * head_bytes;
  Ahead<kS, kD / 32> of_head;
  LoadHead(b, 0, of_head);
#pragma unroll 1
  for (int layer = 0; layer < m.decoder_layers; ++layer) {
    const DecoderLayerWeights& w = m.decoder[layer];
    NormRows<kS, kD, At::kRows>(b.x(), At::kXStride, m.d, w.norm, b.Narrow(At::kZ));
    __syncthreads();
    SelfHeads(b, layer, of_head);
    Ahead<kS, kHeadsMax> of_output;
    of_output.Load({static_cast<const uint4*>(w.o), m.heads}, min(Warp(), kD / 8 - 1), m.heads);
    b.mail.Receive(kSelfHeads, self_bytes, layer & 1);
    AddOutput(b, w.o, b.Wide(0), of_output);
    __syncthreads();
    NormRows<kS, kD, At::kRows>(b.x(), At::kXStride, m.d, w.cross_norm, b.Narrow(At::kZ));
    __syncthreads();
    CrossHeads(b, layer, search);
    if constexpr (At::kAhead) {  // parts of softmaxes were read: the FFN's weights take their place
      b.buffer().FetchUp(w.w1, b.rank + cluster * Warp(), m.ffn / 16);
      b.buffer().FetchDown(w.w2, b.rank + cluster * Warp(), m.ffn / 16);
    }
    AddCross(b, layer, search, cross_bytes);
    __syncthreads();
    NormRows<kS, kD, At::kRows>(b.x(), At::kXStride, m.d, w.ffn_norm, b.Narrow(At::kZ));
    __syncthreads();
    AddFfn(b, layer, of_head);
  }
  NormRows<kS, kD, At::kRows>(b.x(), At::kXStride, m.d, m.decoder_norm, b.Narrow(At::kZ));
  __syncthreads();
  Logits(b);
}

template <int kS, int kD, int kM>
const char* Launch(const Model& model, const Batch& batch, int step, int cluster, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0}, wide{0};
  const auto kernel = StepKernel<kS, kD, kM>;
  cudaError_t error = backstory::cuda::Allow(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedMax, &allowed);
  if (error == cudaSuccess)
    error = backstory::cuda::Allow(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1, &wide);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // JoinChain
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster * batch.groups));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = StepShared<kS, kD, kM>::Bytes(model);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  if (error == cudaSuccess)
    error = cudaLaunchKernelEx(&config, kernel, model, batch, step, static_cast<uint32_t>(cluster));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The first position has one row a user. In three parts, 32 rows would not fit.
template <int kS, int kD>
const char* LaunchRows(const Model& model, const Batch& batch, const Layout& layout, int step, cudaStream_t stream) {
  if constexpr (kS == 1) {
    if (step > 0 && layout.group_rows == 32) return Launch<kS, kD, 2>(model, batch, step, layout.cluster, stream);
  }
  return Launch<kS, kD, 1>(model, batch, step, layout.cluster, stream);
}

}  // namespace

size_t StepBytes(const Model& model) {
  switch (model.parts * 10 + model.d_pairs) {
    case 11:
      return StepShared<1, 32, 2>::Bytes(model);
    case 13:
      return StepShared<1, 96, 2>::Bytes(model);
    case 31:
      return StepShared<3, 32, 1>::Bytes(model);
    default:
      return StepShared<3, 96, 1>::Bytes(model);
  }
}

const char* LaunchStep(const Model& model, const Batch& batch, const Layout& layout, int step, void* stream) {
  const auto to = static_cast<cudaStream_t>(stream);
  switch (model.parts * 10 + model.d_pairs) {
    case 11:
      return LaunchRows<1, 32>(model, batch, layout, step, to);
    case 13:
      return LaunchRows<1, 96>(model, batch, layout, step, to);
    case 31:
      return LaunchRows<3, 32>(model, batch, layout, step, to);
    case 33:
      return LaunchRows<3, 96>(model, batch, layout, step, to);
    default:
      return "no decoder for this width";
  }
}

}  // namespace backstory::glass::cuda
