// A decoder step's rows and its self-attention. Private to step.cu.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_STEP_HEADS_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_STEP_HEADS_CUH_

#include "models/glass/cuda/step_shared.cuh"

namespace backstory::glass::cuda {

// What a block knows of its work.
template <int kS, int kD, int kM>
struct Block {
  using At = StepShared<kS, kD, kM>;
  const Model& m;
  const Batch& batch;
  char* shared;
  const UserInput& input;
  int user, step;
  int first_row, rows;  // of the launch; how many of this cluster's rows are beams
  uint32_t rank, cluster;
  Mailbox mail;

  __device__ float* x() const { return reinterpret_cast<float*>(shared + At::kX); }
  __device__ float* qkv() const { return reinterpret_cast<float*>(shared + At::kQkv); }
  __device__ float* parts() const { return reinterpret_cast<float*>(shared + At::kParts); }
  __device__ float* slabs() const { return reinterpret_cast<float*>(shared + At::kFfn); }
  __device__ FfnBuffer<kD> buffer() const {
    return {reinterpret_cast<uint4*>(shared + At::kFfn + (At::kAhead ? Warp() * FfnBuffer<kD>::kBytes : 0)) + Lane()};
  }
  __device__ Step* row_info() const { return reinterpret_cast<Step*>(shared + At::kRowInfo); }
  __device__ float* memory_bias() const { return reinterpret_cast<float*>(shared + At::MemoryBias(m.heads)); }
  __device__ float* set_bias() const { return reinterpret_cast<float*>(shared + At::SetBias(m)); }
  __device__ Planes Narrow(int at) const {
    return {reinterpret_cast<__nv_bfloat16*>(shared + at), At::kRows, PlaneStride(kD)};
  }
  __device__ Planes Wide(int which) const {  // 0: self, 1: memory, 2: retrieved
    return {reinterpret_cast<__nv_bfloat16*>(shared + At::kHeads + which * At::HeadsBytes(m.heads)), At::kRows,
            PlaneStride(m.heads * kHeadDim)};
  }
  __device__ float* SelfKv(int layer, int position, int row, int head) const {
    return batch.self_kv +
           (((static_cast<int64_t>(layer) * 3 + position) * batch.rows_max + row) * m.heads + head) * 2 * kHeadDim;
  }
};

// Rows of the embedding, who their parents are, and the counts of their retrieved sets.
template <int kS, int kD, int kM>
__device__ void Begin(const Block<kS, kD, kM>& b) {
  using At = StepShared<kS, kD, kM>;
  const Step* before = b.batch.steps + static_cast<int64_t>(b.step - 1) * b.batch.rows_max + b.first_row;
#pragma unroll 1
  for (int r = threadIdx.x; r < At::kRows; r += kThreads) {
    Step info{0, static_cast<uint32_t>(b.m.bos), 0, 0, 0};
    if (b.step > 0 && r < b.rows) info = before[r];
    b.row_info()[r] = info;
  }
  const bool sets = b.step > 0 && b.m.search && b.m.set_capacity > 0;
#pragma unroll 1
  for (int i = threadIdx.x; sets && i < At::kRows * At::BiasStride(b.m); i += kThreads) b.set_bias()[i] = kHidden;
#pragma unroll 1
  for (int i = threadIdx.x; i < b.m.key_capacity; i += kThreads) b.memory_bias()[i] = i < b.input.rows ? 0 : kHidden;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < At::kRows * (kD / 4); i += kThreads) {
    const int r = i / (kD / 4), column = i % (kD / 4) * 4;
    *reinterpret_cast<float4*>(b.x() + r * At::kXStride + column) = __ldg(
        reinterpret_cast<const float4*>(b.m.embedding + static_cast<int64_t>(b.row_info()[r].token) * kD + column));
  }
  if (sets) {
    const auto* begin = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.begin_at);
    const auto* members = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.members_at);
#pragma unroll 1
    for (int r = Warp(); r < At::kRows; r += kWarps) {
      const int code = b.row_info()[r].first_code;
      const uint32_t from = begin[code], to = begin[code + 1];
      float* row = b.set_bias() + r * At::BiasStride(b.m);
      for (uint32_t i = from + Lane(); i < to; i += 32)
        row[members[i] >> 12] = logf(static_cast<float>(members[i] & 4095));
      if (from == to && Lane() == 0) row[b.m.places] = 0;
    }
  }
  __syncthreads();
}

// Attention of one row and head to itself and its beam's earlier positions: eight lanes, four dimensions each from
// `at`.
template <int kS, int kD, int kM>
__device__ __forceinline__ void SelfRow(const Block<kS, kD, kM>& b, int layer, int head, int r, int at,
                                        const Planes& o) {
  const float* own = b.qkv() + r * StepShared<kS, kD, kM>::kQkvStride;
  const float* bias = b.m.decoder_bias + head * 3;
  const float4 q = *reinterpret_cast<const float4*>(own + at);
  const float* key[3];
  float weight[3], top = kHidden, sum = 0;
  float4 v = make_float4(0, 0, 0, 0), value[3];
#pragma unroll
  for (int p = 0; p < 3; ++p) {
    weight[p] = kHidden;
    if (p > b.step) continue;
    // Position 0 is one row for all beams; position 1 of the third step is the parent's.
    key[p] = p == b.step ? own + kHeadDim
             : p == 0    ? b.SelfKv(layer, 0, b.input.first_row, head)
                         : b.SelfKv(layer, 1, b.input.first_row + b.row_info()[r].parent, head);
    const float4 k = *reinterpret_cast<const float4*>(key[p] + at);
    value[p] = *reinterpret_cast<const float4*>(key[p] + kHeadDim + at);
    weight[p] = q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
  }
#pragma unroll
  for (int p = 0; p < 3; ++p) {
    if (p > b.step) continue;
    for (int step = 4; step > 0; step /= 2) weight[p] += __shfl_xor_sync(~0u, weight[p], step);
    weight[p] += __ldg(bias + b.step - p);
    top = fmaxf(top, weight[p]);
  }
#pragma unroll
  for (int p = 0; p < 3; ++p) {
    if (p > b.step) continue;
    const float share = __expf(weight[p] - top);
    sum += share;
    v.x += share * value[p].x, v.y += share * value[p].y, v.z += share * value[p].z, v.w += share * value[p].w;
  }
  const float of_sum = __fdividef(1.0f, sum);
  StorePair<kS>(o, r, head * kHeadDim + at, v.x * of_sum, v.y * of_sum);
  StorePair<kS>(o, r, head * kHeadDim + at + 2, v.z * of_sum, v.w * of_sum);
}

// Queries, keys and values of this block's heads; attention to the beam's own earlier positions; outputs to all blocks.
template <int kS, int kD, int kM>
__device__ void SelfHeads(const Block<kS, kD, kM>& b, int layer, Ahead<kS, kD / 32>& first) {
  using At = StepShared<kS, kD, kM>;
  constexpr int kLanes = 8, kEach = kHeadDim / kLanes;  // of a row
  const ByColumns<kS> w{static_cast<const uint4*>(b.m.decoder[layer].qkv), kD / 32};
  const Planes o = b.Wide(0);
#pragma unroll 1
  for (int head = b.rank; head < b.m.heads; head += b.cluster) {
    const int kind = Warp() / 4, t = Warp() % 4;
    if (head != static_cast<int>(b.rank)) first.Load(w, (kind * b.m.heads + head) * 4 + t, kD / 32);
    float acc[kM][4] = {};
    first.Multiply(acc, b.Narrow(At::kZ), 0, 0, kD / 32);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b.qkv()[(16 * m + Lane() / 4 + 8 * (i / 2)) * At::kQkvStride + kind * kHeadDim + 8 * t + 2 * (Lane() % 4) +
                i % 2] = acc[m][i];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < b.rows * (2 * kHeadDim / 4); i += kThreads) {
      const int r = i / 16, column = i % 16 * 4;
      *reinterpret_cast<float4*>(b.SelfKv(layer, b.step, b.first_row + r, head) + column) =
          *reinterpret_cast<const float4*>(b.qkv() + r * At::kQkvStride + kHeadDim + column);
    }
    if (threadIdx.x < At::kRows * kLanes)
      SelfRow(b, layer, head, threadIdx.x / kLanes, threadIdx.x % kLanes * kEach, o);
    __syncthreads();
    SendHead<kS>(b.mail, kSelfHeads, o, head);
  }
}

// x += o W^T in every block: less than an exchange would cost. `first`: this warp's first tile.
template <int kS, int kD, int kM>
__device__ void AddOutput(const Block<kS, kD, kM>& b, const void* packed, const Planes& o,
                          Ahead<kS, kHeadsMax>& first) {
  using At = StepShared<kS, kD, kM>;
  const ByColumns<kS> w{static_cast<const uint4*>(packed), b.m.heads};
#pragma unroll 1
  for (int tile = Warp(); tile < kD / 8; tile += kWarps) {
    if (tile != Warp()) first.Load(w, tile, b.m.heads);
    float acc[kM][4] = {};
    first.Multiply(acc, o, 0, 0, b.m.heads);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b.x()[(16 * m + Lane() / 4 + 8 * (i / 2)) * At::kXStride + 8 * tile + 2 * (Lane() % 4) + i % 2] += acc[m][i];
      }
    }
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_STEP_HEADS_CUH_
