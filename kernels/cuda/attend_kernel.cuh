// The attention kernel. A block is one producer warp, which feeds Q, K and V to shared memory with the tensor copy engine,
// and two consumer warpgroups of 64 query rows each. While one warpgroup's products Q K(j+1) and P(j) V(j) run on the
// tensor cores, the other does its softmax: they hand each other the tensor cores with named barriers (ping-pong).
#ifndef BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_
#define BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_

#ifndef BS_FIN
#define BS_FIN 1
#endif
#ifndef BS_LATE
#define BS_LATE 1
#endif
#ifndef BS_RP
#define BS_RP 40
#define BS_RC 232
#endif
#ifndef BS_PP
#define BS_PP 1
#endif
#include <cstddef>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace backstory::cuda {

template <int kDh, int kStageCount, int kQCount>
struct AttendShape {
  static constexpr int kD = kDh, kStages = kStageCount, kQStages = kQCount;
  static constexpr int kGroups = 2;  // consumer warpgroups
  static constexpr int kTileRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kConsumerWarps = 4 * kGroups;
  static constexpr int kQBytes = kTileRows * kD * 2;
  static constexpr int kPageBytes = kPageRows * kD * 2;
  // An item is in use until its result is written, its Q only until the last product with K.
  static constexpr int kItems = kQStages + 1;
};

template <class Shape>
struct AttendShared {
  alignas(1024) unsigned char q[Shape::kQStages][Shape::kQBytes];  // [halves][tile rows][64], swizzled
  alignas(1024) unsigned char k[Shape::kStages][Shape::kPageBytes];  // [halves][128][64], swizzled; v too
  alignas(1024) unsigned char v[Shape::kStages][Shape::kPageBytes];
  alignas(128) float total[Shape::kConsumerWarps][PartLayout<Shape::kD>::kOutput * 128];  // of an item's splits
  float bias[Shape::kStages][2][Shape::kTileRows];  // of the page in k: above, below the boundary
  int4 notes[Shape::kStages];  // of the page in k: boundary, valid rows, whether there is a bias above and below
  WorkItem item[Shape::kItems];
  uint64_t q_full[Shape::kQStages], q_empty[Shape::kQStages];
  uint64_t k_full[Shape::kStages], k_empty[Shape::kStages];
  uint64_t v_full[Shape::kStages], v_empty[Shape::kStages];
};

// The barriers of AttendShared by address: its base is worked out once, not at every use.
template <class Shape>
struct AttendBarriers {
  using Shared = AttendShared<Shape>;
  uint32_t base;
  __device__ explicit AttendBarriers(const Shared& shared) : base(SharedAddress(&shared)) { asm volatile("" : "+r"(base)); }
  __device__ __forceinline__ BarrierAt At(size_t offset, int i) const {
    return {base + static_cast<uint32_t>(offset) + 8 * static_cast<uint32_t>(i)};
  }
  __device__ __forceinline__ BarrierAt QFull(int i) const { return At(offsetof(Shared, q_full), i); }
  __device__ __forceinline__ BarrierAt QEmpty(int i) const { return At(offsetof(Shared, q_empty), i); }
  __device__ __forceinline__ BarrierAt KFull(int i) const { return At(offsetof(Shared, k_full), i); }
  __device__ __forceinline__ BarrierAt KEmpty(int i) const { return At(offsetof(Shared, k_empty), i); }
  __device__ __forceinline__ BarrierAt VFull(int i) const { return At(offsetof(Shared, v_full), i); }
  __device__ __forceinline__ BarrierAt VEmpty(int i) const { return At(offsetof(Shared, v_empty), i); }
};

// Which stage of a ring, and the parity of its current phase.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

struct AttendMaps {
  CUtensorMap q, k, v;
};

// Everything a consumer needs comes through shared memory: the work item with Q, a page's entry and biases with K.
template <class Shape>
__device__ __forceinline__ void Produce(const AttendArgs& a, const AttendMaps& maps, AttendShared<Shape>& shared) {
  const AttendBarriers<Shape> barriers(shared);
  Ring<Shape::kStages> ring;
  Ring<Shape::kQStages> q;
  Ring<Shape::kItems> slot;
  for (int i = blockIdx.x;; q.Next(), slot.Next()) {
    barriers.QEmpty(q.stage).Wait(q.phase ^ 1);
    const WorkItem& item = shared.item[slot.stage];
    shared.item[slot.stage] = a.items[i];
    const int head = item.head, kv_head = head / (a.heads / a.kv_heads), page_end = item.page_end;
    int page = item.page_begin;
    if (page == page_end) {
      barriers.QFull(q.stage).Arrive();
    } else {
      barriers.QFull(q.stage).ArriveExpecting(Shape::kQBytes);
      LoadBox4(&maps.q, barriers.QFull(q.stage), shared.q[q.stage], 0, item.row, 0, head);
    }
    PageEntry next;
    if (page < page_end) next = a.pages[page];
    while (page < page_end) {
      const PageEntry entry = next;
      if (++page < page_end) next = a.pages[page];
      const BarrierAt full = barriers.KFull(ring.stage);
      barriers.KEmpty(ring.stage).Wait(ring.phase ^ 1);
      const bool above = entry.segment_above >= 0, below = entry.boundary > 0 && entry.segment_below >= 0;
      shared.notes[ring.stage] = make_int4(entry.boundary, entry.valid, above, below);
      const uint32_t bias_bytes = (item.rows + 3) / 4 * 16;
      full.ArriveExpecting(Shape::kPageBytes + (above ? bias_bytes : 0) + (below ? bias_bytes : 0));
      LoadBox5(&maps.k, full, shared.k[ring.stage], 0, 0, 0, kv_head, entry.page);
      const float* const table = a.bias + item.bias;
      const int64_t stride = item.bias_stride;
      if (above) LoadBytes(full, shared.bias[ring.stage][0], table + entry.segment_above * stride, bias_bytes);
      if (below) LoadBytes(full, shared.bias[ring.stage][1], table + entry.segment_below * stride, bias_bytes);
      barriers.VEmpty(ring.stage).Wait(ring.phase ^ 1);
      barriers.VFull(ring.stage).ArriveExpecting(Shape::kPageBytes);
      LoadBox5(&maps.v, barriers.VFull(ring.stage), shared.v[ring.stage], 0, 0, 0, kv_head, entry.page);
      ring.Next();
    }
    i = item.next;
    if (i == 0) return;
  }
}

// One consumer warpgroup: the softmax and both products of 64 query rows.
template <class Shape>
class Consumer {
 public:
  __device__ Consumer(const AttendArgs& args, AttendShared<Shape>& shared)
      : a_(args),
        shared_(shared),
        warp_(__shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0) - 4),  // tells the compiler: uniform
        group_(warp_ / 4),
        total_(shared.total[warp_]),
        barriers_(shared),
        q_word_(Uniform(MatrixWord(SharedAddress(shared.q) + group_ * 64 * 128, 16))),
        k_word_(Uniform(MatrixWord(SharedAddress(shared.k), 16))),
        v_word_(Uniform(MatrixWord(SharedAddress(shared.v), kPageRows * 128))) {}

  __device__ __forceinline__ void Run() {
    if (BS_PP && group_ == 1) NamedArrive(TurnOf(0), 256);  // the first turn is group 0's
    for (bool more = true; more; q_.Next(), slot_.Next()) {
      barriers_.QFull(q_.stage).Wait(q_.phase);
      more = shared_.item[slot_.stage].next != 0;
      if (!more && a_.overlap_previous) LetNextKernelStart();
      DoItem(shared_.item[slot_.stage]);
    }
    if (BS_PP && group_ == 0) NamedSync(TurnOf(0), 256);  // takes the turn nobody used
  }

 private:
  static constexpr int kD = Shape::kD;

  __device__ __forceinline__ int TurnOf(int group) const { return 1 + group; }
  __device__ __forceinline__ void TakeTurn() { if (BS_PP) NamedSync(TurnOf(group_), 256); }
  __device__ __forceinline__ void PassTurn() { if (BS_PP) NamedArrive(TurnOf(1 - group_), 256); }
  __device__ __forceinline__ void Release(BarrierAt empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) empty.Arrive();
  }

  // The same in every lane, and known to be: matrix instructions take descriptors from uniform registers.
  static __device__ __forceinline__ uint32_t Uniform(uint32_t x) { return __reduce_or_sync(0xffffffff, x); }

  // s = Q K^T of a page, issued, not awaited.
  __device__ __forceinline__ void IssueQk(int stage, float (&s)[64]) {
    const uint32_t q = q_word_ + q_.stage * (Shape::kQBytes / 16), k = k_word_ + stage * (Shape::kPageBytes / 16);
    Pin(s);
    WgmmaFence();
#pragma unroll
    for (int x = 0; x < kD / 16; ++x) {
      const int half = x / 4, step = x % 4 * 2;
      Wgmma128(s, Descriptor(q + half * (Shape::kTileRows * 128 / 16) + step),
               Descriptor(k + half * (kPageRows * 128 / 16) + step), x != 0);
    }
    WgmmaCommit();
  }

  // o += P V of a page, issued, not awaited.
  __device__ __forceinline__ void IssuePv(int stage, const uint32_t (&p)[32], float (&o)[kD / 2]) {
    const uint32_t v = v_word_ + stage * (Shape::kPageBytes / 16);
    Pin(o);
    WgmmaFence();
#pragma unroll
    for (int x = 0; x < kPageRows / 16; ++x) WgmmaAccumulate(o, p + 4 * x, Descriptor(v + x * (16 * 128 / 16)));
    WgmmaCommit();
  }

  // What came with a page of K. Read while the page's own product runs.
  struct PageFacts {
    int boundary, valid;
    PageBias bias;
  };
  __device__ __forceinline__ PageFacts ReadFacts(int stage) const {
    const int4 notes = shared_.notes[stage];
    PageFacts facts{notes.x, notes.y, {}};
    const float* const above = &shared_.bias[stage][0][tile_row_];
    const float* const below = &shared_.bias[stage][1][tile_row_];
    if (notes.z) facts.bias.above[0] = above[0], facts.bias.above[1] = above[8];
    if (notes.w) facts.bias.below[0] = below[0], facts.bias.below[1] = below[8];
    return facts;
  }

  // The logits of a page are there: frees K, leaves exp2 of the logits in s.
  __device__ __forceinline__ void Softmax(const PageFacts& facts, float (&s)[64], float (&rescale)[2]) {
    if (facts.boundary != 0 || facts.valid != kPageRows) ApplyBoundaries(facts.boundary, facts.valid, facts.bias, s);
    softmax_.Step(scale_, facts.bias.above, s, rescale);
  }

  static __device__ __forceinline__ void ToBf16(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) p[i] = PackBf16(s[2 * i], s[2 * i + 1]);
  }

  static __device__ __forceinline__ void Rescale(const float (&rescale)[2], float (&o)[kD / 2]) {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] *= rescale[i / 2 % 2];
  }

  // The self key's logit and value, or nothing: where the online softmax starts.
  __device__ __forceinline__ void Start(const WorkItem& item, float (&o)[kD / 2]) {
    softmax_ = OnlineSoftmax();
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] = 0;
    if (a_.self_k == nullptr || item.split_begin != 0) return;
    const int lane = threadIdx.x % 4, kv_head = item.head / (a_.heads / a_.kv_heads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int in_tile = min(tile_row_ + 8 * r, item.rows - 1);  // rows beyond the last are computed, never written
      const int64_t row = item.row + in_tile;
      const auto* q = static_cast<const __nv_bfloat16*>(a_.q) + row * a_.q_stride + item.head * kD;
      const auto* k = static_cast<const __nv_bfloat16*>(a_.self_k) + row * a_.self_stride + kv_head * kD;
      const auto* v = static_cast<const __nv_bfloat16*>(a_.self_v) + row * a_.self_stride + kv_head * kD;
      float dot = 0;
#pragma unroll
      for (int x = 0; x < kD / 8; ++x) {  // each lane takes every fourth pair, as it does of v
        const float2 qx = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q + 8 * x + 2 * lane));
        const float2 kx = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(k + 8 * x + 2 * lane));
        const float2 vx = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(v + 8 * x + 2 * lane));
        dot += qx.x * kx.x + qx.y * kx.y;
        o[4 * x + 2 * r] = vx.x;
        o[4 * x + 2 * r + 1] = vx.y;
      }
      float bias = 0;
      if (item.self_segment >= 0) bias = a_.bias[item.bias + int64_t{item.self_segment} * item.bias_stride + in_tile];
      softmax_.top[r] = (QuadSum(dot) + bias) * scale_;
      softmax_.sum[r] = lane == 0 ? 1 : 0;
    }
  }

  __device__ __forceinline__ void DoItem(const WorkItem& item) {
    float o[kD / 2];
    const int pages = item.page_end - item.page_begin;
    if (pages == 0) {
      Release(barriers_.QEmpty(q_.stage));
      if (item.rows == 0) return;
      Start(item, o);
    } else {
      Pages(item, pages, o);
    }
    Finish(item, o);
  }

  __device__ __forceinline__ void Pages(const WorkItem& item, int pages, float (&o)[kD / 2]) {
    float s[64], rescale[2];
    uint32_t p[32];
    barriers_.KFull(k_.stage).Wait(k_.phase);
    IssueQk(k_.stage, s);
    Start(item, o);
    PageFacts facts = ReadFacts(k_.stage);
    WgmmaWait<0>();
    Pin(s);
    Release(barriers_.KEmpty(k_.stage));
    k_.Next();
    Softmax(facts, s, rescale);
    ToBf16(s, p);
    Rescale(rescale, o);
    int split = item.split_begin, left = item.split_pages;  // pages of this split yet to be seen
    for (int j = 1; j < pages; ++j) {
      barriers_.KFull(k_.stage).Wait(k_.phase);
      TakeTurn();
      IssueQk(k_.stage, s);
      barriers_.VFull(v_.stage).Wait(v_.phase);
      IssuePv(v_.stage, p, o);
      if (!BS_LATE) PassTurn();
      facts = ReadFacts(k_.stage);
      WgmmaWait<1>();
      Pin(s);
      if (BS_LATE) PassTurn();
      Release(barriers_.KEmpty(k_.stage));
      k_.Next();
      if (--left == 0) {
        WgmmaWaitRare();
        Pin(o);
        EndSplit(item, split++, o);
        left = item.split_pages;
      }
      Softmax(facts, s, rescale);
      // The condition reads the sums, so that the exponentials come before the wait for P V: the assembler likes to move waits
      // up and then P V overlaps nothing.
      const bool finite = !BS_FIN || softmax_.sum[0] + softmax_.sum[1] < __builtin_huge_valf();
      if (__any_sync(0xffffffff, rescale[0] != 1 || rescale[1] != 1 || !finite)) {
        WgmmaWaitRare();
        Pin(o);
        Rescale(rescale, o);  // to nothing where a split begins
      } else {
        WgmmaWait<0>();
        Pin(o);
      }
      Release(barriers_.VEmpty(v_.stage));
      v_.Next();
      ToBf16(s, p);
    }
    Release(barriers_.QEmpty(q_.stage));
    barriers_.VFull(v_.stage).Wait(v_.phase);
    IssuePv(v_.stage, p, o);
    WgmmaWait<0>();
    Pin(o);
    Release(barriers_.VEmpty(v_.stage));
    v_.Next();
  }

  // A split other than the item's last is complete: puts its result where it is merged, and begins anew.
  __device__ __forceinline__ void EndSplit(const WorkItem& item, int split, const float (&o)[kD / 2]) {
    if (item.split_begin == 0) {
      total_.Add(o, softmax_.top, softmax_.sum);
    } else {
      Parts<kD, Shape::kConsumerWarps>(a_, item, warp_).Store(split, o, softmax_.top, softmax_.sum);
    }
    softmax_ = OnlineSoftmax();
  }

  // Writes the result, or this item's part of it; the warp that comes last merges the parts of its 16 rows.
  __device__ __forceinline__ void Finish(const WorkItem& item, float (&o)[kD / 2]) {
    float top[2] = {softmax_.top[0], softmax_.top[1]}, sum[2] = {softmax_.sum[0], softmax_.sum[1]};
    if (item.split_begin == 0 && item.split_end > 1) {
      total_.AddInto(o, top, sum);
      total_.Clear();
    }
    int64_t row[2];  // where this thread's rows go
#pragma unroll
    for (int r = 0; r < 2; ++r) row[r] = item.row + tile_row_ + 8 * r;
    const bool write[2] = {tile_row_ < item.rows, tile_row_ + 8 < item.rows};
    if (item.tile_items > 1) {
      Parts<kD, Shape::kConsumerWarps> parts(a_, item, warp_);
      parts.Store(item.split_begin == 0 ? 0 : item.split_end - 1, o, top, sum);
      int begin = 0, end = kD / 8;  // column blocks for this item to merge
      if (item.together) {
        parts.Meet(item);
        begin = item.tile_item * end / item.tile_items;
        end = (item.tile_item + 1) * end / item.tile_items;
      } else if (!parts.IsLast(item)) {
        return;
      }
      float inverse[2] = {0, 0};
      parts.Merge(item, begin, end, shared_.total[warp_], top, sum, inverse, [&](int n, const float4& x) {
        if (write[0]) StorePair(row[0], item.head, n, x.x * inverse[0], x.y * inverse[0]);
        if (write[1]) StorePair(row[1], item.head, n, x.z * inverse[1], x.w * inverse[1]);
      });
      if (item.together) parts.Leave(item);
      if (begin == 0) StoreLse(item, row, write, top, sum);
      return;
    }
    sum[0] = QuadSum(sum[0]);
    sum[1] = QuadSum(sum[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = Inverse(sum[r]);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        if (write[r]) StorePair(row[r], item.head, n, o[4 * n + 2 * r] * inverse, o[4 * n + 2 * r + 1] * inverse);
      }
    }
    StoreLse(item, row, write, top, sum);
  }

  // Two neighbouring columns of block n.
  __device__ __forceinline__ void StorePair(int64_t row, int head, int n, float x, float y) const {
    const int64_t to = row * a_.o_stride + head * kD + 8 * n + 2 * (threadIdx.x % 4);
    if (a_.o_is_float) {
      *reinterpret_cast<float2*>(static_cast<float*>(a_.o) + to) = make_float2(x, y);
    } else {
      *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(a_.o) + to) = PackBf16(x, y);
    }
  }
  __device__ __forceinline__ void StoreLse(const WorkItem& item, const int64_t (&row)[2], const bool (&write)[2],
                                           const float (&top)[2], const float (&sum)[2]) const {
    if (a_.lse == nullptr || threadIdx.x % 4 != 0) return;
    constexpr float kLn2 = 0.693147180559945309f;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!write[r]) continue;
      a_.lse[row[r] * a_.heads + item.head] = sum[r] > 0 ? (top[r] + log2f(sum[r])) * kLn2 : kNegativeInfinity;
    }
  }

  const AttendArgs& a_;
  AttendShared<Shape>& shared_;
  const int warp_, group_;  // of the consumers
  RunningTotal<kD> total_;
  const AttendBarriers<Shape> barriers_;
  const uint32_t q_word_, k_word_, v_word_;  // descriptors of this group's first Q, the first K and V
  const float scale_ = a_.scale * 1.44269504088896341f;  // to powers of two
  // This thread's rows of the tile: this one and the eighth after it.
  const int tile_row_ = warp_ * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  Ring<Shape::kStages> k_, v_;
  Ring<Shape::kQStages> q_;
  Ring<Shape::kItems> slot_;
  OnlineSoftmax softmax_;
};

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
    ShrinkRegisters<BS_RP>();
    if (threadIdx.x == 0) {
      if (args.overlap_previous) WaitForPreviousKernel();
      Produce<Shape>(args, maps, shared);
    }
  } else {
    GrowRegisters<BS_RC>();
    if (args.overlap_previous) WaitForPreviousKernel();
    Consumer<Shape>(args, shared).Run();
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_ATTEND_KERNEL_CUH_
