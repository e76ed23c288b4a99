// A decoder step's attention to memory and to retrieved sets. Private to step.cu.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_STEP_SEARCH_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_STEP_SEARCH_CUH_

#include "models/glass/cuda/step_heads.cuh"

namespace backstory::glass::cuda {

// Attention of row r to the members of its set, where places are too many for a table of all: a warp per row.
template <int kS, int kD, int kM>
__device__ void GatherRow(const Block<kS, kD, kM>& b, const float* rows, int r, int head, const float* q,
                          const Planes& o) {
  const auto* begin = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.begin_at);
  const auto* members = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.members_at);
  const int code = b.row_info()[r].first_code;
  const uint32_t from = begin[code], count = begin[code + 1] - from, all = max(count, 1u);
  float top = kHidden, sum = 0, value = 0;  // value: of this lane's dimension
#pragma unroll 1
  for (uint32_t i = 0; i < all; i += 32) {
    const uint32_t mine = i + Lane();
    const uint32_t member = mine < count ? members[from + mine] : static_cast<uint32_t>(b.m.places) << 12 | 1;
    const float* kv = rows + (static_cast<int64_t>(member >> 12) * b.m.heads + head) * 2 * kHeadDim;
    float weight = kHidden;
    if (mine < all) {
      weight = logf(static_cast<float>(member & 4095));
      for (int x = 0; x < kHeadDim; ++x) weight += q[x] * __ldg(kv + x);
    }
    float best = weight;
    for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(~0u, best, step));
    best = fmaxf(best, top);
    const float scale = expf(top - best), share = mine < all ? expf(weight - best) : 0.0f;
    top = best, value *= scale, sum = sum * scale + share;
#pragma unroll 1
    for (uint32_t j = 0; j < min(32u, all - i); ++j) {
      const float of = __shfl_sync(~0u, share, j);
      const uint32_t place = __shfl_sync(~0u, member, j) >> 12;
      value += of * __ldg(rows + (static_cast<int64_t>(place) * b.m.heads + head) * 2 * kHeadDim + kHeadDim + Lane());
    }
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  value /= sum;
  const float next = __shfl_down_sync(~0u, value, 1);
  if (Lane() % 2 == 0) StorePair<kS>(o, r, head * kHeadDim + Lane(), value, next);
}

// The keys of one (branch, head).
template <int kS, int kD, int kM>
__device__ HeadKeys<kS> KeysOf(const Block<kS, kD, kM>& b, int layer, int branch, int head) {
  const bool memory = branch == 0;
  const int capacity = memory ? b.m.key_capacity : b.m.set_capacity;
  const int64_t part = static_cast<int64_t>(capacity) * kHeadDim;
  const int64_t of_user = static_cast<int64_t>(b.m.encoder_layers + b.m.decoder_layers) * b.m.heads;
  const int64_t at = (memory ? b.user * of_user + (b.m.encoder_layers + layer) * b.m.heads + head : head) * kS * part;
  const void* k = memory ? b.batch.keys : b.m.decoder[layer].set_k;
  const void* v = memory ? b.batch.values : b.m.decoder[layer].set_vt;
  return {static_cast<const __nv_bfloat16*>(k) + at, static_cast<const __nv_bfloat16*>(v) + at, part, part, capacity};
}

// One warp's share of a unit: queries of one tile, and keys split, split + splits, .. in blocks; a gathered unit's
// queries are left at `part`.
template <int kS, int kD, int kM>
__device__ __forceinline__ void AttendUnit(const Block<kS, kD, kM>& b, int layer, int branch, int head, int tile,
                                           int split, int splits, bool gathered, float* part) {
  const DecoderLayerWeights& w = b.m.decoder[layer];
  const int g = Lane() / 4, c = Lane() % 4;
  const ByColumns<kS> wq{static_cast<const uint4*>(branch == 0 ? w.memory_q : w.retrieved_q), kD / 32};
  const HeadKeys<kS> keys = KeysOf(b, layer, branch, head);
  const int count = branch == 0 ? b.input.rows : b.m.places + 1;
  const int blocks = gathered ? 0 : (count + kKeyBlock - 1) / kKeyBlock;
  KeyBlock<kS> next;
  next.Load(keys, split, blocks);
  float acc[1][4][4] = {};
  Product<kS, 1, 4>(acc, b.Narrow(StepShared<kS, kD, kM>::kZ), 0, wq, 4 * head, 0, kD / 32, 16 * tile);
  if (gathered) {
    for (int i = 0; split == 0 && i < 16; ++i) {
      part[(g + 8 * (i % 4 / 2)) * kPartStride + 8 * (i / 4) + 2 * c + i % 2] = acc[0][i / 4][i % 4];
    }
    return;
  }
  uint32_t q[2][kS][4];
  AsQueries<kS>(acc[0], q);
  using At = StepShared<kS, kD, kM>;
  const int row_step = branch == 0 ? 0 : At::BiasStride(b.m);
  const float* bias = (branch == 0 ? b.memory_bias() : b.set_bias()) + (16 * tile + g) * row_step + 2 * c;
  Softmax softmax;
  float o[4][4] = {};
#pragma unroll 1
  for (int block = split; block < blocks; block += splits) {
    const KeyBlock<kS> now = next;
    next.Load(keys, block + splits, blocks);
    AttendBlock<kS>(
        q, keys, block, now,
        [&](int t, int half) {
          return *reinterpret_cast<const float2*>(bias + half * 8 * row_step + block * kKeyBlock + 8 * t);
        },
        &softmax, o);
  }
  StorePart(softmax, o, part + split * kPartFloats);
}

// Attention to memory and retrieved sets: (branch, head) units are dealt to blocks, and a unit's keys to its warps.
template <int kS, int kD, int kM>
__device__ void CrossHeads(const Block<kS, kD, kM>& b, int layer, bool search) {
  using At = StepShared<kS, kD, kM>;
  const int here = Dealt((search ? 2 : 1) * b.m.heads, b.rank, b.cluster);
  if (here == 0) return;
  const int per_unit = kWarps / here / kM * kM, i_unit = Warp() / per_unit, mine = Warp() % per_unit;
  const int splits = per_unit / kM, tile = mine % kM, split = mine / kM;
  const int unit = b.rank + b.cluster * i_unit, branch = unit / b.m.heads, head = unit % b.m.heads;
  const bool working = i_unit < here, gathered = branch == 1 && b.m.set_capacity == 0;
  // Of row r of unit i; without parts, the queries of a gathered unit stand there.
  const auto part_of = [&](int i, int r) {
    return b.parts() + (i * kM + r / 16) * splits * kPartFloats + r % 16 * kPartStride;
  };
  if (working) AttendUnit(b, layer, branch, head, tile, split, splits, gathered, part_of(i_unit, 16 * tile));
  __syncthreads();
  if (working && gathered) {
#pragma unroll 1
    for (int r = mine; r < At::kRows; r += per_unit) {
      GatherRow(b, b.m.decoder[layer].set_rows, r, head, part_of(i_unit, r), b.Wide(2));
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < here * At::kRows * (kHeadDim / 2); i += kThreads) {
    const int pair = i % (kHeadDim / 2), row = i / (kHeadDim / 2) % At::kRows, of = i / (kHeadDim / 2) / At::kRows;
    const int u = b.rank + b.cluster * of;
    if (u >= b.m.heads && b.m.set_capacity == 0) continue;
    const float2 v = MergeParts(part_of(of, row), splits, kPartFloats, pair);
    StorePair<kS>(b.Wide(1 + u / b.m.heads), row, u % b.m.heads * kHeadDim + 2 * pair, v.x, v.y);
  }
  __syncthreads();
#pragma unroll 1
  for (int of = 0; of < here; ++of) {
    const int u = b.rank + b.cluster * of;
    SendHead<kS>(b.mail, kCrossHeads, b.Wide(1 + u / b.m.heads), u % b.m.heads);
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_STEP_SEARCH_CUH_
