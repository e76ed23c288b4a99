// Attention of history rows: the mask, rank and time bucket of every pair differ, so a tile asks first whether it is
// uniform (far from the diagonal, no ties, one or two time buckets a row) and only else looks each pair up.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>

#include "models/grab/cuda/history_kernels.h"

namespace backstory::grab {
namespace {

constexpr int kPage = 128;
constexpr int kKeys = 64;     // of a tile: half a page
constexpr int kQueries = 64;  // of a block: 16 a warp
constexpr int kThreads = 128;
constexpr int kStages = 2;
constexpr float kLog2e = 1.4426950408889634f;

__device__ void CopyAsync(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}
__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ uint32_t Pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Exact: a guess in fp32, corrected by the edges.
__device__ int Bucket(int64_t age_us, const int64_t* edges, int n_time) {
  const float seconds = fmaxf(1.0f, static_cast<float>(age_us) * 1e-6f);
  int bucket = min(n_time - 1, static_cast<int>(__logf(seconds) * (1 / 0.301f)));
  while (bucket + 1 < n_time && age_us >= __ldg(edges + bucket + 1)) ++bucket;
  while (bucket > 0 && age_us < __ldg(edges + bucket)) --bucket;
  return bucket;
}

template <int kD>
struct Tile {
  static constexpr int kChunks = kD / 8;  // of 16 bytes in a row
  static constexpr int kBytes = kKeys * kD * 2;
  // Rows of a tile with their chunks permuted, so that eight rows' same chunk lies in eight banks.
  __device__ static uint32_t At(int row, int chunk) { return (row * kChunks + (chunk ^ (row & 7))) * 16; }
  __device__ static void Load(uint32_t to, const __nv_bfloat16* from) {
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
      CopyAsync(to + At(i / kChunks, i % kChunks), from + i * 8);
    }
  }
};

// One of a thread's two query rows.
struct Row {
  int i;  // in the channel
  int64_t time, tie;
  int previous_tie;
  const float* table;
  float top = -INFINITY, sum = 0;
};

// How a warp's rows see 64 keys.
struct View {
  bool uniform, two;   // all rows: one bucket; at most two
  float older, newer;  // bias, natural units
  int64_t edge_time;   // keys at or before it take `older`
};

__device__ View Look(const CudaHistoryArgs& a, const Row& row, int j0, const int64_t* time) {
  View view{false, false, 0, 0, INT64_MIN};
  const int last = j0 + kKeys - 1;
  if (row.i - last < max(1, a.n_pos - 1) || row.previous_tie >= j0 || row.i - j0 > a.window_rows) return view;
  const int64_t oldest = row.time - time[j0];
  if (oldest > a.window_us) return view;
  const int high = Bucket(oldest, a.edges, a.n_time), low = Bucket(row.time - time[last], a.edges, a.n_time);
  if (high - low > 1) return view;
  view.uniform = high == low;
  view.two = true;
  const float far = row.table[a.n_pos - 1];
  view.older = far + row.table[a.n_pos + high];
  view.newer = far + row.table[a.n_pos + low];
  if (!view.uniform) view.edge_time = row.time - __ldg(a.edges + high);
  return view;
}

__device__ __noinline__ float PairBias(const CudaHistoryArgs& a, const Row& row, int j, const int64_t* time,
                                       const int64_t* tie) {
  if (j > row.i) return -INFINITY;
  const int64_t age = row.time - time[j];
  if (j < row.i && (tie[j] == row.tie || row.i - j > a.window_rows || age > a.window_us)) return -INFINITY;
  return row.table[min(row.i - j, a.n_pos - 1)] + row.table[a.n_pos + Bucket(age, a.edges, a.n_time)];
}

template <int kD>
__global__ void __launch_bounds__(kThreads) HistoryKernel(const __grid_constant__ CudaHistoryArgs a) {
  extern __shared__ __align__(128) unsigned char memory[];
  const CudaHistoryRows& c = a.channel[blockIdx.z];
  const int tiles = (c.rows + kQueries - 1) / kQueries;
  if (static_cast<int>(blockIdx.x) >= tiles) return;
  const int tile = tiles - 1 - blockIdx.x;  // longest first
  const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  const int64_t head_size = int64_t{kPage} * kD, block_size = 2 * int64_t{a.layers} * a.heads * head_size;
  const auto* pool = static_cast<const __nv_bfloat16*>(a.pool) + (int64_t{2} * a.layer * a.heads + head) * head_size;
  const int64_t v_from_k = a.heads * head_size;

  Row row[2];
  uint32_t q[kD / 16][4];
  for (int h = 0; h < 2; ++h) {
    const int r = min(tile * kQueries + warp * 16 + g + h * 8, c.rows - 1);
    row[h].i = c.first + r;
    row[h].time = c.time_us[row[h].i];
    row[h].tie = c.tie[row[h].i];
    row[h].previous_tie = c.previous_tie[row[h].i];
    row[h].table = c.table + (int64_t{r} * a.heads + head) * a.table_width;
    const auto* from = static_cast<const __nv_bfloat16*>(c.qkv) + int64_t{r} * a.qkv_stride + head * kD + t * 2;
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      q[k][h] = *reinterpret_cast<const uint32_t*>(from + k * 16);
      q[k][h + 2] = *reinterpret_cast<const uint32_t*>(from + k * 16 + 8);
    }
  }
  float o[kD / 8][4] = {};
  const int i_first = c.first + tile * kQueries, i_last = min(i_first + kQueries, c.first + c.rows) - 1;
  const int64_t oldest = max(int64_t{0}, i_first - a.window_rows);
  const int begin = static_cast<int>(oldest / kKeys), end = i_last / kKeys + 1;
  const auto load = [&](int at) {
    if (at < end) {
      const auto* from = pool + c.blocks[at / 2] * block_size + (at % 2) * kKeys * kD;
      const uint32_t to = base + (at - begin) % kStages * 2 * Tile<kD>::kBytes;
      Tile<kD>::Load(to, from);
      Tile<kD>::Load(to + Tile<kD>::kBytes, from + v_from_k);
    }
    asm volatile("cp.async.commit_group;");
  };
  load(begin);
  for (int at = begin; at < end; ++at) {
    load(at + 1);
    asm volatile("cp.async.wait_group 1;");
    __syncthreads();
    const uint32_t k_at = base + (at - begin) % kStages * 2 * Tile<kD>::kBytes, v_at = k_at + Tile<kD>::kBytes;
    const int j0 = at * kKeys;
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, k_at + Tile<kD>::At(n * 16 + (lane / 16) * 8 + lane % 8, k * 2 + lane / 8 % 2));
        Multiply(s[2 * n], q[k], b[0], b[1]);
        Multiply(s[2 * n + 1], q[k], b[2], b[3]);
      }
    }
    View view[2];
    for (int h = 0; h < 2; ++h) view[h] = Look(a, row[h], j0, c.time_us);
    const bool uniform = __all_sync(0xffffffffu, view[0].uniform && view[1].uniform);
    const bool two = __all_sync(0xffffffffu, view[0].two && view[1].two);
    const float to_log2 = a.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int h = x / 2, j = j0 + n * 8 + t * 2 + x % 2;
        float bias;
        if (uniform) {
          bias = view[h].older;
        } else if (two) {
          bias = c.time_us[j] <= view[h].edge_time ? view[h].older : view[h].newer;
        } else {
          bias = PairBias(a, row[h], j, c.time_us, c.tie);
        }
        s[n][x] = (s[n][x] + bias) * to_log2;
      }
    }
    for (int h = 0; h < 2; ++h) {
      float top = row[h].top;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float reference = top == -INFINITY ? 0 : top, shrink = exp2f(row[h].top - reference);
      row[h].top = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        for (int x = 2 * h; x < 2 * h + 2; ++x) sum += s[n][x] = exp2f(s[n][x] - reference);
      }
      row[h].sum = row[h].sum * shrink + sum;  // of the thread's columns; the four threads' join at the end
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) o[n][2 * h] *= shrink, o[n][2 * h + 1] *= shrink;
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t p[4] = {Pack(s[2 * k][0], s[2 * k][1]), Pack(s[2 * k][2], s[2 * k][3]),
                             Pack(s[2 * k + 1][0], s[2 * k + 1][1]), Pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kD / 16; ++n) {
        uint32_t b[4];
        LoadMatricesTransposed(b, v_at + Tile<kD>::At(k * 16 + lane % 16, 2 * n + lane / 16));
        Multiply(o[2 * n], p, b[0], b[1]);
        Multiply(o[2 * n + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  for (int h = 0; h < 2; ++h) {
    float sum = row[h].sum;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int r = tile * kQueries + warp * 16 + g + h * 8;
    if (r >= c.rows) continue;
    auto* to = static_cast<__nv_bfloat16*>(c.o) + (int64_t{r} * a.heads + head) * kD + t * 2;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      *reinterpret_cast<uint32_t*>(to + n * 8) = Pack(o[n][2 * h] / sum, o[n][2 * h + 1] / sum);
    }
  }
}

// Of few rows a block takes one page of one row and head: a thread a key, then a thread a column of V.
__global__ void __launch_bounds__(kPage) FewRowsKernel(const __grid_constant__ CudaHistoryArgs a) {
  const CudaHistoryRows& c = a.channel[blockIdx.z];
  const int r = blockIdx.y / a.heads, head = blockIdx.y % a.heads, page = blockIdx.x, lane = threadIdx.x % 32;
  if (r >= c.rows || page > (c.first + r) / kPage) return;
  __shared__ float q[128], p[kPage], shared[2][kPage / 32];
  const auto* from = static_cast<const __nv_bfloat16*>(c.qkv) + int64_t{r} * a.qkv_stride + head * a.d_h;
  if (static_cast<int>(threadIdx.x) < a.d_h) q[threadIdx.x] = __bfloat162float(from[threadIdx.x]);
  __syncthreads();
  const int64_t head_size = int64_t{kPage} * a.d_h, block_size = 2 * int64_t{a.layers} * a.heads * head_size;
  const auto* k = static_cast<const __nv_bfloat16*>(a.pool) + c.blocks[page] * block_size +
                  (int64_t{2} * a.layer * a.heads + head) * head_size;
  const auto* v = k + a.heads * head_size;
  const int i = c.first + r;
  const Row row{i, c.time_us[i], c.tie[i], c.previous_tie[i], c.table + (int64_t{r} * a.heads + head) * a.table_width};
  const int j = page * kPage + threadIdx.x;
  float logit = PairBias(a, row, j, c.time_us, c.tie);
  if (logit != -INFINITY) {
    float dot = 0;
    for (int x = 0; x < a.d_h; x += 8) {
      const uint4 piece = *reinterpret_cast<const uint4*>(k + threadIdx.x * a.d_h + x);
      const auto* values = reinterpret_cast<const __nv_bfloat16*>(&piece);
#pragma unroll
      for (int y = 0; y < 8; ++y) dot += __bfloat162float(values[y]) * q[x + y];
    }
    logit = (logit + dot) * a.scale * kLog2e;
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
  for (int y = 0; y < kPage; ++y) o += p[y] * __bfloat162float(v[y * a.d_h + threadIdx.x]);
  part[2 + threadIdx.x] = o;
}

// Joins the pages of one row and head.
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
  static_cast<__nv_bfloat16*>(c.o)[(int64_t{r} * a.heads + head) * a.d_h + threadIdx.x] = __float2bfloat16_rn(o / sum);
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
      const auto* from =
          static_cast<const __nv_bfloat16*>(c.qkv) + int64_t{r} * a.qkv_stride + head * a.d_h + piece * 8;
      k = *reinterpret_cast<const uint4*>(from + a.k_at);
      v = *reinterpret_cast<const uint4*>(from + a.v_at);
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

template <int kD>
const char* LaunchAttend(const CudaHistoryArgs& a, int tiles, cudaStream_t stream) {
  constexpr int kBytes = kStages * 2 * Tile<kD>::kBytes;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(HistoryKernel<kD>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  HistoryKernel<kD><<<dim3(tiles, a.heads, a.channels), kThreads, kBytes, stream>>>(a);
  return Launched();
}

}  // namespace

const char* CudaHistoryAttend(const CudaHistoryArgs& a, void* stream) {
  int tiles = 0;
  for (int c = 0; c < a.channels; ++c) tiles = std::max(tiles, (a.channel[c].rows + kQueries - 1) / kQueries);
  if (tiles == 0) return nullptr;
  int rows = 0, pages = 0;
  for (int c = 0; c < a.channels; ++c) {
    rows = std::max(rows, a.channel[c].rows);
    pages = std::max(pages, (a.channel[c].first + a.channel[c].rows + kPage - 1) / kPage);
  }
  if (rows <= kCudaFewRows && pages <= a.pages_max) return LaunchFewRows(a, pages, static_cast<cudaStream_t>(stream));
  if (a.d_h == 128) return LaunchAttend<128>(a, tiles, static_cast<cudaStream_t>(stream));
  if (a.d_h == 64) return LaunchAttend<64>(a, tiles, static_cast<cudaStream_t>(stream));
  return "history attention: d_h must be 64 or 128";
}

const char* CudaWriteKv(const CudaHistoryArgs& a, void* stream) {
  constexpr int kBlocks = 264;
  WriteKvKernel<<<dim3(kBlocks, a.channels), 256, 0, static_cast<cudaStream_t>(stream)>>>(a);
  return Launched();
}

}  // namespace backstory::grab
