// A consumer warpgroup: the softmax and both products of 64 query rows. Over the size bar because its page loop and
// what that keeps in registers are best read in one piece.
#ifndef BACKSTORY_KERNELS_CUDA_CONSUMER_CUH_
#define BACKSTORY_KERNELS_CUDA_CONSUMER_CUH_

#include "kernels/cuda/attend.h"
#include "kernels/cuda/parts.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace backstory::cuda {

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
    if (group_ == 1) NamedArrive(TurnOf(0), 256);  // the first turn is group 0's
    for (bool more = true; more; q_.Next(), slot_.Next()) {
      barriers_.QFull(q_.stage).Wait(q_.phase);
      more = shared_.item[slot_.stage].next != 0;
      if (!more) LetNextKernelStart();
      DoItem(shared_.item[slot_.stage]);
    }
    if (group_ == 0) NamedSync(TurnOf(0), 256);  // takes the turn nobody used
  }

 private:
  static constexpr int kD = Shape::kD;

  __device__ __forceinline__ int TurnOf(int group) const { return 1 + group; }
  __device__ __forceinline__ void TakeTurn() { NamedSync(TurnOf(group_), 256); }
  __device__ __forceinline__ void PassTurn() { NamedArrive(TurnOf(1 - group_), 256); }
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
    const float* const above = &shared_.bias[stage][0][rows_.tile_row];
    const float* const below = &shared_.bias[stage][1][rows_.tile_row];
    if (notes.z) facts.bias.above[0] = above[0], facts.bias.above[1] = above[8];
    if (notes.w) facts.bias.below[0] = below[0], facts.bias.below[1] = below[8];
    return facts;
  }

  template <bool kFirst>
  __device__ __forceinline__ void Softmax(const PageFacts& facts, float (&s)[64], uint32_t (&p)[32],
                                          float (&rescale)[2]) {
    if (facts.boundary != 0 || facts.valid != kPageRows) ApplyBoundaries(facts.boundary, facts.valid, facts.bias, s);
    softmax_.Step<kFirst>(scale_, facts.bias.above, s, p, rescale);
  }

  static __device__ __forceinline__ void Rescale(const float (&rescale)[2], float (&o)[kD / 2]) {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] *= rescale[i / 2 % 2];
  }

  __device__ __forceinline__ void DoItem(const WorkItem& item) {
    float o[kD / 2];
    const int pages = item.page_end - item.page_begin;
    if (pages == 0) {
      Release(barriers_.QEmpty(q_.stage));
      if (item.rows == 0) return;
      rows_.Start(item, softmax_, o);
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
    rows_.Start(item, softmax_, o);
    PageFacts facts = ReadFacts(k_.stage);
    WgmmaWait<0>();
    Pin(s);
    Release(barriers_.KEmpty(k_.stage));
    k_.Next();
    Softmax<true>(facts, s, p, rescale);
    Rescale(rescale, o);
    int split = item.split_begin, left = item.split_pages;  // pages of this split yet to be seen
    for (int j = 1; j < pages; ++j) {
      barriers_.KFull(k_.stage).Wait(k_.phase);
      TakeTurn();
      IssueQk(k_.stage, s);
      barriers_.VFull(v_.stage).Wait(v_.phase);
      IssuePv(v_.stage, p, o);
      facts = ReadFacts(k_.stage);
      WgmmaWait<1>();
      Pin(s);
      PassTurn();
      Release(barriers_.KEmpty(k_.stage));
      k_.Next();
      uint32_t weights[32];
      if (--left == 0) {
        WgmmaWait<0>();
        Pin(o);
        EndSplit(item, split++, o);
        left = item.split_pages;
        Softmax<true>(facts, s, weights, rescale);
      } else {
        Softmax<false>(facts, s, weights, rescale);
      }
      WgmmaWait<0>();
      Pin(o);
      if (__any_sync(0xffffffff, rescale[0] != 1 || rescale[1] != 1)) Rescale(rescale, o);
      Release(barriers_.VEmpty(v_.stage));
      v_.Next();
#pragma unroll
      for (int i = 0; i < 32; ++i) p[i] = weights[i] | zero_;
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
    for (int r = 0; r < 2; ++r) row[r] = item.row + rows_.tile_row + 8 * r;
    const bool write[2] = {rows_.tile_row < item.rows, rows_.tile_row + 8 < item.rows};
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
        if (write[0]) rows_.StorePair(row[0], item.head, n, x.x * inverse[0], x.y * inverse[0]);
        if (write[1]) rows_.StorePair(row[1], item.head, n, x.z * inverse[1], x.w * inverse[1]);
      });
      if (item.together) parts.Leave(item);
      if (begin == 0) rows_.StoreLse(item, row, write, top, sum);
      return;
    }
    sum[0] = QuadSum(sum[0]);
    sum[1] = QuadSum(sum[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (write[r])
        rows_.StoreRow(o, r, Inverse(sum[r]), row[r] * a_.o_stride + item.head * kD + 2 * (threadIdx.x % 4));
    }
    rows_.StoreLse(item, row, write, top, sum);
  }

  const AttendArgs& a_;
  AttendShared<Shape>& shared_;
  const int warp_, group_;  // of the consumers
  RunningTotal<kD> total_;
  const AttendBarriers<Shape> barriers_;
  const uint32_t q_word_, k_word_, v_word_;  // descriptors of this group's first Q, the first K and V
  const float scale_ = a_.scale * kLog2E;    // to powers of two
  const uint32_t zero_ =
      static_cast<uint32_t>(a_.kv_heads) >> 31;  // the compiler must not merge p with the next page's
  const ThreadRows<kD> rows_{a_, warp_ * 16 + static_cast<int>(threadIdx.x) % 32 / 4};
  Ring<Shape::kStages> k_, v_;
  Ring<Shape::kQStages> q_;
  Ring<Shape::kItems> slot_;
  OnlineSoftmax softmax_;
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_CONSUMER_CUH_
