#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "kernels/cuda/launch.cuh"
#include "models/grab/cuda/append.h"
#include "models/grab/cuda/append_attend.cuh"

namespace backstory::grab {
namespace {

// The layers' phases, each ended by a barrier over the grid. A block serves one channel: outputs of a product are dealt
// to its warps, and every block makes the product's input, a norm of a few rows, for itself.
template <int kRows, int kD>
class Appender {
 public:
  __device__ Appender(const CudaAppendArgs& args, unsigned char* shared)
      : a_(args),
        w_(args.widths),
        block_(static_cast<int>(blockIdx.x) / args.active),
        blocks_((static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x) % args.active) / args.active + 1),
        active_(static_cast<int>(blockIdx.x) % args.active),
        c_(args.channel[active_]),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        x_(reinterpret_cast<float*>(shared)),
        z_(reinterpret_cast<__nv_bfloat16*>(x_ + kRows * w_.stride)),
        z_stride_(AppendInputWidth(w_)),
        attend_(args, c_, active_, block_, blocks_, reinterpret_cast<float*>(z_ + kRows * z_stride_)) {}

  __device__ void Run() {
    for (int l = 0; l < w_.layers; ++l) {
      const bool last = l + 1 == w_.layers;
      const CudaLayerOffsets& o = a_.layers[l];
      if (!last) attend_.Prefetch(l);
      if (a_.post_norm) {
        Input(l > 0 ? Norm{a_.layers[l - 1].n2_g, a_.layers[l - 1].n2_b} : Norm{}, true);
      } else {
        Input({o.n1_g, o.n1_b}, false);
      }
      if (w_.latent > 0) {
        Product(Matrix(o.wd, w_.inner, w_.stride), w_.inner, w_.stride,
                [&](int n, int r, float y) { Row<__nv_bfloat16>(a_.inner, r, w_.inner)[n] = __float2bfloat16_rn(y); });
        Meet(Matrix(o.wqkv, 3 * w_.wide, w_.inner), 3 * w_.wide, w_.inner);
        LoadInput(a_.inner, w_.inner);
      }
      const int skip = last ? w_.wide : 0;  // the last layer's queries are nobody's
      Product(Matrix(o.wqkv, 3 * w_.wide, w_.inner) + int64_t{skip} * w_.inner, 3 * w_.wide - skip, w_.inner,
              [&](int n, int r, float y) { StoreQkv(l, n + skip, r, y); });
      ClearBehind(l);
      if (last) return;
      Meet(nullptr, 0, 0);
      attend_.Run(l);
      Meet(Matrix(o.wo, w_.stride, w_.wide), w_.stride, w_.wide);
      attend_.Join(z_, z_stride_);
      Product(Matrix(o.wo, w_.stride, w_.wide), w_.stride, w_.wide,
              [&](int n, int r, float y) { Row<float>(a_.x, r, w_.stride)[n] = x_[r * w_.stride + n] + y; });
      Meet(Matrix(o.w1, w_.ffn, w_.stride), w_.ffn, w_.stride);
      Input(a_.post_norm ? Norm{o.n1_g, o.n1_b} : Norm{o.n2_g, o.n2_b}, a_.post_norm);
      const __nv_bfloat16* const b1 = Matrix(o.b1, w_.ffn, 1);
      Product(Matrix(o.w1, w_.ffn, w_.stride), w_.ffn, w_.stride, [&](int n, int r, float y) {
        Row<__nv_bfloat16>(a_.hidden, r, w_.ffn)[n] = __float2bfloat16_rn(fmaxf(0, y + __bfloat162float(b1[n])));
      });
      Meet(Matrix(o.w2, w_.stride, w_.ffn), w_.stride, w_.ffn);
      LoadInput(a_.hidden, w_.ffn);
      const float* const b2 = a_.vectors + o.b2 + c_.channel * w_.stride;
      Product(Matrix(o.w2, w_.stride, w_.ffn), w_.stride, w_.ffn,
              [&](int n, int r, float y) { Row<float>(a_.x, r, w_.stride)[n] = x_[r * w_.stride + n] + y + b2[n]; });
      const CudaLayerOffsets& next = a_.layers[l + 1];
      const int k = w_.latent > 0 ? w_.stride : w_.inner, n = w_.latent > 0 ? w_.inner : 3 * w_.wide;
      Meet(Matrix(w_.latent > 0 ? next.wd : next.wqkv, n, k), n, k);
    }
  }

 private:
  struct Norm {
    size_t g = 0, b = 0;  // 0, 0: none
  };
  static constexpr int kHeld = kRows == 1 ? 4 : 2;  // loads of four columns that a lane has under way

  __device__ const __nv_bfloat16* Matrix(size_t offset, int n, int k) const {
    return static_cast<const __nv_bfloat16*>(a_.matrices) + offset + static_cast<int64_t>(c_.channel) * n * k;
  }
  template <typename T>
  __device__ T* Row(void* base, int r, int width) const {
    return static_cast<T*>(base) + (active_ * kCudaFewRows + r) * width;
  }

  // All blocks have written what they have to; the next product's weights of this warp are on their way meanwhile.
  __device__ void Meet(const __nv_bfloat16* w, int n, int k) {
    __syncthreads();
    met_ += gridDim.x;
    if (threadIdx.x == 0) cuda::AddReleasing(a_.barrier, 1);
    for (int at = block_ * kAppendWarps + warp_; at < n; at += blocks_ * kAppendWarps) {
      const auto* const row = reinterpret_cast<const char*>(w + static_cast<int64_t>(at) * k);
      for (int byte = lane_ * 128; byte < 2 * k; byte += 32 * 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(row + byte));
      }
    }
    if (threadIdx.x == 0) {
      uint32_t now = 0;
      do {  // an acquiring load would empty the L1 each time
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(a_.barrier) : "memory");
      } while (static_cast<int32_t>(now - met_) < 0);
      static_cast<void>(cuda::LoadAcquiring(a_.barrier));
    }
    __syncthreads();
  }

  // The rows of a_.x to x_ and z_: both normed, or z_ alone. A warp a row, its loads all under way together: every
  // block waits for this.
  __device__ void Input(const Norm& norm, bool residual) {
    if (warp_ < c_.rows && warp_ < kRows) {
      float* const x = x_ + warp_ * w_.stride;
      __nv_bfloat16* const z = z_ + warp_ * z_stride_;
      float4 g[kHeld], b[kHeld];
      const bool normed = norm.g != norm.b;
      const float* const all_g = a_.vectors + norm.g + c_.channel * w_.stride;
      const float* const all_b = a_.vectors + norm.b + c_.channel * w_.stride;
      for (int begin = 0; begin < w_.stride; begin += kHeld * 128) {
        float4 held[kHeld];
        ForColumns(begin, [&](int h, int i) {
          held[h] = *reinterpret_cast<const float4*>(Row<float>(a_.x, warp_, w_.stride) + i);
          if (begin == 0 && normed) g[h] = *reinterpret_cast<const float4*>(all_g + i);
          if (begin == 0 && normed) b[h] = *reinterpret_cast<const float4*>(all_b + i);
        });
        ForColumns(begin, [&](int h, int i) { *reinterpret_cast<float4*>(x + i) = held[h]; });
      }
      float sum = 0, squares = 0;
      for (int i = lane_ * 4; i < w_.stride; i += 128)
        sum += x[i] + x[i + 1] + x[i + 2] + x[i + 3];  // beyond d: zeroes
      const float mean = WarpSum(sum) / w_.d;
      for (int i = lane_ * 4; i < w_.d; i += 128) {
        for (int n = i; n < min(i + 4, w_.d); ++n) squares += (x[n] - mean) * (x[n] - mean);
      }
      const float scale = rsqrtf(WarpSum(squares) / w_.d + 1e-5f);
      for (int begin = 0; begin < w_.stride; begin += kHeld * 128) {
        ForColumns(begin, [&](int h, int i) {
          if (begin > 0 && normed) g[h] = *reinterpret_cast<const float4*>(all_g + i);
          if (begin > 0 && normed) b[h] = *reinterpret_cast<const float4*>(all_b + i);
          const float gs[4] = {g[h].x, g[h].y, g[h].z, g[h].w}, bs[4] = {b[h].x, b[h].y, b[h].z, b[h].w};
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float value = x[i + n];
            if (normed) value = i + n < w_.d ? (value - mean) * scale * gs[n] + bs[n] : 0;
            z[i + n] = __float2bfloat16_rn(value);
            if (residual) x[i + n] = value;
          }
        });
      }
    }
    __syncthreads();
  }
  // visit(h, i): columns [i, i + 4) of this lane, the h-th of kHeld from `begin` on.
  template <typename Visit>
  __device__ void ForColumns(int begin, const Visit& visit) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (const int i = begin + (h * 32 + lane_) * 4; i < w_.stride) visit(h, i);
    }
  }
  __device__ void LoadInput(const void* base, int width) {
    for (int r = 0; r < min(c_.rows, kRows); ++r) {
      const auto* const from = reinterpret_cast<const uint4*>(Row<__nv_bfloat16>(const_cast<void*>(base), r, width));
      auto* const to = reinterpret_cast<uint4*>(z_ + r * z_stride_);
      for (int i = threadIdx.x; i < width / 8; i += kAppendThreads) to[i] = from[i];
    }
    __syncthreads();
  }

  // store(n, r, y) of y = w[n] . z[r], in one lane. Two outputs at a time, so that their weights are under way
  // together.
  template <typename Store>
  __device__ void Product(const __nv_bfloat16* w, int outputs, int k, const Store& store) const {
    const int step = blocks_ * kAppendWarps;
    for (int n = block_ * kAppendWarps + warp_; n < outputs; n += 2 * step) {
      const bool both = n + step < outputs;
      const __nv_bfloat16* const row[2] = {w + static_cast<int64_t>(n) * k,
                                           w + static_cast<int64_t>(both ? n + step : n) * k};
      float sum[2][kRows] = {};
#pragma unroll 2
      for (int at = lane_ * 8; at < k; at += 256) {
        const Eight weights[2] = {Load8(row[0] + at), Load8(row[1] + at)};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const Eight z = Load8(z_ + r * z_stride_ + at);
          sum[0][r] = Dot(weights[0], z, sum[0][r]);
          sum[1][r] = Dot(weights[1], z, sum[1][r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float first = WarpSum(sum[0][r]), second = WarpSum(sum[1][r]);
        if (r < c_.rows && lane_ == 0) store(n, r, first);
        if (r < c_.rows && lane_ == 1 && both) store(n + step, r, second);
      }
    }
  }

  // A row of q, or K (with the action's bias) or V into its page.
  __device__ void StoreQkv(int l, int n, int r, float y) const {
    const __nv_bfloat16 value = __float2bfloat16_rn(y);
    if (n < w_.wide) {
      Row<__nv_bfloat16>(a_.q, r, w_.wide)[n] = value;
      return;
    }
    const int kv = n / w_.wide - 1, head = n % w_.wide / kD, x = n % kD, j = c_.first + r;
    __nv_bfloat16* const to = attend_.Page(l, kv, head, j / cuda::kPageRows) + j % cuda::kPageRows * kD + x;
    if (kv == 1) {
      *to = value;
      return;
    }
    const float* const bact =
        a_.vectors + a_.act + ((static_cast<int64_t>(l) * w_.channels + c_.channel) * w_.n_act + c_.action[r]) * kD;
    *to = __float2bfloat16_rn(__bfloat162float(value) + bact[x]);
  }

  // Zeroes behind the last row of its page.
  __device__ void ClearBehind(int l) const {
    const int last = c_.first + c_.rows - 1, begin = last % cuda::kPageRows + 1;
    const int pieces = (cuda::kPageRows - begin) * (kD / 8);  // of a head
    for (int i = block_ * kAppendThreads + threadIdx.x; i < 2 * w_.heads * pieces; i += blocks_ * kAppendThreads) {
      const int head = i / pieces % w_.heads, kv = i / pieces / w_.heads;
      auto* const to = attend_.Page(l, kv, head, last / cuda::kPageRows) + begin * kD + i % pieces * 8;
      *reinterpret_cast<uint4*>(to) = {};
    }
  }

  const CudaAppendArgs& a_;
  const CudaWidths& w_;
  const int block_, blocks_;  // of the channel's
  const int active_;
  const CudaAppendChannel& c_;
  const int warp_, lane_;
  float* const x_;          // [kRows][stride]: what the next products' results are added to
  __nv_bfloat16* const z_;  // [kRows][z_stride_]: the next product's input
  const int z_stride_;
  AppendAttention<kRows, kD> attend_;
  uint32_t met_ = 0;
};

template <int kRows, int kD>
__global__ void __launch_bounds__(kAppendThreads, 1) AppendKernel(const __grid_constant__ CudaAppendArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  Appender<kRows, kD>(a, shared).Run();
}

size_t SharedBytes(const CudaWidths& w, int rows) {
  return static_cast<size_t>(rows) *
         (static_cast<size_t>(w.stride) * 4 + static_cast<size_t>(AppendInputWidth(w)) * 2 +
          size_t{kAppendWarps} * static_cast<size_t>(2 + w.d_h) * 4 + static_cast<size_t>(w.n_time) * 4);
}

template <int kRows, int kD>
const char* Launch(const CudaAppendArgs& a, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed = 0;
  auto* const kernel = AppendKernel<kRows, kD>;
  cudaError_t error = cuda::Allow(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448, &allowed);
  int device = 0, blocks = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = kAppendThreads;
  config.dynamicSmemBytes = SharedBytes(a.widths, kRows);
  config.stream = stream;
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  config.attrs = &together;
  config.numAttrs = 1;
  error = cudaLaunchKernelEx(&config, kernel, a);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

CudaAppendRoom CudaAppendRoomOf(const CudaWidths& w) {
  const auto rows = static_cast<size_t>(w.channels) * kCudaFewRows;
  const auto bf16 = [&](int width) { return rows * static_cast<size_t>(width) * 2; };
  return {.inner = w.latent > 0 ? bf16(w.inner) : 0,
          .q = bf16(w.wide),
          .hidden = bf16(w.ffn),
          .parts = rows * static_cast<size_t>(w.heads) * kCudaAppendSplits * static_cast<size_t>(2 + w.d_h) * 4};
}

bool CudaAppendFits(const CudaWidths& w) {
  return w.channels <= kCudaHistoryChannels && w.n_pos <= 65536 && w.n_time <= 4096 &&
         SharedBytes(w, kCudaFewRows) <= 200 << 10;
}

const char* CudaAppend(const CudaAppendArgs& a, void* stream) {
  int rows = 0;
  for (int c = 0; c < a.active; ++c) rows = std::max(rows, a.channel[c].rows);
  if (rows == 0) return nullptr;
  if (rows > kCudaFewRows) return "append: too many rows";
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.widths.d_h == 128) return rows == 1 ? Launch<1, 128>(a, s) : Launch<kCudaFewRows, 128>(a, s);
  if (a.widths.d_h == 64) return rows == 1 ? Launch<1, 64>(a, s) : Launch<kCudaFewRows, 64>(a, s);
  return "append: d_h must be 64 or 128";
}

}  // namespace backstory::grab
