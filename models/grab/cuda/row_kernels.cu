#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "models/grab/cuda/row_kernels.h"

namespace backstory::grab {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsMax = 4;  // of a block, a row each

__device__ float WarpSum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// In two passes over shared memory, so that a large mean costs no digits.
__device__ float2 MeanAndScale(const float* x, int n, int lane) {
  float sum = 0;
  for (int i = lane; i < n; i += kWarp) sum += x[i];
  const float mean = WarpSum(sum) / n;
  float squares = 0;
  for (int i = lane; i < n; i += kWarp) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, rsqrtf(WarpSum(squares) / n + 1e-5f)};
}

// A warp per row; a row of all channels stands in shared memory meanwhile.
__global__ void __launch_bounds__(kWarpsMax* kWarp) RowsKernel(const CudaRowsArgs a) {
  extern __shared__ float memory[];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row = blockIdx.x * (blockDim.x / kWarp) + warp;
  if (row >= a.rows) return;
  float* const x = memory + warp * a.channels * a.stride;
  const auto channel = [&](int c) { return x + c * a.stride; };
  for (int c = 0; c < a.channels; ++c) {
    const float* in = a.in + c * a.in_channel_stride + int64_t{row} * a.stride;
    for (int i = lane; i < a.d; i += kWarp) channel(c)[i] = in[i];
  }
  __syncwarp();
  if (a.n_g != nullptr) {
    for (int c = 0; c < a.channels; ++c) {
      const float2 n = MeanAndScale(channel(c), a.d, lane);
      for (int i = lane; i < a.d; i += kWarp) {
        channel(c)[i] = (channel(c)[i] - n.x) * n.y * a.n_g[c * a.stride + i] + a.n_b[c * a.stride + i];
      }
    }
  }
  if (a.gate_w != nullptr) {
    // Lane c keeps beta of channel c.
    float beta = 0;
    for (int gate = 0; gate < a.channels; ++gate) {
      float sum = 0;
      for (int c = 0; c < a.channels; ++c) {
        const float* w = a.gate_w + (c * a.channels + gate) * a.stride;
        for (int i = lane; i < a.d; i += kWarp) sum += channel(c)[i] * w[i];
      }
      sum = WarpSum(sum) + a.gate_b[gate];
      if (lane == gate) beta = 1 / (1 + __expf(-sum));
    }
    __syncwarp();
    for (int i = lane; i - lane < a.d; i += kWarp) {
      float all = 0;
      for (int c = 0; c < a.channels; ++c) {
        const float b = __shfl_sync(0xffffffffu, beta, c);
        if (i < a.d) all += b * channel(c)[i];
      }
      for (int c = 0; c < a.channels; ++c) {
        const float b = __shfl_sync(0xffffffffu, beta, c);
        if (i < a.d) channel(c)[i] += all - b * channel(c)[i];
      }
    }
  }
  __syncwarp();
  for (int c = 0; c < a.channels; ++c) {
    const int64_t at = c * a.out_channel_stride + int64_t{row} * a.stride;
    float2 n = {0, 1};
    if (a.z_g != nullptr) n = MeanAndScale(channel(c), a.d, lane);
    for (int i = lane; i < a.stride; i += kWarp) {
      const float value = i < a.d ? channel(c)[i] : 0.0f;
      if (a.x != nullptr) a.x[at + i] = value;
      if (a.concat != nullptr) {
        static_cast<__nv_bfloat16*>(a.concat)[(int64_t{row} * a.channels + c) * a.stride + i] =
            __float2bfloat16_rn(value);
      }
      if (a.z == nullptr) continue;
      float z = value;
      if (a.z_g != nullptr && i < a.d) z = (value - n.x) * n.y * a.z_g[c * a.stride + i] + a.z_b[c * a.stride + i];
      static_cast<__nv_bfloat16*>(a.z)[at + i] = __float2bfloat16_rn(z);
    }
  }
}

// Mean and centred sum of squares, joined over a warp whose lanes have `n` values each (Chan et al.).
__device__ float2 JoinMoments(float mean, float m2, float n) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2, n *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, mean, step), more = __shfl_xor_sync(0xffffffffu, m2, step);
    const float delta = other - mean;
    mean = 0.5f * (mean + other);
    m2 += more + delta * delta * (0.5f * n);
  }
  return {mean, m2};
}

// kChunks x 4 values of a row in each lane.
template <int kChunks>
struct LaneRow {
  float4 v[kChunks];

  __device__ void Load(const float* row, int lane) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) v[i] = reinterpret_cast<const float4*>(row)[i * kWarp + lane];
  }
  __device__ void Normalise(const float* g, const float* b, int lane) {
    float mean = 0, m2 = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) mean += v[i].x + v[i].y + v[i].z + v[i].w;
    mean /= 4 * kChunks;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const float4 c = {v[i].x - mean, v[i].y - mean, v[i].z - mean, v[i].w - mean};
      m2 += c.x * c.x + c.y * c.y + c.z * c.z + c.w * c.w;
    }
    const float2 all = JoinMoments(mean, m2, 4 * kChunks);
    const float scale = rsqrtf(all.y / (4 * kChunks * kWarp) + 1e-5f);
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const float4 gi = reinterpret_cast<const float4*>(g)[i * kWarp + lane];
      const float4 bi = reinterpret_cast<const float4*>(b)[i * kWarp + lane];
      v[i] = {(v[i].x - all.x) * scale * gi.x + bi.x, (v[i].y - all.x) * scale * gi.y + bi.y,
              (v[i].z - all.x) * scale * gi.z + bi.z, (v[i].w - all.x) * scale * gi.w + bi.w};
    }
  }
  __device__ float Dot(const float* w, int lane) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const float4 wi = reinterpret_cast<const float4*>(w)[i * kWarp + lane];
      sum += v[i].x * wi.x + v[i].y * wi.y + v[i].z * wi.z + v[i].w * wi.w;
    }
    return sum;
  }
  __device__ void Store(float* row, int lane) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) reinterpret_cast<float4*>(row)[i * kWarp + lane] = v[i];
  }
  __device__ void StoreRounded(void* row, int lane) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(v[i].x, v[i].y), high = __floats2bfloat162_rn(v[i].z, v[i].w);
      static_cast<uint2*>(row)[i * kWarp + lane] = {reinterpret_cast<const uint32_t&>(low),
                                                    reinterpret_cast<const uint32_t&>(high)};
    }
  }
};

// RowsKernel in registers, for rows of kChunks x 128 values without padding.
template <int kChunks, int kChannels>
__global__ void __launch_bounds__(kWarpsMax* kWarp) RegisterRowsKernel(const CudaRowsArgs a) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");  // the next kernel may fetch its weights
  const int lane = threadIdx.x % kWarp, row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= a.rows) return;
  LaneRow<kChunks> x[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) x[c].Load(a.in + c * a.in_channel_stride + int64_t{row} * a.stride, lane);
  if (a.n_g != nullptr) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) x[c].Normalise(a.n_g + c * a.stride, a.n_b + c * a.stride, lane);
  }
  if (a.gate_w != nullptr) {
    float beta[kChannels];
#pragma unroll
    for (int gate = 0; gate < kChannels; ++gate) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sum += x[c].Dot(a.gate_w + (c * kChannels + gate) * a.stride, lane);
      beta[gate] = 1 / (1 + __expf(-(WarpSum(sum) + a.gate_b[gate])));
    }
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      float4 all = {};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float4 v = x[c].v[i];
        all = {all.x + beta[c] * v.x, all.y + beta[c] * v.y, all.z + beta[c] * v.z, all.w + beta[c] * v.w};
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        float4& v = x[c].v[i];
        v = {v.x + all.x - beta[c] * v.x, v.y + all.y - beta[c] * v.y, v.z + all.z - beta[c] * v.z,
             v.w + all.w - beta[c] * v.w};
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int64_t at = c * a.out_channel_stride + int64_t{row} * a.stride;
    if (a.x != nullptr) x[c].Store(a.x + at, lane);
    if (a.z_g != nullptr) x[c].Normalise(a.z_g + c * a.stride, a.z_b + c * a.stride, lane);
    if (a.z != nullptr) x[c].StoreRounded(static_cast<__nv_bfloat16*>(a.z) + at, lane);
    if (a.concat != nullptr) {
      x[c].StoreRounded(static_cast<__nv_bfloat16*>(a.concat) + (int64_t{row} * kChannels + c) * a.stride, lane);
    }
  }
}

__global__ void HeadKernel(const CudaHeadArgs a) {
  const int lane = threadIdx.x % kWarp, row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= a.rows) return;
  const float* hidden = a.hidden_rows + int64_t{row} * a.stride;
  for (int task = 0; task < a.tasks; ++task) {
    float sum = 0;
    for (int i = lane * 4; i < a.hidden; i += 4 * kWarp) {  // the stride is padded by zeroes to a multiple of 8
      const float4 h = *reinterpret_cast<const float4*>(hidden + i);
      const float4 w = *reinterpret_cast<const float4*>(a.w + task * a.stride + i);
      sum += h.x * w.x + h.y * w.y + h.z * w.z + h.w * w.w;
    }
    sum = WarpSum(sum);
    if (lane == 0) a.logits[int64_t{row} * a.tasks + task] = sum + a.b[task];
  }
}

// A thread moves 8 values of one head of one layer's K and V.
__global__ void FoldKernel(const CudaFoldArgs a) {
  const int pieces = a.d_h / 8, per_row = a.layers * a.heads * pieces;
  const int64_t head_size = int64_t{128} * a.d_h, block_size = 2 * a.layers * a.heads * head_size;
  const int64_t total = int64_t{*a.count} * per_row;
  auto* pool = static_cast<__nv_bfloat16*>(a.pool);
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < total; i += int64_t{gridDim.x} * blockDim.x) {
    const CudaFoldRow row = a.rows[i / per_row];
    const int within = static_cast<int>(i % per_row), piece = within % pieces;
    const int head = within / pieces % a.heads, layer = within / pieces / a.heads;
    const auto at = [&](int32_t where, int kv) {
      return (where / 128) * block_size + ((2 * layer + kv) * a.heads + head) * head_size + (where % 128) * a.d_h +
             piece * 8;
    };
    uint4 k = {}, v = {};
    if (row.from >= 0) {
      k = *reinterpret_cast<const uint4*>(pool + at(row.from, 0));
      v = *reinterpret_cast<const uint4*>(pool + at(row.from, 1));
      const int64_t layer_channel = int64_t{layer} * a.channels + row.channel;
      const float* pos = a.pos + (layer_channel * a.n_pos + row.position) * a.d_h + piece * 8;
      const float* time = a.time + (layer_channel * a.n_time + row.time) * a.d_h + piece * 8;
      auto* values = reinterpret_cast<__nv_bfloat16*>(&k);
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = __float2bfloat16_rn(__bfloat162float(values[j]) + pos[j] + time[j]);
    }
    *reinterpret_cast<uint4*>(pool + at(row.to, 0)) = k;
    *reinterpret_cast<uint4*>(pool + at(row.to, 1)) = v;
  }
}

const char* Launched() {
  const cudaError_t error = cudaPeekAtLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <int kChunks, int kChannels>
const char* LaunchRegisterRows(const CudaRowsArgs& a, cudaStream_t stream) {
  // Few rows spread over all multiprocessors; many share blocks.
  const int warps = a.rows <= 1024 ? 1 : kWarpsMax;
  RegisterRowsKernel<kChunks, kChannels><<<(a.rows + warps - 1) / warps, warps * kWarp, 0, stream>>>(a);
  return Launched();
}

const char* CudaRowsAnyWidth(const CudaRowsArgs& a, void* stream) {
  const size_t bytes = size_t(a.channels) * a.stride * sizeof(float);
  constexpr size_t kSharedMax = 96 << 10;
  if (bytes > kSharedMax) return "rows: channels times width beyond shared memory";
  const int warps = a.rows > 1024 && bytes * kWarpsMax <= kSharedMax ? kWarpsMax : 1;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(RowsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedMax);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  RowsKernel<<<(a.rows + warps - 1) / warps, warps * kWarp, bytes * warps, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace

const char* CudaRows(const CudaRowsArgs& a, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (a.d == a.stride && a.channels <= 2) {
    switch (a.d * 10 + a.channels) {
      case 2561:
        return LaunchRegisterRows<2, 1>(a, cuda_stream);
      case 2562:
        return LaunchRegisterRows<2, 2>(a, cuda_stream);
      case 5121:
        return LaunchRegisterRows<4, 1>(a, cuda_stream);
      case 5122:
        return LaunchRegisterRows<4, 2>(a, cuda_stream);
      default:
        break;
    }
  }
  return CudaRowsAnyWidth(a, stream);
}

const char* CudaHead(const CudaHeadArgs& a, void* stream) {
  HeadKernel<<<(a.rows + kWarpsMax - 1) / kWarpsMax, kWarpsMax * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

const char* CudaFold(const CudaFoldArgs& a, void* stream) {
  FoldKernel<<<a.blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace backstory::grab
