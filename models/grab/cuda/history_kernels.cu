#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "kernels/cuda/launch.cuh"
#include "models/grab/cuda/history_attend.cuh"
#include "models/grab/cuda/history_kernels.h"

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

// A block codes the pairs of a tile and one of its newest pages, a thread those that are its accumulators in attention.
// Pages that all rows see whole, from afar and in one bucket are left out: attention does not ask.
__global__ void __launch_bounds__(128) CodesKernel(const __grid_constant__ CudaHistoryArgs a) {
  __shared__ int32_t begins[kPage * HistoryTimeStride(kCudaHistoryTimes) / 2];
  const CudaHistoryRows& c = a.channel[blockIdx.z];
  const int half = kPage / 2, tile_row = static_cast<int>(blockIdx.x) / 2 * kPage;
  const int half_row = tile_row + static_cast<int>(blockIdx.x) % 2 * half, stride = HistoryTimeStride(a.n_time);
  if (tile_row >= c.rows) return;
  const int page = (c.first + min(tile_row + kPage, c.rows) - 1) / kPage - static_cast<int>(blockIdx.y);
  if (page < 0) return;
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, first = page * kPage + threadIdx.x % 4 * 2;
  bool asked = c.first + half_row - (page + 1) * kPage + 1 < a.n_pos - 1;
  for (int r = 0; r < 2; ++r) {
    const int at = half_row + row + 8 * r;
    const CudaHistoryLimits limits = c.limits[at];
    const int32_t* const mine = c.bucket_begin + int64_t{at} * a.n_time;
    const int newest = BucketOf([&](int b) { return mine[b]; }, a.n_time, min(c.first + at, (page + 1) * kPage - 1));
    asked = asked || mine[newest] > page * kPage || limits.oldest > page * kPage || limits.tie_last >= page * kPage;
  }
  if (!__syncthreads_or(asked)) return;
  for (int i = threadIdx.x; i < half * a.n_time; i += 128) {
    begins[i / a.n_time * stride + i % a.n_time] = c.bucket_begin[int64_t{half_row} * a.n_time + i];
  }
  __syncthreads();
  CodesOf(c, tile_row / kPage, blockIdx.y)[blockIdx.x % 2 * 128 + threadIdx.x] =
      CodePairs(c, a.n_time, half_row + row, page, first,
                [&](int r, int bucket) { return begins[(row + 8 * r) * stride + bucket]; });
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

template <class Shape>
const char* LaunchAttend(const CudaHistoryArgs& a, int rows, cudaStream_t stream) {
  if (cuda::FindEncode() == nullptr)
    return "history attention: the driver has no cuTensorMapEncodeTiled (before CUDA 12)";
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
  constexpr int kSharedMost = 232448;
  static_assert(sizeof(HistoryShared<Shape>) +
                    std::max(HistoryTimeBytes(kHistoryBeginsKept), HistoryTimeBytes(kCudaHistoryTimes)) <=
                kSharedMost);
  const int bytes = static_cast<int>(sizeof(HistoryShared<Shape>)) + HistoryTimeBytes(a.n_time);
  static std::atomic<uint64_t> allowed = 0;
  const cudaError_t refused =
      cuda::Allow(HistoryKernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedMost, &allowed);
  if (refused != cudaSuccess) return cudaGetErrorString(refused);
  const dim3 tiles(a.channels * a.heads, (rows + Shape::kTileRows - 1) / Shape::kTileRows);
  HistoryKernel<Shape><<<dim3(tiles.x, tiles.y, a.splits), Shape::kThreads, bytes, stream>>>(a, maps);
  if (a.splits > 1) JoinHistoryKernel<Shape><<<tiles, 256, 0, stream>>>(a);
  return Launched();
}

int MostRows(const CudaHistoryArgs& a) {
  int rows = 0;
  for (int c = 0; c < a.channels; ++c) rows = std::max(rows, a.channel[c].rows);
  return rows;
}

}  // namespace

int CudaHistorySplits(const CudaHistoryArgs& a) {
  int pages = 0;
  for (int c = 0; c < a.channels; ++c) {
    if (a.channel[c].rows > 0) pages = std::max(pages, (a.channel[c].first + a.channel[c].rows + kPage - 1) / kPage);
  }
  const int tiles = (MostRows(a) + kPage - 1) / kPage * a.channels * a.heads;
  return tiles == 0 ? 1 : std::max(1, std::min(kCudaHistoryParts / tiles, pages / 2));
}

const char* CudaHistoryFacts(const CudaHistoryArgs& a, void* stream) {
  const int64_t threads = int64_t{(MostRows(a) + kPage - 1) / kPage * kPage} * a.n_time;
  if (threads == 0) return nullptr;
  const dim3 grid(static_cast<unsigned>((threads + 255) / 256), a.channels);
  FactsKernel<<<grid, 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  const dim3 halves((MostRows(a) + kPage - 1) / kPage * 2, kCudaHistoryCodedPages, a.channels);
  CodesKernel<<<halves, 128, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

const char* CudaHistoryAttend(const CudaHistoryArgs& a, void* stream) {
  const int rows = MostRows(a);
  if (rows == 0) return nullptr;
  if (a.d_h == 128) return LaunchAttend<HistoryShape<128, 2, 2>>(a, rows, static_cast<cudaStream_t>(stream));
  if (a.d_h == 64) return LaunchAttend<HistoryShape<64, 3, 3>>(a, rows, static_cast<cudaStream_t>(stream));
  return "history attention: d_h must be 64 or 128";
}

const char* CudaWriteKv(const CudaHistoryArgs& a, void* stream) {
  constexpr int kBlocks = 264;
  WriteKvKernel<<<dim3(kBlocks, a.channels), 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace backstory::grab
