// What becomes of the products of linear.cuh, by a warpgroup: rounded and stored; or added to a residual and normalised
// over all features of a row, perhaps mixed with the other channel; or reduced to logits. Blocks of a cluster have the
// features of the same rows and send each other two numbers a row.
#ifndef BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_
#define BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_

#include "kernels/cuda/linear.cuh"

namespace backstory::cuda {

enum class LinearEnd { kStore, kNorm, kMix, kHead };

// Sums a[j] over the eight lanes that differ in lane / 4, which is the j whose sum a lane gets.
__device__ __forceinline__ float ScatterSum(const float (&a)[8]) {
  const bool high = threadIdx.x & 16, middle = threadIdx.x & 8, low = threadIdx.x & 4;
  float b[4], c[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i] = (high ? a[i + 4] : a[i]) + __shfl_xor_sync(0xffffffff, high ? a[i] : a[i + 4], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    c[i] = (middle ? b[i + 2] : b[i]) + __shfl_xor_sync(0xffffffff, middle ? b[i] : b[i + 2], 8);
  }
  return (low ? c[1] : c[0]) + __shfl_xor_sync(0xffffffff, low ? c[0] : c[1], 4);
}

// Joins `parts` (mean, sum of squares about it) of `each` values, `stride` apart, in order.
__device__ __forceinline__ float2 JoinMoments(const float2* part, int stride, int parts, float each) {
  float mean = 0, squares = 0;
  for (int i = 0; i < parts; ++i) mean += part[i * stride].x;
  mean /= parts;
  for (int i = 0; i < parts; ++i) {
    const float2 p = part[i * stride];
    squares += fmaf(each * (p.x - mean), p.x - mean, p.y);
  }
  return make_float2(mean, squares);
}

template <class Tile>
class LinearGroup {
 public:
  static constexpr int kRows = Tile::kRows, kValues = kRows / 2;
  __device__ LinearGroup(const LinearArgs& a, LinearShared<Tile>& s)
      : a_(a),
        s_(s),
        thread_(threadIdx.x % 256),
        warp_(thread_ / 32),
        lane_(threadIdx.x % 32),
        unit_(Tile::kTwin ? warp_ / 4 : 0),
        channel_(Tile::kTwin ? warp_ / 4 : blockIdx.z),
        row_(blockIdx.y * kRows),
        first_(blockIdx.x * Tile::kFeatures),
        feature_(first_ + 16 * (Tile::kTwin ? warp_ % 4 : warp_) + lane_ / 4) {}

  // d = what the sums start from.
  __device__ __forceinline__ void Start(float (&d)[kValues]) const {
    float b[2] = {0, 0};
    if (first_ < a_.out) {
      const int at = channel_ * a_.out + feature_;
      if (a_.b != nullptr) b[0] = __bfloat162float(a_.b[at]), b[1] = __bfloat162float(a_.b[at + 8]);
      if (a_.b_float != nullptr) b[0] = a_.b_float[at], b[1] = a_.b_float[at + 8];
    }
    Each([&](int i, int r, int) { d[i] = b[r]; });
    if (a_.x == nullptr) return;
    Each([&](int i, int r, int row) {
      if (row_ + row < a_.rows) d[i] += __ldcg(a_.x + XAt(row) + 8 * r);
    });
  }

  __device__ __forceinline__ void Store(float (&d)[kValues]) const {
    if (first_ >= a_.out) return StoreSecond(d);
    if (a_.relu) Each([&](int i, int, int) { d[i] = fmaxf(d[i], 0); });
    BlockSync();  // both groups' products are done
    StoreRounded(d);
  }

  __device__ __forceinline__ void Norm(float (&v)[kValues]) const {
    ForEights([&](int at, int row) {
      float sum[8], squares[8];
      EachOfEight([&](int j, int i) { sum[j] = v[at + i] + v[at + i + 2]; });
      const float mean = ScatterSum(sum) / 16;
      EachOfEight([&](int j, int i) {
        const float m = __shfl_sync(0xffffffff, mean, 4 * j + lane_ % 4), low = v[at + i] - m, high = v[at + i + 2] - m;
        squares[j] = fmaf(low, low, high * high);
      });
      s_.of_warp[warp_][row] = make_float2(mean, ScatterSum(squares));
    });
    UnitSync();
    const int row = thread_ % Tile::kUnitThreads;
    if (row < kRows) {
      constexpr int kWarps = 8 / Tile::kUnits;
      Send(JoinMoments(&s_.of_warp[kWarps * unit_][row], kRows, kWarps, 16), &s_.moments[unit_][blockIdx.x][row],
           s_.moments_full[unit_]);
      WaitForCluster(At(s_.moments_full[unit_]), 0);
      const float2 all = JoinMoments(&s_.moments[unit_][0][row], kRows, gridDim.x, Tile::kFeatures);
      s_.of_row[unit_][row] = make_float2(all.x, rsqrtf(all.y / a_.out + 1e-5f));
    }
    UnitSync();
    float gain[2], shift[2];
    for (int r = 0; r < 2; ++r) {
      gain[r] = a_.gain[channel_ * a_.out + feature_ + 8 * r], shift[r] = a_.shift[channel_ * a_.out + feature_ + 8 * r];
    }
    Each([&](int i, int r, int at) {
      const float2 fact = s_.of_row[unit_][at];
      v[i] = fmaf((v[i] - fact.x) * fact.y, gain[r], shift[r]);
    });
  }

  // v += sigmoid(gate of the other channel) times the other channel's rows, which the other warpgroup has: a thread there
  // holds the same rows and features.
  __device__ __forceinline__ void Mix(float (&v)[kValues]) const {
    const float* const w = a_.gate_w + channel_ * 2 * a_.out + feature_;
    const float w0[2] = {w[0], w[8]}, w1[2] = {w[a_.out], w[a_.out + 8]};
    ForEights([&](int at, int row) {
      float p0[8], p1[8];
      EachOfEight([&](int j, int i) {
        p0[j] = fmaf(v[at + i], w0[0], v[at + i + 2] * w0[1]);
        p1[j] = fmaf(v[at + i], w1[0], v[at + i + 2] * w1[1]);
      });
      const float g0 = ScatterSum(p0), g1 = ScatterSum(p1);
      s_.of_warp[warp_][row] = make_float2(g0, g1);
    });
    BlockSync();  // both groups' products are done: their operands' place takes rows
    float4* const place = reinterpret_cast<float4*>(s_.w);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      place[i * 256 + thread_] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
    if (thread_ < kRows) {
      const float2 all = SumOverCluster(thread_);
      s_.of_row[0][thread_].x = 1 / (1 + __expf(-(all.y + a_.gate_b[1])));
      s_.of_row[1][thread_].x = 1 / (1 + __expf(-(all.x + a_.gate_b[0])));
    }
    BlockSync();
#pragma unroll
    for (int n = 0; n < kValues / 4; ++n) {
      const float4 x = place[n * 256 + (thread_ ^ 128)];
      const int row = 8 * n + lane_ % 4 * 2;
      const float low = s_.of_row[unit_][row].x, high = s_.of_row[unit_][row + 1].x;
      v[4 * n] = fmaf(low, x.x, v[4 * n]), v[4 * n + 1] = fmaf(high, x.y, v[4 * n + 1]);
      v[4 * n + 2] = fmaf(low, x.z, v[4 * n + 2]), v[4 * n + 3] = fmaf(high, x.w, v[4 * n + 3]);
    }
    BlockSync();  // before the place takes what is stored
  }

  // After Norm or Mix.
  __device__ __forceinline__ void Write(const float (&v)[kValues]) const {
    if (a_.concat == nullptr) {
      Each([&](int i, int r, int row) {
        if (row_ + row < a_.rows) a_.x[XAt(row) + 8 * r] = v[i];
      });
    }
    StoreRounded(v);
  }

  // Sums of relu(d) w over the features, by task, to the first block.
  __device__ __forceinline__ void Head(const float (&d)[kValues]) const {
    const bool two = a_.tasks > 1;
    const float* const w = a_.head_w + feature_;
    const float w0[2] = {w[0], w[8]}, w1[2] = {two ? w[a_.out] : 0, two ? w[a_.out + 8] : 0};
    ForEights([&](int at, int row) {
      float p0[8], p1[8];
      EachOfEight([&](int j, int i) {
        const float low = fmaxf(d[at + i], 0), high = fmaxf(d[at + i + 2], 0);
        p0[j] = fmaf(low, w0[0], high * w0[1]), p1[j] = fmaf(low, w1[0], high * w1[1]);
      });
      const float t0 = ScatterSum(p0), t1 = ScatterSum(p1);
      s_.of_warp[warp_][row] = make_float2(t0, t1);
    });
    BlockSync();
    if (thread_ >= kRows) return;
    const float2 all = SumOverCluster(thread_);
    if (blockIdx.x > 0 || row_ + thread_ >= a_.rows) return;
    float* const to = a_.logits + int64_t{row_ + thread_} * a_.tasks;
    to[0] = all.x + a_.head_b[0];
    if (two) to[1] = all.y + a_.head_b[1];
  }

 private:
  template <typename F>
  __device__ __forceinline__ void Each(F f) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) f(i, i / 2 % 2, i / 4 * 8 + lane_ % 4 * 2 + i % 2);
  }
  // A thread's rows, eight at a time: f(of their first value, the row of the eight whose sums this lane gets).
  template <typename F>
  __device__ __forceinline__ void ForEights(F f) const {
#pragma unroll
    for (int i = 0; i < kRows / 32; ++i) f(16 * i, 32 * i + lane_ / 8 * 8 + lane_ % 4 * 2 + lane_ / 4 % 2);
  }
  // f(j, where the first of the j-th row's two values is).
  template <typename F>
  static __device__ __forceinline__ void EachOfEight(F f) {
#pragma unroll
    for (int j = 0; j < 8; ++j) f(j, j / 2 * 4 + j % 2);
  }
  __device__ __forceinline__ int64_t XAt(int row) const {
    return (int64_t{channel_} * a_.rows + row_ + row) * a_.out + feature_;
  }
  __device__ __forceinline__ void BlockSync() const { NamedSync(3, 256); }
  __device__ __forceinline__ void UnitSync() const { NamedSync(1 + unit_, Tile::kUnitThreads); }

  // To the same place of every block of the cluster.
  __device__ __forceinline__ void Send(float2 pair, const float2* place, const uint64_t& full) const {
    for (uint32_t block = 0; block < gridDim.x; ++block) SendPair(pair, SharedAddress(place), At(full), block);
  }
  // of_warp of all warps of all blocks, added up in order.
  __device__ __forceinline__ float2 SumOverCluster(int row) const {
    float2 sum = make_float2(0, 0);
    for (int i = 0; i < 8; ++i) sum.x += s_.of_warp[i][row].x, sum.y += s_.of_warp[i][row].y;
    Send(sum, &s_.sums[blockIdx.x][row], s_.sums_full);
    WaitForCluster(At(s_.sums_full), 0);
    float2 all = make_float2(0, 0);
    for (int i = 0; i < static_cast<int>(gridDim.x); ++i) all.x += s_.sums[i][row].x, all.y += s_.sums[i][row].y;
    return all;
  }

  // v in bf16 to y or concat, by way of shared memory for wide stores.
  __device__ __forceinline__ void StoreRounded(const float (&v)[kValues]) const {
    constexpr int kWide = Tile::kFeatures, kPitch = kWide * 2 + 16;  // bytes; no bank twice
    unsigned char* const place = &s_.w[0][0] + unit_ * kRows * kPitch;
    const uint32_t to = SharedAddress(place) + 32 * (warp_ % (kWide / 16));
#pragma unroll
    for (int n = 0; n < kRows / 8; n += 2) {
      const float* const x = &v[4 * n];
      const uint32_t m[4] = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]), PackBf16(x[6], x[7])};
      StoreTransposed(to + (8 * (n + lane_ / 16) + lane_ % 8) * kPitch + lane_ / 8 % 2 * 16, m);
    }
    UnitSync();
    const bool concat = a_.concat != nullptr;
    const int64_t stride = concat ? a_.channels * a_.out : a_.out;
    auto* const y = static_cast<__nv_bfloat16*>(concat ? a_.concat : a_.y) + first_ +
                    (concat ? int64_t{row_} * stride + channel_ * a_.out : (int64_t{channel_} * a_.rows + row_) * stride);
    for (int i = thread_ % Tile::kUnitThreads; i < kRows * (kWide / 8); i += Tile::kUnitThreads) {
      const int row = i / (kWide / 8), column = i % (kWide / 8);
      if (row_ + row >= a_.rows) break;
      *reinterpret_cast<uint4*>(y + row * stride + column * 8) =
          *reinterpret_cast<const uint4*>(place + row * kPitch + column * 16);
    }
  }
  __device__ __forceinline__ void StoreSecond(const float (&d)[kValues]) const {
    Each([&](int i, int r, int row) {
      if (i % 2 != 0) return;
      const int feature = feature_ - a_.out + 8 * r;
      if (feature >= a_.second_out || row_ + row >= a_.rows) return;
      *reinterpret_cast<float2*>(a_.second + (int64_t{channel_} * a_.second_out + feature) * a_.rows + row_ + row) =
          make_float2(d[i], d[i + 1]);
    });
  }

  const LinearArgs& a_;
  LinearShared<Tile>& s_;
  const int thread_, warp_, lane_, unit_, channel_, row_, first_, feature_;
};

template <class Tile, LinearEnd kEnd>
__global__ void __launch_bounds__(Tile::kThreads, LinearBlocksPerSm<Tile>())
    LinearKernel(const __grid_constant__ LinearArgs a, const __grid_constant__ LinearMaps maps) {
  constexpr bool kCluster = kEnd != LinearEnd::kStore;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& s = *reinterpret_cast<LinearShared<Tile>*>(raw);
  if (threadIdx.x == 0) LinearInit(s, kCluster);
  __syncthreads();
  if (kCluster) ClusterArrive();
  if (threadIdx.x >= 256) {
    if (threadIdx.x == 256) LinearLoad(a, maps, s);
    if (kCluster) ClusterWait();
    return;
  }
  LinearGroup<Tile> group(a, s);
  float d[Tile::kRows / 2];
  group.Start(d);
  LinearMultiply(s, __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0), a.in / 64, d);
  if (kCluster) ClusterWait();  // the other blocks' barriers exist
  if constexpr (kEnd == LinearEnd::kStore) group.Store(d);
  if constexpr (kEnd == LinearEnd::kHead) group.Head(d);
  if constexpr (kEnd == LinearEnd::kNorm || kEnd == LinearEnd::kMix) {
    group.Norm(d);
    if constexpr (kEnd == LinearEnd::kMix) group.Mix(d);
    group.Write(d);
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_
