// The encoder: a cluster of blocks per user, 16 or 32 rows a block, so that all blocks of a user exchange keys and
// values within a layer without leaving the kernel. Weights stream from the L2 into registers: a block reads each once
// a layer.
#include <cuda_runtime.h>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "models/glass/cuda/attend.cuh"
#include "models/glass/cuda/ffn.cuh"
#include "models/glass/cuda/kernels.h"
#include "models/glass/cuda/tile.cuh"

namespace backstory::glass::cuda {
namespace {

template <int kS, int kD, int kM>
struct EncodeShared {
  static constexpr int kRows = 16 * kM, kStride = kD + 4, kSlabs = kWarps / 2;
  static constexpr bool kAhead = kS == 1;  // three parts of the FFN's weights would not fit
  static constexpr int kFfnBytes = kSlabs * kM * FfnSlab<kD>::kFloats * 4,
                       kBufferBytes = kAhead ? kWarps * FfnBuffer<kD>::kBytes : 0;
  static constexpr int kZAt = kRows * kStride * 4;
  static constexpr int kPartsAt = kZAt + PlaneBytes(kS, kRows, kD);   // of softmaxes; the tier token's hidden layer
  static constexpr int kFfnAt = kPartsAt + kWarps * kPartFloats * 4;  // the FFN's weights, then what its warps add up
  static constexpr int kQAt = kFfnAt + (kFfnBytes > kBufferBytes ? kFfnBytes : kBufferBytes);
  // Then the bias [heads][2 slots - 1] and the slot of every key.
  __host__ __device__ static int BiasAt(int heads) { return kQAt + PlaneBytes(kS, kRows, heads * kHeadDim); }
  static size_t Bytes(const Model& m) {
    return static_cast<size_t>(BiasAt(m.heads) + m.heads * (2 * m.slots - 1) * 4 + m.key_capacity * 2);
  }
};

// Two n8 tiles of K or V of 16 rows into a HeadKeys table: dimensions 16 half .. 16 half + 15.
template <int kS>
__device__ __forceinline__ void StoreKeys(const float (&low)[4], const float (&high)[4], int first_key, int half,
                                          __nv_bfloat16* k, int64_t part) {
  const int g = Lane() / 4, c = Lane() % 4;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    uint32_t even[kS], odd[kS];
    Split<kS>(low[2 * row], low[2 * row + 1], even);
    Split<kS>(high[2 * row], high[2 * row + 1], odd);
#pragma unroll
    for (int s = 0; s < kS; ++s) {
      *reinterpret_cast<uint2*>(k + s * part + static_cast<int64_t>(first_key + g + 8 * row) * kHeadDim + 8 * c +
                                4 * half) = make_uint2(even[s], odd[s]);
    }
  }
}
template <int kS>
__device__ __forceinline__ void StoreValues(const float (&low)[4], const float (&high)[4], int first_key, int half,
                                            __nv_bfloat16* vt, int64_t part, int capacity) {
  const int g = Lane() / 4, c = Lane() % 4;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int key = first_key + g + 8 * row, at = key / 32 * 32 + PlaceIn32(key % 32);
      uint32_t pair[kS];
      Split<kS>(t == 0 ? low[2 * row] : high[2 * row], t == 0 ? low[2 * row + 1] : high[2 * row + 1], pair);
#pragma unroll
      for (int s = 0; s < kS; ++s) {
        const __nv_bfloat162 both = *reinterpret_cast<const __nv_bfloat162*>(&pair[s]);
        __nv_bfloat16* to = vt + s * part + static_cast<int64_t>(16 * half + 8 * t + 2 * c) * capacity + at;
        to[0] = both.x;
        to[capacity] = both.y;
      }
    }
  }
}

// K (kind 0) or V (kind 1) of `layer` (encoder layers first) and head in the user's memory.
template <int kS>
__device__ __forceinline__ __nv_bfloat16* HeadTable(const Model& m, void* all, int user, int layer, int head) {
  const int64_t head_size = static_cast<int64_t>(kS) * m.key_capacity * kHeadDim;
  const int64_t of_user = static_cast<int64_t>(m.encoder_layers + m.decoder_layers) * m.heads;
  return static_cast<__nv_bfloat16*>(all) + (user * of_user + layer * m.heads + head) * head_size;
}

// The tier token: two small products that need every column of their input. All threads; x: its row.
template <int kS, int kD>
__device__ void TierToken(const Model& m, const float* features, float* hidden, float* x) {
#pragma unroll 1
  for (int j = Warp(); j < m.d; j += kWarps) {
    float sum = 0;
#pragma unroll 1
    for (int i = Lane(); i < m.bins_width; i += 32)
      sum += features[i] * __ldg(m.tier_w1 + static_cast<int64_t>(j) * m.bins_width + i);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (Lane() == 0) hidden[j] = fmaxf(0.0f, sum + m.tier_b1[j]);
  }
  __syncthreads();
#pragma unroll 1
  for (int j = Warp(); j < m.d; j += kWarps) {
    float sum = 0;
#pragma unroll 1
    for (int i = Lane(); i < m.d; i += 32) sum += hidden[i] * __ldg(m.tier_w2 + j * m.d + i);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (Lane() == 0) x[j] = sum + m.tier_b2[j];
  }
}

template <int kS, int kD, int kM>
__device__ void LoadRows(const Model& m, const Batch& batch, const UserInput& user, int first, float* x,
                         float* hidden) {
  constexpr int kStride = EncodeShared<kS, kD, kM>::kStride, kRows = 16 * kM;
  const auto* rows = reinterpret_cast<const EncoderRow*>(batch.input + user.rows_at);
  int tier_row = -1;
#pragma unroll 1
  for (int r = 0; r < kRows && first + r < user.rows; ++r) {
    if (rows[first + r].is_tier) tier_row = r;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * (kD / 4); i += kThreads) {
    const int r = i / (kD / 4), column = i % (kD / 4) * 4;
    float4 v = make_float4(0, 0, 0, 0);
    if (first + r < user.rows && r != tier_row) {
      v = __ldg(
          reinterpret_cast<const float4*>(m.embedding + static_cast<int64_t>(rows[first + r].token) * kD + column));
    }
    *reinterpret_cast<float4*>(x + r * kStride + column) = v;
  }
  __syncthreads();
  if (tier_row >= 0) {
    TierToken<kS, kD>(m, reinterpret_cast<const float*>(batch.input + user.tier_at), hidden, x + tier_row * kStride);
  }
  __syncthreads();
}

// Two n8 tiles a job: K and V into the user's tables of `layer`, queries (if `q` has rows) into shared memory.
template <int kS, int kD, int kM>
__device__ void ProjectHeads(const Model& m, const Batch& batch, int user, int layer, const void* packed,
                             bool with_queries, const Planes& z, const Planes& q, int first) {
  const ByColumns<kS> w{static_cast<const uint4*>(packed), kD / 32};
  const int of_kind = 2 * m.heads;
  const int64_t part = static_cast<int64_t>(m.key_capacity) * kHeadDim;
  const int jobs = (with_queries ? 3 : 2) * of_kind;
  Ahead<kS, kD / 32> next[2];  // a job's weights are on their way while the one before is multiplied
  const auto load = [&](int job) {
    if (job < jobs) next[0].Load(w, 2 * job, kD / 32), next[1].Load(w, 2 * job + 1, kD / 32);
  };
  load(Warp());
#pragma unroll 1
  for (int job = Warp(); job < jobs; job += kWarps) {
    float acc[2][kM][4] = {};
    const Ahead<kS, kD / 32> now[2] = {next[0], next[1]};
    load(job + kWarps);
    now[0].Multiply(acc[0], z, 0, 0, kD / 32);
    now[1].Multiply(acc[1], z, 0, 0, kD / 32);
    const int kind = job / of_kind + (with_queries ? 0 : 1), head = job % of_kind / 2, half = job % 2;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      if (kind == 0) {
        const int row = 16 * i + Lane() / 4, column = head * kHeadDim + 16 * half + 2 * (Lane() % 4);
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          StorePair<kS>(q, row, column + 8 * t, acc[t][i][0], acc[t][i][1]);
          StorePair<kS>(q, row + 8, column + 8 * t, acc[t][i][2], acc[t][i][3]);
        }
      } else if (kind == 1) {
        StoreKeys<kS>(acc[0][i], acc[1][i], first + 16 * i, half, HeadTable<kS>(m, batch.keys, user, layer, head),
                      part);
      } else {
        StoreValues<kS>(acc[0][i], acc[1][i], first + 16 * i, half, HeadTable<kS>(m, batch.values, user, layer, head),
                        part, m.key_capacity);
      }
    }
  }
}

// Attention of all heads; their outputs take the queries' place. (tile, head) units are dealt to warps; where there are
// twice as many warps, two share a unit's keys.
template <int kS, int kM, typename BeforeMerge>
__device__ void SelfAttention(const Model& m, const Batch& batch, int user, int layer, int rows, int first,
                              const Planes& q, float* parts, const float* bias, const uint16_t* slots,
                              const BeforeMerge& before_merge) {
  const int units = kM * m.heads, splits = max(1, kWarps / units), blocks = (rows + kKeyBlock - 1) / kKeyBlock;
  const int g = Lane() / 4, c = Lane() % 4, split = Warp() / units;
  const int64_t part = static_cast<int64_t>(m.key_capacity) * kHeadDim;
  // A round of at most kWarps units at a time: their parts lie in shared memory.
#pragma unroll 1
  for (int round = 0; round < units; round += kWarps) {
    const int here = min(units - round, kWarps), unit = round + Warp() % units, tile = unit / m.heads,
              head = unit % m.heads;
    if (split < splits && unit < units) {
      uint32_t a[2][kS][4];
      LoadA<kS>(q, 16 * tile, head * kHeadDim, a[0]);
      LoadA<kS>(q, 16 * tile, head * kHeadDim + 16, a[1]);
      const HeadKeys<kS> keys{HeadTable<kS>(m, batch.keys, user, layer, head),
                              HeadTable<kS>(m, batch.values, user, layer, head), part, part, m.key_capacity};
      const float* of_head = bias + head * (2 * m.slots - 1) + m.slots - 1;
      const int own[2] = {slots[first + 16 * tile + g], slots[first + 16 * tile + g + 8]};
      Softmax softmax;
      float o[4][4] = {};
      KeyBlock<kS> next;
      next.Load(keys, split, blocks);
#pragma unroll 1
      for (int block = split; block < blocks; block += splits) {
        const KeyBlock<kS> now = next;
        next.Load(keys, block + splits, blocks);
        AttendBlock<kS>(
            a, keys, block, now,
            [&](int t, int half) {
              const int key = block * kKeyBlock + 8 * t + 2 * c;
              const uint32_t pair = *reinterpret_cast<const uint32_t*>(slots + key);  // of two keys
              const float* of_row = of_head - own[half];
              return make_float2(key < rows ? of_row[pair & 0xffff] : kHidden,
                                 key + 1 < rows ? of_row[pair >> 16] : kHidden);
            },
            &softmax, o);
      }
      StorePart(softmax, o, parts + ((unit - round) * splits + split) * kPartFloats);
    }
    if (round + kWarps >= units) before_merge();
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < here * 16 * (kHeadDim / 2); i += kThreads) {
      const int pair = i % (kHeadDim / 2), row = i / (kHeadDim / 2) % 16, of = i / (kHeadDim / 2) / 16;
      const float2 v = MergeParts(parts + of * splits * kPartFloats + row * kPartStride, splits, kPartFloats, pair);
      StorePair<kS>(q, (round + of) / m.heads * 16 + row, (round + of) % m.heads * kHeadDim + 2 * pair, v.x, v.y);
    }
    __syncthreads();
  }
}

// x += o W^T: a warp per n8 tile; `first`: this warp's first.
template <int kS, int kD, int kM>
__device__ void AddOutput(const Model& m, const void* packed, const Planes& o, float* x, Ahead<kS, kHeadsMax>& first) {
  constexpr int kStride = EncodeShared<kS, kD, kM>::kStride;
  const ByColumns<kS> w{static_cast<const uint4*>(packed), m.heads};
#pragma unroll 1
  for (int tile = Warp(); tile < kD / 8; tile += kWarps) {
    if (tile != Warp()) first.Load(w, tile, m.heads);
    float acc[kM][4] = {};
    first.Multiply(acc, o, 0, 0, m.heads);
#pragma unroll
    for (int i = 0; i < kM * 4; ++i) {
      x[(i / 4 * 16 + Lane() / 4 + i % 4 / 2 * 8) * kStride + 8 * tile + 2 * (Lane() % 4) + i % 2] += acc[i / 4][i % 4];
    }
  }
}

// x += FFN: hidden units are dealt to warps, whose shares are added up pair by pair, then all.
template <int kS, int kD, int kM>
__device__ void AddFfn(const Model& m, const EncoderLayerWeights& w, const Planes& z, const FfnBuffer<kD>& buffer,
                       float* slabs, float* x) {
  using At = EncodeShared<kS, kD, kM>;
  float out[kM][kD / 8][4] = {};
  if constexpr (At::kAhead) {
    FfnShareAhead<kD, kM>(buffer, w.w1, w.w2, z, 0, m.ffn / 16, Warp(), kWarps, out);
    __syncthreads();  // slabs take the weights' place
  } else {
    FfnShare<kS, kD, kM>(w.w1, w.w2, z, 0, m.ffn / 32, Warp(), kWarps, out);
  }
  GatherShares<kD, kM>(out, slabs);
#pragma unroll 1
  for (int i = threadIdx.x; i < At::kRows * (kD / 4); i += kThreads) {
    float4* to = reinterpret_cast<float4*>(x + i / (kD / 4) * At::kStride + i % (kD / 4) * 4);
    *to = SumOfShares<kD, kM>(slabs, i / (kD / 4), i % (kD / 4) * 4, *to);
  }
}

template <int kS, int kD, int kM>
__global__ void __launch_bounds__(kThreads, 1) EncodeKernel(const __grid_constant__ Model m, const Batch batch) {
  extern __shared__ __align__(128) char shared[];
  JoinChain();
  using At = EncodeShared<kS, kD, kM>;
  constexpr int kRows = At::kRows;
  const int blocks = gridDim.x / batch.users, user = blockIdx.x / blocks, first = blockIdx.x % blocks * kRows;
  const UserInput input = batch.user[user];
  float* x = reinterpret_cast<float*>(shared);
  const Planes z{reinterpret_cast<__nv_bfloat16*>(shared + At::kZAt), kRows, PlaneStride(kD)};
  const Planes q{reinterpret_cast<__nv_bfloat16*>(shared + At::kQAt), kRows, PlaneStride(m.heads * kHeadDim)};
  float* parts = reinterpret_cast<float*>(shared + At::kPartsAt);
  float* slabs = reinterpret_cast<float*>(shared + At::kFfnAt);
  const FfnBuffer<kD> buffer{
      reinterpret_cast<uint4*>(shared + At::kFfnAt + (At::kAhead ? Warp() * FfnBuffer<kD>::kBytes : 0)) + Lane()};
  const auto fetch = [&](int layer) {
    if (!At::kAhead || layer >= m.encoder_layers) return;
    buffer.FetchUp(m.encoder[layer].w1, Warp(), m.ffn / 16);
    buffer.FetchDown(m.encoder[layer].w2, Warp(), m.ffn / 16);
  };
  float* bias = reinterpret_cast<float*>(shared + At::BiasAt(m.heads));
  const int bias_size = m.heads * (2 * m.slots - 1);
  auto* slots = reinterpret_cast<uint16_t*>(bias + bias_size);
  // Keys are read in blocks of 32: a block that begins inside such a block computes, on zeros, what fills it up.
  const int key_end = (max(input.rows, 0) + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  const bool active = first < key_end;
  if (active) {
    const auto* rows = reinterpret_cast<const EncoderRow*>(batch.input + input.rows_at);
#pragma unroll 1
    for (int i = threadIdx.x; i < bias_size; i += kThreads) bias[i] = __ldg(m.encoder_bias + i);
#pragma unroll 1
    for (int i = threadIdx.x; i < m.key_capacity; i += kThreads) slots[i] = i < input.rows ? rows[i].slot : 0;
    fetch(0);
    LoadRows<kS, kD, kM>(m, batch, input, first, x, parts);
  }
#pragma unroll 1
  for (int layer = 0; layer < m.encoder_layers; ++layer) {
    const EncoderLayerWeights& w = m.encoder[layer];
    if (active) {
      NormRows<kS, kD, kRows>(x, At::kStride, m.d, w.norm, z);
      __syncthreads();
      ProjectHeads<kS, kD, kM>(m, batch, user, layer, w.qkv, true, z, q, first);
    }
    backstory::cuda::ClusterArrive();
    backstory::cuda::ClusterWait();
    if (!active) continue;
    Ahead<kS, kHeadsMax> of_output;
    SelfAttention<kS, kM>(m, batch, user, layer, input.rows, first, q, parts, bias, slots, [&] {
      of_output.Load({static_cast<const uint4*>(w.o), m.heads}, min(Warp(), kD / 8 - 1), m.heads);
    });
    AddOutput<kS, kD, kM>(m, w.o, q, x, of_output);
    __syncthreads();
    NormRows<kS, kD, kRows>(x, At::kStride, m.d, w.ffn_norm, z);
    __syncthreads();
    AddFfn<kS, kD, kM>(m, w, z, buffer, slabs, x);
    __syncthreads();
    fetch(layer + 1);
  }
  if (!active) return;
  NormRows<kS, kD, kRows>(x, At::kStride, m.d, m.encoder_norm, z);
  __syncthreads();
  const size_t of_layer = static_cast<size_t>(2 * m.heads * 4) * (kD / 32) * kS * 32;  // uint4
#pragma unroll 1
  for (int layer = 0; layer < m.decoder_layers; ++layer) {
    ProjectHeads<kS, kD, kM>(m, batch, user, m.encoder_layers + layer,
                             static_cast<const uint4*>(m.memory_kv) + layer * of_layer, false, z, q, first);
  }
}

template <int kS, int kD, int kM>
const char* Launch(const Model& model, const Batch& batch, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0}, wide{0};
  const auto kernel = EncodeKernel<kS, kD, kM>;
  const size_t bytes = EncodeShared<kS, kD, kM>::Bytes(model);
  const int blocks = model.key_capacity / (16 * kM);
  cudaError_t error = backstory::cuda::Allow(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedMax, &allowed);
  if (error == cudaSuccess)
    error = backstory::cuda::Allow(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1, &wide);
  cudaLaunchAttribute attributes[1];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks * batch.users));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 1;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, model, batch);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* LaunchEncode(const Model& model, const Batch& batch, const Layout& layout, void* stream) {
  const auto to = static_cast<cudaStream_t>(stream);
  const bool wide = layout.encode_rows == 32;
  switch (model.parts * 10 + model.d_pairs) {
    case 11:
      return wide ? Launch<1, 32, 2>(model, batch, to) : Launch<1, 32, 1>(model, batch, to);
    case 13:
      return wide ? Launch<1, 96, 2>(model, batch, to) : Launch<1, 96, 1>(model, batch, to);
    case 31:
      return Launch<3, 32, 1>(model, batch, to);
    case 33:
      return Launch<3, 96, 1>(model, batch, to);
    default:
      return "no encoder for this width";
  }
}

}  // namespace backstory::glass::cuda
