// Attention of a few appended rows: the pages of a head are split over blocks, a page's keys over warps, and every warp
// keeps its own online softmax. Position and time bias are added to each key before its product with q, so no table of
// biases is made. Over the size bar because a warp's softmax, from its keys to its part, is best read in one piece.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_APPEND_ATTEND_CUH_
#define BACKSTORY_MODELS_GRAB_CUDA_APPEND_ATTEND_CUH_

#include <cuda_bf16.h>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax.cuh"
#include "models/grab/cuda/append.h"

namespace backstory::grab {

inline constexpr int kAppendThreads = 512, kAppendWarps = kAppendThreads / 32;

// The widest input of a product, in elements of 16 bytes' multiples.
__host__ __device__ inline int AppendInputWidth(const CudaWidths& w) {
  const int a = w.stride > w.wide ? w.stride : w.wide, b = w.ffn > w.inner ? w.ffn : w.inner;
  return ((a > b ? a : b) + 7) / 8 * 8;
}

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

// Eight bf16 values.
struct Eight {
  uint4 v;
  __device__ __forceinline__ float operator[](int i) const {
    const uint32_t word = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000);
  }
};
__device__ __forceinline__ Eight Load8(const __nv_bfloat16* from) { return {*reinterpret_cast<const uint4*>(from)}; }
__device__ __forceinline__ float Dot(const Eight& a, const Eight& b, float sum) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

template <int kRows, int kD>
class AppendAttention {
 public:
  // `shared`: [warps][kRows][2 + kD], then [kRows][n_time] of bucket_begin. All threads, before a barrier of the block.
  __device__ AppendAttention(const CudaAppendArgs& args, const CudaAppendChannel& channel, int active, int block,
                             int blocks, float* shared)
      : a_(args),
        c_(channel),
        active_(active),
        block_(block),
        blocks_(blocks),
        pages_((channel.first + channel.rows - 1) / cuda::kPageRows + 1),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        shared_(shared) {
    const int most = max(1, min(kCudaAppendSplits, blocks / args.widths.heads));
    split_pages_ = (pages_ + most - 1) / most;
    splits_ = (pages_ + split_pages_ - 1) / split_pages_;
    begins_ = reinterpret_cast<int32_t*>(shared + kAppendWarps * kRows * (2 + kD));
    for (int i = threadIdx.x; i < min(kRows, c_.rows) * args.widths.n_time; i += kAppendThreads) {
      begins_[i] = c_.bucket_begin[i];
    }
  }

  // [128][kD] of a page's K or V.
  __device__ __nv_bfloat16* Page(int layer, int kv, int head, int page) const {
    const int64_t size = int64_t{cuda::kPageRows} * kD, heads = a_.widths.heads;
    return static_cast<__nv_bfloat16*>(a_.pool) +
           ((int64_t{c_.blocks[page]} * a_.widths.layers + layer) * 2 + kv) * heads * size + head * size;
  }

  // The block's first K and V into the L2.
  __device__ void Prefetch(int layer) const {
    const int head = block_ % a_.widths.heads, split = block_ / a_.widths.heads;
    if (split >= splits_) return;
    const int page = split * split_pages_ + static_cast<int>(threadIdx.x) / 2, kv = threadIdx.x % 2;
    if (page >= min(pages_, (split + 1) * split_pages_)) return;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(Page(layer, kv, head, page)),
                 "r"(cuda::kPageRows * kD * 2));
  }

  // Parts of all heads and splits to memory.
  __device__ void Run(int layer) {
    for (int i = block_; i < a_.widths.heads * splits_; i += blocks_) {
      const int head = i % a_.widths.heads, split = i / a_.widths.heads;
      Begin(head);
      for (int page = split * split_pages_; page < min(pages_, (split + 1) * split_pages_); ++page) {
        Keys(layer, head, page);
      }
      Store(head, split);
    }
  }

  // Attended rows, all heads side by side, to `out`.
  __device__ void Join(__nv_bfloat16* out, int stride) const {
    const int wide = a_.widths.wide;
    for (int i = threadIdx.x; i < min(kRows, c_.rows) * wide; i += kAppendThreads) {
      const int r = i / wide, head = i % wide / kD, x = i % kD;
      const float* const parts = Part(r, head, 0);
      float top = cuda::kNegativeInfinity;
#pragma unroll 8
      for (int s = 0; s < splits_; ++s) top = fmaxf(top, parts[s * (2 + kD)]);
      float sum = 0, o = 0;  // the row sees itself: top is finite
#pragma unroll 8
      for (int s = 0; s < splits_; ++s) {
        const float* const part = parts + s * (2 + kD);
        const float weight = cuda::Exp2(part[0] - top);
        sum = fmaf(weight, part[1], sum);
        o = fmaf(weight, part[2 + x], o);
      }
      out[r * stride + i % wide] = __float2bfloat16_rn(o / sum);
    }
    __syncthreads();
  }

 private:
  static constexpr int kLanes = kD / 8;                         // hold a row's columns, eight each
  static constexpr int kTogether = 32 / kLanes;                 // keys a warp looks at at once
  static constexpr int kKeys = cuda::kPageRows / kAppendWarps;  // of a page and warp
  static constexpr int kSteps = kKeys / kTogether;
  static_assert(kKeys * kCudaFewRows <= 32);

  __device__ float* Part(int r, int head, int split) const {
    return a_.parts +
           (static_cast<int64_t>((active_ * kCudaFewRows + r) * a_.widths.heads + head) * kCudaAppendSplits + split) *
               (2 + kD);
  }

  __device__ void Begin(int head) {
    const auto* const q = static_cast<const __nv_bfloat16*>(a_.q) + active_ * kCudaFewRows * a_.widths.wide + head * kD;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      q_[r] = r < c_.rows ? Load8(q + r * a_.widths.wide + lane_ % kLanes * 8) : Eight{};
      top_[r] = cuda::kNegativeInfinity;
      sum_[r] = 0;
#pragma unroll
      for (int x = 0; x < 8; ++x) o_[r][x] = 0;
    }
  }

  // Position and time bucket of a pair, or -1 if the row does not see the key.
  __device__ int Look(int r, int j) const {
    const int i = c_.first + r;
    if (r >= c_.rows || j > i || (j < i && j < c_.oldest[r])) return -1;
    for (int t = 0; t < c_.tied[r]; ++t) {
      if (c_.ties[r * kCudaAppendTies + t] == j) return -1;
    }
    const int32_t* const begins = begins_ + r * a_.widths.n_time;
    int low = 0, high = a_.widths.n_time - 1;  // the youngest bucket that begins at or before j
    while (low < high) {
      const int middle = (low + high) / 2;
      if (begins[middle] > j) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return min(i - j, a_.widths.n_pos - 1) << 12 | low;
  }

  __device__ void Keys(int layer, int head, int page) {
    const int first = warp_ * kKeys, mine = lane_ / kLanes, column = lane_ % kLanes * 8;
    const __nv_bfloat16* const k = Page(layer, 0, head, page) + (first + mine) * kD + column;
    const __nv_bfloat16* const v = Page(layer, 1, head, page) + (first + mine) * kD + column;
    Eight keys[kSteps], values[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) keys[s] = Load8(k + s * kTogether * kD);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) values[s] = Load8(v + s * kTogether * kD);
    // Lane (r, key) looks for all columns.
    const int look = lane_ < kKeys * kRows ? Look(lane_ / kKeys, page * cuda::kPageRows + first + lane_ % kKeys) : -1;
    const auto* const codes = static_cast<const __nv_bfloat16*>(a_.matrices) + a_.codes +
                              (static_cast<int64_t>(layer) * a_.widths.channels + c_.channel) * a_.widths.table * kD +
                              column;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float logit[kSteps], top = top_[r];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int seen = __shfl_sync(0xffffffff, look, r * kKeys + s * kTogether + mine);
        float dot = 0;
        if (seen >= 0) {
          const Eight position = Load8(codes + (seen >> 12) * kD);
          const Eight time = Load8(codes + (a_.widths.n_pos + (seen & 0xfff)) * kD);
#pragma unroll
          for (int x = 0; x < 8; ++x) dot = fmaf(q_[r][x], keys[s][x] + (position[x] + time[x]), dot);
        }
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffff, dot, step);
        logit[s] = seen >= 0 ? dot * (a_.scale * cuda::kLog2E) : cuda::kNegativeInfinity;
        top = fmaxf(top, logit[s]);
      }
#pragma unroll
      for (int step = kLanes; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, step));
      if (top == cuda::kNegativeInfinity) continue;
      const float shrink = cuda::Exp2(top_[r] - top);
      top_[r] = top;
      sum_[r] *= shrink;
#pragma unroll
      for (int x = 0; x < 8; ++x) o_[r][x] *= shrink;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const float weight = cuda::Exp2(logit[s] - top);
        sum_[r] += weight;
#pragma unroll
        for (int x = 0; x < 8; ++x) o_[r][x] = fmaf(weight, values[s][x], o_[r][x]);
      }
    }
  }

  // Joins the lanes that share columns, then the warps.
  __device__ void Store(int head, int split) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float* const to = shared_ + (warp_ * kRows + r) * (2 + kD);
#pragma unroll
      for (int step = kLanes; step < 32; step *= 2) {
        sum_[r] += __shfl_xor_sync(0xffffffff, sum_[r], step);
#pragma unroll
        for (int x = 0; x < 8; ++x) o_[r][x] += __shfl_xor_sync(0xffffffff, o_[r][x], step);
      }
      if (lane_ == 0) to[0] = top_[r], to[1] = sum_[r];
      if (lane_ < kLanes) {
#pragma unroll
        for (int x = 0; x < 8; ++x) to[2 + lane_ * 8 + x] = o_[r][x];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < min(kRows, c_.rows) * kD; i += kAppendThreads) {
      const int r = i / kD, x = i % kD;
      float top = cuda::kNegativeInfinity;
      for (int w = 0; w < kAppendWarps; ++w) top = fmaxf(top, shared_[(w * kRows + r) * (2 + kD)]);
      float sum = 0, o = 0;
      for (int w = 0; w < kAppendWarps && top != cuda::kNegativeInfinity; ++w) {
        const float* const from = shared_ + (w * kRows + r) * (2 + kD);
        const float weight = cuda::Exp2(from[0] - top);
        sum = fmaf(weight, from[1], sum);
        o = fmaf(weight, from[2 + x], o);
      }
      float* const to = Part(r, head, split);
      if (x == 0) to[0] = top, to[1] = sum;
      to[2 + x] = o;
    }
    __syncthreads();
  }

  const CudaAppendArgs& a_;
  const CudaAppendChannel& c_;
  const int active_, block_, blocks_, pages_;
  const int warp_, lane_;
  float* const shared_;
  int32_t* begins_;
  int split_pages_, splits_;
  Eight q_[kRows];
  float top_[kRows], sum_[kRows], o_[kRows][8];
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_APPEND_ATTEND_CUH_
