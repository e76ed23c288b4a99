// One position of the decoder for up to 32 beams of a user: a cluster of blocks shares the layer's heads, keys and hidden
// units, each block holding all rows, and exchanges through shared memory: a layer has four such exchanges. Weights stream
// from the L2 into registers, each block reading its share.
#include <cuda_runtime.h>

#include "kernels/cuda/launch.cuh"
#include "models/glass/cuda/step_shared.cuh"

namespace backstory::glass::cuda {
namespace {

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
    return batch.self_kv + (((static_cast<int64_t>(layer) * 3 + position) * batch.rows_max + row) * m.heads + head) * 2 * kHeadDim;
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
    *reinterpret_cast<float4*>(b.x() + r * At::kXStride + column) =
        __ldg(reinterpret_cast<const float4*>(b.m.embedding + static_cast<int64_t>(b.row_info()[r].token) * kD + column));
  }
  if (sets) {
    const auto* begin = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.begin_at);
    const auto* members = reinterpret_cast<const uint32_t*>(b.batch.input + b.input.members_at);
#pragma unroll 1
    for (int r = Warp(); r < At::kRows; r += kWarps) {
      const int code = b.row_info()[r].first_code;
      const uint32_t from = begin[code], to = begin[code + 1];
      float* row = b.set_bias() + r * At::BiasStride(b.m);
      for (uint32_t i = from + Lane(); i < to; i += 32) row[members[i] >> 12] = logf(static_cast<float>(members[i] & 4095));
      if (from == to && Lane() == 0) row[b.m.places] = 0;
    }
  }
  __syncthreads();
}

// Attention of one row and head to itself and its beam's earlier positions: eight lanes, four dimensions each from `at`.
template <int kS, int kD, int kM>
__device__ __forceinline__ void SelfRow(const Block<kS, kD, kM>& b, int layer, int head, int r, int at, const Planes& o) {
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
  StorePair<kS>(o, r, head * kHeadDim + at, v.x / sum, v.y / sum);
  StorePair<kS>(o, r, head * kHeadDim + at + 2, v.z / sum, v.w / sum);
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
        b.qkv()[(16 * m + Lane() / 4 + 8 * (i / 2)) * At::kQkvStride + kind * kHeadDim + 8 * t + 2 * (Lane() % 4) + i % 2] =
            acc[m][i];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < b.rows * (2 * kHeadDim / 4); i += kThreads) {
      const int r = i / 16, column = i % 16 * 4;
      *reinterpret_cast<float4*>(b.SelfKv(layer, b.step, b.first_row + r, head) + column) =
          *reinterpret_cast<const float4*>(b.qkv() + r * At::kQkvStride + kHeadDim + column);
    }
    if (threadIdx.x < At::kRows * kLanes) SelfRow(b, layer, head, threadIdx.x / kLanes, threadIdx.x % kLanes * kEach, o);
    __syncthreads();
    SendHead<kS>(b.mail, kSelfHeads, o, head);
  }
}

// x += o W^T in every block: less than an exchange would cost. `first`: this warp's first tile.
template <int kS, int kD, int kM>
__device__ void AddOutput(const Block<kS, kD, kM>& b, const void* packed, const Planes& o, Ahead<kS, kHeadsMax>& first) {
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

// Attention of row r to the members of its set, where places are too many for a table of all: a warp per row.
template <int kS, int kD, int kM>
__device__ void GatherRow(const Block<kS, kD, kM>& b, const float* rows, int r, int head, const float* q, const Planes& o) {
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

// One warp's share of a unit: queries of one tile, and keys split, split + splits, .. in blocks; a gathered unit's queries
// are left at `part`.
template <int kS, int kD, int kM>
__device__ __forceinline__ void AttendUnit(const Block<kS, kD, kM>& b, int layer, int branch, int head, int tile, int split,
                                           int splits, bool gathered, float* part) {
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
    AttendBlock<kS>(q, keys, block, now, [&](int t, int half) {
      return *reinterpret_cast<const float2*>(bias + half * 8 * row_step + block * kKeyBlock + 8 * t);
    }, &softmax, o);
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
  const auto part_of = [&](int i, int r) { return b.parts() + (i * kM + r / 16) * splits * kPartFloats + r % 16 * kPartStride; };
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
    if (!b.m.gate_reads_state) StorePair<kS>(near_planes, row, column, near[i / 2][i % 2 * 2], near[i / 2][i % 2 * 2 + 1]);
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
      const float open = 1.0f / (1.0f + __expf(-(gate[m][e] + __ldg(w.gate_b + column + e % 2))));
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

// x += FFN: hidden units are dealt to blocks and warps, shares of a row are summed by the block that owns it, which then
// sends the row to all.
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
    FfnShare<kS, kD, kM>(w.w1, w.w2, b.Narrow(At::kZ), 0, b.m.ffn / 32, b.rank + b.cluster * Warp(), b.cluster * kWarps, share);
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
__global__ void __launch_bounds__(kThreads, 1) StepKernel(const __grid_constant__ Model m, const Batch batch, int step,
                                                          uint32_t cluster) {
  extern __shared__ __align__(128) char shared[];
  using At = StepShared<kS, kD, kM>;
  const Group group = batch.group[blockIdx.x / cluster];
  if (group.user < 0) return;
  const UserInput& input = batch.user[group.user];
  const int live = step == 0 ? 1 : batch.live[(step - 1) * batch.users + group.user];
  if (group.first >= live) return;
  const Block<kS, kD, kM> b{m, batch, shared, input, group.user, step, input.first_row + group.first,
                            min(live - group.first, At::kRows), backstory::cuda::ClusterRank(), cluster,
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
  if (error == cudaSuccess) error = backstory::cuda::Allow(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1, &wide);
  cudaLaunchAttribute attributes[1];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster * batch.groups));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = StepShared<kS, kD, kM>::Bytes(model);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 1;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, model, batch, step, static_cast<uint32_t>(cluster));
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
    case 11: return StepShared<1, 32, 2>::Bytes(model);
    case 13: return StepShared<1, 96, 2>::Bytes(model);
    case 31: return StepShared<3, 32, 1>::Bytes(model);
    default: return StepShared<3, 96, 1>::Bytes(model);
  }
}

const char* LaunchStep(const Model& model, const Batch& batch, const Layout& layout, int step, void* stream) {
  const auto to = static_cast<cudaStream_t>(stream);
  switch (model.parts * 10 + model.d_pairs) {
    case 11: return LaunchRows<1, 32>(model, batch, layout, step, to);
    case 13: return LaunchRows<1, 96>(model, batch, layout, step, to);
    case 31: return LaunchRows<3, 32>(model, batch, layout, step, to);
    case 33: return LaunchRows<3, 96>(model, batch, layout, step, to);
    default: return "no decoder for this width";
  }
}

}  // namespace backstory::glass::cuda
