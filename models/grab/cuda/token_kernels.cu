#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "models/grab/cuda/token_kernels.h"

namespace backstory::grab {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;  // of a block, a row each

__device__ float WarpSum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Element i of a row of `width` elements a part.
__device__ void Store(float value, int parts, int width, int i, __nv_bfloat16* row) {
  const __nv_bfloat16 nearest = __float2bfloat16_rn(value);
  row[i] = nearest;
  if (parts == 1) return;
  row[width + i] = __float2bfloat16_rn(value - __bfloat162float(nearest));
  row[2 * width + i] = nearest;
}

__global__ void __launch_bounds__(kWarps* kWarp) PoolKernel(const __grid_constant__ CudaTokenArgs a) {
  extern __shared__ float memory[];
  const int lane = threadIdx.x % kWarp, row = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (row >= a.rows) return;
  float* const v = memory + threadIdx.x / kWarp * a.v_stride;
  const int width = a.fields * a.embedding + a.dense;
  float sum = 0;
  for (int i = lane; i < width; i += kWarp) {
    float value = 0;
    if (i < a.fields * a.embedding) {
      const int field = i / a.embedding, column = i % a.embedding;
      const CudaIdRange range = a.ranges[int64_t{field} * a.rows + row];
      const float* table = a.table[field] + column;
      for (uint32_t at = range.begin; at < range.end; ++at) value += table[int64_t{a.ids[at]} * a.embedding];
    } else {
      value = a.dense_values[int64_t{row} * a.dense + i - a.fields * a.embedding];
    }
    v[i] = value;
    sum += value;
  }
  const float item_mean = width == 0 ? 0 : WarpSum(sum) / width;
  float squares = 0;
  for (int i = lane; i < width; i += kWarp) squares += (v[i] - item_mean) * (v[i] - item_mean);
  const float item_m2 = WarpSum(squares);
  // Joined with the user side's (Chan et al.).
  const float* user = a.users + int64_t{a.user[row]} * (2 + a.hidden + a.d);
  const float nu = a.user_columns, ni = width, n = nu + ni, delta = item_mean - user[0];
  const float mean = (user[0] * nu + item_mean * ni) / n;
  const float m2 = (a.user_columns > 0 ? user[1] : 0) + item_m2 + (nu > 0 && ni > 0 ? delta * delta * nu * ni / n : 0);
  const float scale = rsqrtf(m2 / n + 1e-5f);
  if (lane == 0) a.moments[2 * row] = mean, a.moments[2 * row + 1] = scale;
  __nv_bfloat16* const to = static_cast<__nv_bfloat16*>(a.v) + int64_t{row} * a.parts * a.v_stride;
  for (int i = lane; i < a.v_stride; i += kWarp) {
    Store(i < width ? (v[i] - mean) * scale : 0.0f, a.parts, a.v_stride, i, to);
  }
}

__global__ void HiddenKernel(const __grid_constant__ CudaTokenArgs a) {
  const int row = blockIdx.x, n = a.hidden + a.d;
  const float mean = a.moments[2 * row], scale = a.moments[2 * row + 1];
  const float* user = a.users + int64_t{a.user[row]} * (2 + n) + 2;
  float* values = a.a + int64_t{row} * n;
  for (int j = threadIdx.x; j < n; j += blockDim.x) {
    const float value = values[j] + scale * (user[j] - mean * a.column_sums[j]) + a.bias[j];
    if (j < a.hidden) {
      Store(fmaxf(value, 0.0f), a.parts, a.hidden, j, static_cast<__nv_bfloat16*>(a.h) + int64_t{row} * a.parts * a.hidden);
    } else {
      values[j] = 1 / (1 + __expf(-value));
    }
  }
}

__global__ void GateKernel(const __grid_constant__ CudaTokenArgs a) {
  const int row = blockIdx.x;
  for (int j = threadIdx.x; j < a.d; j += blockDim.x) {
    a.e[int64_t{row} * a.d + j] *= a.a[int64_t{row} * (a.hidden + a.d) + a.hidden + j];
  }
}

const char* Launched() {
  const cudaError_t error = cudaPeekAtLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* CudaPoolTokens(const CudaTokenArgs& a, void* stream) {
  const int bytes = kWarps * a.v_stride * static_cast<int>(sizeof(float));
  PoolKernel<<<(a.rows + kWarps - 1) / kWarps, kWarps * kWarp, bytes, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

const char* CudaTokenHidden(const CudaTokenArgs& a, void* stream) {
  HiddenKernel<<<a.rows, 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

const char* CudaGateTokens(const CudaTokenArgs& a, void* stream) {
  GateKernel<<<a.rows, 128, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace backstory::grab
