#include "models/grab/cuda/history_kernels.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "models/grab/cuda/history_attend.cuh"

namespace backstory::grab {
namespace {

constexpr int kPage = cuda::kPageRows;

// The first of [0, count) sorted times that is beyond `than`, or not before it.
template <bool kBeyond>
__device__ int FirstTime(const int64_t* time, int count, int64_t than) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (kBeyond ? time[middle] <= than : time[middle] < than) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// A thread per row and time bucket; the last bucket's also writes the limits. Up to a tile's end the last row's again.
__global__ void FactsKernel(const __grid_constant__ CudaHistoryArgs a) {
  const CudaHistoryRows& c = a.channel[blockIdx.y];
  const int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int r = static_cast<int>(n / a.n_time), bucket = static_cast<int>(n % a.n_time);
  if (r >= (c.rows + kPage - 1) / kPage * kPage) return;
  const int i = c.first + min(r, c.rows - 1);
  const int64_t now = c.time_us[i];
  int begin = 0;
  if (bucket + 1 < a.n_time) {
    // Keys of at least the next bucket's age come before.
    const int64_t edge = a.edges[bucket + 1];
    if (now - c.time_us[0] >= edge) begin = FirstTime<true>(c.time_us, i, now - edge);
  } else {
    CudaHistoryLimits limits;
    if (a.window_rows < i) limits.oldest = static_cast<int>(i - a.window_rows);
    if (now - c.time_us[0] > a.window_us) {
      limits.oldest = max(limits.oldest, FirstTime<false>(c.time_us, i, now - a.window_us));
    }
    if (r < c.rows) {
      limits.tie_first = c.oldest_tie[i];
      limits.tie_last = c.previous_tie[i];
    }
    c.limits[r] = limits;
  }
  c.bucket_begin[int64_t{r} * a.n_time + bucket] = begin;
}

// Masked: -infinity.
__device__ float PairBias(const CudaHistoryArgs& a, const CudaHistoryRows& c, int r, const float* table, int j) {
  const int i = c.first + r;
  if (j > i) return -INFINITY;
  const CudaHistoryLimits limits = c.limits[r];
  if (j < i && (j < limits.oldest || (j >= limits.tie_first && j <= limits.tie_last && c.tie[j] == c.tie[i]))) {
    return -INFINITY;
  }
  const int32_t* const begins = c.bucket_begin + int64_t{r} * a.n_time;
  int low = 0, high = a.n_time - 1;  // the youngest bucket that begins at or before j
  while (low < high) {
    const int middle = (low + high) / 2;
    if (begins[middle] > j) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return table[min(i - j, a.n_pos - 1)] + table[a.n_pos + low];
}

// Of few rows a block takes one page of one row and head: a thread a key, then a thread a column of V.
__global__ void __launch_bounds__(kPage) FewRowsKernel(const __grid_constant__ CudaHistoryArgs a) {
  const CudaHistoryRows& c = a.channel[blockIdx.z];
  const int r = blockIdx.y / a.heads, head = blockIdx.y % a.heads, page = blockIdx.x, lane = threadIdx.x % 32;
  if (r >= c.rows || page > (c.first + r) / kPage) return;
  __shared__ float q[128], p[kPage], shared[2][kPage / 32];
  const int64_t row = blockIdx.z * a.chunk_rows + r;
  const auto* from = static_cast<const __nv_bfloat16*>(a.qkv) + (row * 3 * a.heads + head) * a.d_h;
  if (static_cast<int>(threadIdx.x) < a.d_h) q[threadIdx.x] = __bfloat162float(from[threadIdx.x]);
  __syncthreads();
  const int64_t head_size = int64_t{kPage} * a.d_h, block_size = 2 * int64_t{a.layers} * a.heads * head_size;
  const auto* k = static_cast<const __nv_bfloat16*>(a.pool) + c.blocks[page] * block_size +
                  (int64_t{2} * a.layer * a.heads + head) * head_size;
  const auto* v = k + a.heads * head_size;
  const int j = page * kPage + threadIdx.x;
  float logit = PairBias(a, c, r, a.table + (row * a.heads + head) * a.table_width, j);
  if (logit != -INFINITY) {
    float dot = 0;
    for (int x = 0; x < a.d_h; x += 8) {
      const uint4 piece = *reinterpret_cast<const uint4*>(k + threadIdx.x * a.d_h + x);
      const auto* values = reinterpret_cast<const __nv_bfloat16*>(&piece);
#pragma unroll
      for (int y = 0; y < 8; ++y) dot += __bfloat162float(values[y]) * q[x + y];
    }
    logit = (logit + dot) * a.scale * cuda::kLog2E;
  }
  float top = logit;
  for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  if (lane == 0) shared[0][threadIdx.x / 32] = top;
  __syncthreads();
  top = fmaxf(fmaxf(shared[0][0], shared[0][1]), fmaxf(shared[0][2], shared[0][3]));
  const float weight = top == -INFINITY ? 0 : exp2f(logit - top);
  p[threadIdx.x] = weight;
  float sum = weight;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) shared[1][threadIdx.x / 32] = sum;
  __syncthreads();
  float* part =
      a.parts + (((int64_t{blockIdx.z} * kCudaFewRows + r) * a.heads + head) * a.pages_max + page) * (2 + a.d_h);
  if (threadIdx.x == 0) {
    part[0] = top;
    part[1] = shared[1][0] + shared[1][1] + shared[1][2] + shared[1][3];
  }
  if (static_cast<int>(threadIdx.x) >= a.d_h) return;
  float o = 0;
  // Rows behind the last have weight 0 and V 0.
#pragma unroll 8
  for (int key = 0; key < kPage; ++key) o += p[key] * __bfloat162float(v[key * a.d_h + threadIdx.x]);
  part[2 + threadIdx.x] = o;
}

// A thread joins the pages' parts of one column.
__global__ void __launch_bounds__(kPage) JoinFewRowsKernel(const __grid_constant__ CudaHistoryArgs a) {
  const CudaHistoryRows& c = a.channel[blockIdx.z];
  const int r = blockIdx.y / a.heads, head = blockIdx.y % a.heads;
  if (r >= c.rows || static_cast<int>(threadIdx.x) >= a.d_h) return;
  const int pages = (c.first + r) / kPage + 1;
  const float* part = a.parts + ((int64_t{blockIdx.z} * kCudaFewRows + r) * a.heads + head) * a.pages_max * (2 + a.d_h);
  float top = -INFINITY;
  for (int page = 0; page < pages; ++page) top = fmaxf(top, part[page * (2 + a.d_h)]);
  float sum = 0, o = 0;  // the row sees itself: top is finite
  for (int page = 0; page < pages; ++page) {
    const float* at = part + page * (2 + a.d_h);
    const float weight = exp2f(at[0] - top);
    sum += weight * at[1];
    o += weight * at[2 + threadIdx.x];
  }
  static_cast<__nv_bfloat16*>(a.o)[((blockIdx.z * a.chunk_rows + r) * a.heads + head) * a.d_h + threadIdx.x] =
      __float2bfloat16_rn(o / sum);
}

// A thread writes 8 values of one row and head, K and V.
__global__ void WriteKvKernel(const __grid_constant__ CudaHistoryArgs a) {
  const CudaHistoryRows& c = a.channel[blockIdx.y];
  if (c.rows == 0) return;
  const int pieces = a.d_h / 8, per_row = a.heads * pieces;
  const int last = (c.first + c.rows + kPage - 1) / kPage * kPage;
  const int64_t head_size = int64_t{kPage} * a.d_h, block_size = 2 * int64_t{a.layers} * a.heads * head_size;
  auto* pool = static_cast<__nv_bfloat16*>(a.pool);
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < int64_t{last - c.first} * per_row;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int r = static_cast<int>(i / per_row), head = static_cast<int>(i % per_row) / pieces, piece = i % pieces;
    const int j = c.first + r;
    uint4 k = {}, v = {};
    if (r < c.rows) {
      const auto* from = static_cast<const __nv_bfloat16*>(a.qkv) +
                         ((blockIdx.y * a.chunk_rows + r) * 3 * a.heads + head) * a.d_h + piece * 8;
      k = *reinterpret_cast<const uint4*>(from + a.heads * a.d_h);
      v = *reinterpret_cast<const uint4*>(from + 2 * a.heads * a.d_h);
      const float* bias = c.bact + int64_t{c.action[j]} * a.d_h + piece * 8;
      auto* values = reinterpret_cast<__nv_bfloat16*>(&k);
#pragma unroll
      for (int x = 0; x < 8; ++x) values[x] = __float2bfloat16_rn(__bfloat162float(values[x]) + bias[x]);
    }
    auto* to = pool + c.blocks[j / kPage] * block_size + (int64_t{2} * a.layer * a.heads + head) * head_size +
               (j % kPage) * a.d_h + piece * 8;
    *reinterpret_cast<uint4*>(to) = k;
    *reinterpret_cast<uint4*>(to + a.heads * head_size) = v;
  }
}

const char* Launched() {
  const cudaError_t error = cudaPeekAtLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* LaunchFewRows(const CudaHistoryArgs& a, int pages, cudaStream_t stream) {
  FewRowsKernel<<<dim3(pages, kCudaFewRows * a.heads, a.channels), kPage, 0, stream>>>(a);
  JoinFewRowsKernel<<<dim3(1, kCudaFewRows * a.heads, a.channels), kPage, 0, stream>>>(a);
  return Launched();
}

template <class Shape>
const char* LaunchAttend(const CudaHistoryArgs& a, int rows, cudaStream_t stream) {
  if (cuda::FindEncode() == nullptr) return "history attention: the driver has no cuTensorMapEncodeTiled (before CUDA 12)";
  constexpr int kD = Shape::kD;
  const auto u = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const int64_t head_size = int64_t{kPage} * kD, kv_size = a.heads * head_size, block_size = 2 * a.layers * kv_size;
  const int64_t row_size = int64_t{3} * a.heads * kD;
  const auto* const k = static_cast<const __nv_bfloat16*>(a.pool) + 2 * a.layer * kv_size;
  cuda::AttendMaps maps;
  const cuuint64_t pages[] = {64, kPage, kD / 64, u(a.heads), u(a.pool_blocks)};
  const int64_t page_strides[] = {kD, 64, head_size, block_size};
  const bool encoded =
      cuda::Encode<5>(&maps.q, a.qkv, {64, u(a.chunk_rows), kD / 64, u(a.heads), u(a.channels)},
                      {row_size, 64, kD, a.chunk_rows * row_size}, {64, Shape::kTileRows, kD / 64, 1, 1}) &&
      cuda::Encode<5>(&maps.k, k, pages, page_strides, {64, kPage, kD / 64, 1, 1}) &&
      cuda::Encode<5>(&maps.v, k + kv_size, pages, page_strides, {64, kPage, kD / 64, 1, 1});
  if (!encoded) return "history attention: the driver refuses the tensor maps";
  constexpr int kSharedBytes = sizeof(HistoryShared<Shape>);
  static_assert(kSharedBytes <= 232448);
  static std::atomic<uint64_t> allowed = 0;
  const cudaError_t refused =
      cuda::Allow(HistoryKernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes, &allowed);
  if (refused != cudaSuccess) return cudaGetErrorString(refused);
  const dim3 grid(a.channels * a.heads, (rows + Shape::kTileRows - 1) / Shape::kTileRows);
  HistoryKernel<Shape><<<grid, Shape::kThreads, kSharedBytes, stream>>>(a, maps);
  return Launched();
}

int MostRows(const CudaHistoryArgs& a) {
  int rows = 0;
  for (int c = 0; c < a.channels; ++c) rows = std::max(rows, a.channel[c].rows);
  return rows;
}

}  // namespace

const char* CudaHistoryFacts(const CudaHistoryArgs& a, void* stream) {
  const int64_t threads = int64_t{(MostRows(a) + kPage - 1) / kPage * kPage} * a.n_time;
  if (threads == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>((threads + 255) / 256), a.channels);
  FactsKernel<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

const char* CudaHistoryAttend(const CudaHistoryArgs& a, void* stream) {
  const int rows = MostRows(a);
  if (rows == 0) return nullptr;
  int pages = 0;
  for (int c = 0; c < a.channels; ++c) {
    pages = std::max(pages, (a.channel[c].first + a.channel[c].rows + kPage - 1) / kPage);
  }
  if (rows <= kCudaFewRows && pages <= a.pages_max) return LaunchFewRows(a, pages, static_cast<cudaStream_t>(stream));
  if (a.d_h == 128) return LaunchAttend<HistoryShape<128, 3>>(a, rows, static_cast<cudaStream_t>(stream));
  if (a.d_h == 64) return LaunchAttend<HistoryShape<64, 4>>(a, rows, static_cast<cudaStream_t>(stream));
  return "history attention: d_h must be 64 or 128";
}

const char* CudaWriteKv(const CudaHistoryArgs& a, void* stream) {
  constexpr int kBlocks = 264;
  WriteKvKernel<<<dim3(kBlocks, a.channels), 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace backstory::grab
