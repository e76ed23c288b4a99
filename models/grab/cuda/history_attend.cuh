// Attention of history rows among themselves on tensor cores. A block takes 128 query rows of one head: a producer
// thread feeds pages of K and V, newest first, to two consumer warpgroups of 64 rows, which take turns on the tensor
// cores as kernels/cuda/consumer.cuh has them. What is GRAB's, the bias and the mask of every pair, is
// history_bias.cuh's. Over the size bar because the page loop and what it keeps in registers are best read in one
// piece.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_ATTEND_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_ATTEND_CUH_

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "models/grab/cuda/history_bias.cuh"
#include "models/grab/cuda/history_kernels.h"
#include "models/grab/cuda/history_tile.cuh"

namespace backstory::grab {

template <class Shape>
__device__ __forceinline__ void Produce(const CudaHistoryArgs& a, const cuda::AttendMaps& maps, const HistoryTile& tile,
                                        HistoryShared<Shape>& shared) {
  const HistoryBarriers<Shape> barriers(shared);
  const int32_t* const blocks = a.channel[tile.channel].blocks;
  cuda::Ring<Shape::kKStages> k;
  cuda::Ring<Shape::kVStages> v;
  barriers.QFull().ArriveExpecting(Shape::kQBytes);
  cuda::LoadBox5(&maps.q, barriers.QFull(), shared.q, 0, tile.row, 0, tile.head, tile.channel);
  int next = blocks[tile.page_last];
  for (int page = tile.page_last; page >= tile.page_begin; --page, k.Next(), v.Next()) {
    const int block = next;
    if (page > tile.page_begin) next = blocks[page - 1];
    barriers.KEmpty(k.stage).Wait(k.phase ^ 1);
    barriers.KFull(k.stage).ArriveExpecting(Shape::kPageBytes);
    cuda::LoadBox5(&maps.k, barriers.KFull(k.stage), shared.k[k.stage], 0, 0, 0, tile.head, block);
    barriers.VEmpty(v.stage).Wait(v.phase ^ 1);
    barriers.VFull(v.stage).ArriveExpecting(Shape::kPageBytes);
    cuda::LoadBox5(&maps.v, barriers.VFull(v.stage), shared.v[v.stage], 0, 0, 0, tile.head, block);
  }
}

template <class Shape>
class HistoryConsumer {
 public:
  __device__ HistoryConsumer(const CudaHistoryArgs& args, const HistoryTile& tile, HistoryShared<Shape>& shared)
      : a_(args),
        tile_(tile),
        warp_(__shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 32), 0) - 4),  // tells the compiler: uniform
        group_(warp_ / 4),
        barriers_(shared),
        q_word_(Uniform(cuda::MatrixWord(cuda::SharedAddress(shared.q) + group_ * 64 * 128, 16))),
        k_word_(Uniform(cuda::MatrixWord(cuda::SharedAddress(shared.k), 16))),
        v_word_(Uniform(cuda::MatrixWord(cuda::SharedAddress(shared.v), Shape::kPageRows * 128))),
        bias_(args, tile.channel, tile.head, tile.row + warp_ * 16 + static_cast<int>(threadIdx.x) % 32 / 4,
              tile.page_newest, reinterpret_cast<float*>(&shared + 1) + warp_ * 16 * HistoryTimeStride(args.n_time)) {}

  __device__ __forceinline__ void Run() {
    if (group_ == 1) cuda::NamedArrive(TurnOf(0), 256);  // the first turn is group 0's
    float o[kD / 2];
    Pages(o);
    if (group_ == 0) cuda::NamedSync(TurnOf(0), 256);  // takes the turn nobody used
    Store(o);
  }

 private:
  static constexpr int kD = Shape::kD;

  __device__ __forceinline__ int TurnOf(int group) const { return 1 + group; }
  __device__ __forceinline__ void TakeTurn() { cuda::NamedSync(TurnOf(group_), 256); }
  __device__ __forceinline__ void PassTurn() { cuda::NamedArrive(TurnOf(1 - group_), 256); }
  __device__ __forceinline__ void Release(cuda::BarrierAt empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) empty.Arrive();
  }
  // The same in every lane, and known to be: matrix instructions take descriptors from uniform registers.
  static __device__ __forceinline__ uint32_t Uniform(uint32_t x) { return __reduce_or_sync(0xffffffff, x); }

  // s = Q K^T of a page, issued, not awaited.
  __device__ __forceinline__ void IssueQk(int stage, float (&s)[64]) {
    const uint32_t k = k_word_ + stage * (Shape::kPageBytes / 16);
    cuda::Pin(s);
    cuda::WgmmaFence();
#pragma unroll
    for (int x = 0; x < kD / 16; ++x) {
      const int half = x / 4, step = x % 4 * 2;
      cuda::Wgmma128(s, cuda::Descriptor(q_word_ + half * (Shape::kTileRows * 128 / 16) + step),
                     cuda::Descriptor(k + half * (Shape::kPageRows * 128 / 16) + step), x != 0);
    }
    cuda::WgmmaCommit();
  }

  // o += P V of a page, issued, not awaited.
  __device__ __forceinline__ void IssuePv(int stage, const uint32_t (&p)[32], float (&o)[kD / 2]) {
    const uint32_t v = v_word_ + stage * (Shape::kPageBytes / 16);
    cuda::Pin(o);
    cuda::WgmmaFence();
#pragma unroll
    for (int x = 0; x < Shape::kPageRows / 16; ++x) {
      cuda::WgmmaAccumulate(o, p + 4 * x, cuda::Descriptor(v + x * (16 * 128 / 16)));
    }
    cuda::WgmmaCommit();
  }

  __device__ __forceinline__ void Softmax(const PageLook& look, int page, float (&s)[64], uint32_t (&p)[32],
                                          float (&rescale)[2]) {
    cuda::PageBias bias;
    bias_.Add(look, page, s, bias.above);
    softmax_.Step<false>(scale_, bias.above, s, p, rescale);
  }

  __device__ __forceinline__ void Pages(float (&o)[kD / 2]) {
    float s[64], rescale[2];
    uint32_t p[32];
    bias_.Start();
    barriers_.QFull().Wait(0);
    barriers_.KFull(k_.stage).Wait(k_.phase);
    IssueQk(k_.stage, s);
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] = 0;
    bias_.FinishStart();
    PageLook look = bias_.Look(tile_.page_last);
    cuda::WgmmaWait<0>();
    cuda::Pin(s);
    Release(barriers_.KEmpty(k_.stage));
    k_.Next();
    Softmax(look, tile_.page_last, s, p, rescale);
    for (int page = tile_.page_last - 1; page >= tile_.page_begin; --page) {
      barriers_.KFull(k_.stage).Wait(k_.phase);
      TakeTurn();
      IssueQk(k_.stage, s);
      barriers_.VFull(v_.stage).Wait(v_.phase);
      IssuePv(v_.stage, p, o);
      look = bias_.Look(page);
      cuda::WgmmaWait<1>();
      cuda::Pin(s);
      PassTurn();
      Release(barriers_.KEmpty(k_.stage));
      k_.Next();
      uint32_t weights[32];
      Softmax(look, page, s, weights, rescale);
      cuda::WgmmaWait<0>();
      cuda::Pin(o);
      if (__any_sync(0xffffffff, rescale[0] != 1 || rescale[1] != 1)) {
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) o[i] *= rescale[i / 2 % 2];
      }
      Release(barriers_.VEmpty(v_.stage));
      v_.Next();
#pragma unroll
      for (int i = 0; i < 32; ++i) p[i] = weights[i] | zero_;
    }
    barriers_.VFull(v_.stage).Wait(v_.phase);
    IssuePv(v_.stage, p, o);
    cuda::WgmmaWait<0>();
    cuda::Pin(o);
  }

  __device__ __forceinline__ void Store(const float (&o)[kD / 2]) const {
    if (a_.splits > 1) {
      StorePart(o);
      return;
    }
    const int first = warp_ * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const float inverse[2] = {cuda::Inverse(cuda::QuadSum(softmax_.sum[0])),
                              cuda::Inverse(cuda::QuadSum(softmax_.sum[1]))};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + 8 * r;
      if (row >= tile_.rows) continue;
      auto* const to = static_cast<__nv_bfloat16*>(a_.o) +
                       ((tile_.channel * a_.chunk_rows + tile_.row + row) * a_.heads + tile_.head) * kD +
                       2 * (threadIdx.x % 4);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        *reinterpret_cast<uint32_t*>(to + 8 * n) =
            cuda::PackBf16(o[4 * n + 2 * r] * inverse[r], o[4 * n + 2 * r + 1] * inverse[r]);
      }
    }
  }

  __device__ __forceinline__ void StorePart(const float (&o)[kD / 2]) const {
    float* const part = tile_.Part(a_, static_cast<int>(blockIdx.z), Shape::kTileRows, kD);
    const int first = warp_ * 16 + static_cast<int>(threadIdx.x) % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float* const to = part + (first + 8 * r) * (kD + 2);
      const float sum = cuda::QuadSum(softmax_.sum[r]);
      if (column == 0) *reinterpret_cast<float2*>(to + kD) = make_float2(softmax_.top[r], sum);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        *reinterpret_cast<float2*>(to + column + 8 * n) = make_float2(o[4 * n + 2 * r], o[4 * n + 2 * r + 1]);
      }
    }
  }

  const CudaHistoryArgs& a_;
  const HistoryTile& tile_;
  const int warp_, group_;  // of the consumers
  const HistoryBarriers<Shape> barriers_;
  const uint32_t q_word_, k_word_, v_word_;                      // descriptors of this group's Q, the first K and V
  const float scale_ = a_.scale * cuda::kLog2E;                  // to powers of two
  const uint32_t zero_ = static_cast<uint32_t>(a_.heads) >> 31;  // the compiler must not merge p with the next page's
  HistoryBias bias_;
  cuda::Ring<Shape::kKStages> k_;
  cuda::Ring<Shape::kVStages> v_;
  cuda::OnlineSoftmax softmax_{{kNoKeySeen, kNoKeySeen}, {0, 0}};
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    HistoryKernel(const __grid_constant__ CudaHistoryArgs args, const __grid_constant__ cuda::AttendMaps maps) {
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<HistoryShared<Shape>*>(raw);
  const HistoryTile tile(args, Shape::kTileRows, static_cast<int>(blockIdx.z));
  if (tile.rows == 0) return;
  if (threadIdx.x == 0) {
    const HistoryBarriers<Shape> barriers(shared);
    cuda::PrefetchTensorMap(&maps.q);
    cuda::PrefetchTensorMap(&maps.k);
    cuda::PrefetchTensorMap(&maps.v);
    barriers.QFull().Init(1);
    for (int i = 0; i < Shape::kKStages; ++i) {
      barriers.KFull(i).Init(1);
      barriers.KEmpty(i).Init(Shape::kConsumerWarps);
    }
    for (int i = 0; i < Shape::kVStages; ++i) {
      barriers.VFull(i).Init(1);
      barriers.VEmpty(i).Init(Shape::kConsumerWarps);
    }
    cuda::FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    cuda::ShrinkRegisters<24>();
    if (threadIdx.x == 0) Produce<Shape>(args, maps, tile, shared);
  } else {
    cuda::GrowRegisters<240>();
    HistoryConsumer<Shape>(args, tile, shared).Run();
  }
}

// Joins a tile's splits: a block per tile and head, in the attention's grid.
template <class Shape>
__global__ void __launch_bounds__(256) JoinHistoryKernel(const __grid_constant__ CudaHistoryArgs a) {
  constexpr int kD = Shape::kD;
  const HistoryTile tile(a, Shape::kTileRows, 0);
  for (int i = threadIdx.x; i < tile.rows * (kD / 2); i += 256) {
    const int row = i / (kD / 2), column = i % (kD / 2) * 2;
    const float* const part = tile.Part(a, 0, Shape::kTileRows, kD) + row * (kD + 2);
    constexpr int kNext = Shape::kTileRows * (kD + 2);
    float top = kNoKeySeen;
    for (int s = 0; s < tile.splits; ++s) top = fmaxf(top, part[s * kNext + kD]);
    float sum = 0;
    float2 o = {0, 0};
    for (int s = 0; s < tile.splits; ++s) {
      const float2 end = *reinterpret_cast<const float2*>(part + s * kNext + kD);
      const float2 more = *reinterpret_cast<const float2*>(part + s * kNext + column);
      const float weight = cuda::Exp2(end.x - top);
      sum = fmaf(weight, end.y, sum);
      o = {fmaf(weight, more.x, o.x), fmaf(weight, more.y, o.y)};
    }
    auto* const to = static_cast<__nv_bfloat16*>(a.o) +
                     ((tile.channel * a.chunk_rows + tile.row + row) * a.heads + tile.head) * kD + column;
    *reinterpret_cast<uint32_t*>(to) = cuda::PackBf16(o.x / sum, o.y / sum);
  }
}

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_ATTEND_CUH_
