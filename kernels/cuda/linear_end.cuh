// What becomes of the products of linear.cuh, by a warpgroup: rounded and stored; or, begun from a residual, normalised
// over all features of a row, perhaps mixed with the other channel; or reduced to logits. Blocks of a cluster have the
// features of the same rows and send each other two numbers a row. Over the size bar because its steps share registers
// and their layout.
#ifndef BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_
#define BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_

#include "kernels/cuda/linear.cuh"

namespace backstory::cuda {

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
#pragma unroll 4
  for (int i = 0; i < parts; ++i) mean += part[i * stride].x;
  mean = __fdividef(mean, static_cast<float>(parts));
#pragma unroll 4
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
  __device__ LinearGroup(const LinearArgs& a, const LinearMaps& maps, LinearShared<Tile>& s)
      : a_(a),
        maps_(maps),
        s_(s),
        thread_(threadIdx.x % 256),
        warp_(thread_ / 32),
        lane_(threadIdx.x % 32),
        unit_(Tile::kTwin ? warp_ / 4 : 0),
        channel_(Tile::kTwin ? warp_ / 4 : blockIdx.z),
        row_(blockIdx.y * kRows),
        first_(blockIdx.x * Tile::kFeatures),
        feature_(first_ + 16 * (Tile::kTwin ? warp_ % 4 : warp_) + lane_ / 4) {
    // A warp's features are half of a box of 32; a row's 16-byte pieces are exchanged by row % 8, 2 (l % 4) + e.
    const uint32_t box = SharedAddress(s.x) + warp_ / 2 * Tile::kRowBytes + lane_ % 4 * 256;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int piece = (warp_ % 2 * 4 + r * 2 + lane_ / 16) ^ (lane_ % 4 * 2 + e);
        x_at_[r][e] = box + e * 128 + piece * 16 + lane_ / 4 % 4 * 4;
      }
    }
  }

  // d = what the sums start from.
  __device__ __forceinline__ void Start(float (&d)[kValues]) const {
    float b[2] = {0, 0};
    if (first_ < a_.out) {
      const int at = channel_ * a_.out + feature_;
      if (a_.b != nullptr) b[0] = __bfloat162float(a_.b[at]), b[1] = __bfloat162float(a_.b[at + 8]);
      if (a_.b_float != nullptr) b[0] = a_.b_float[at], b[1] = a_.b_float[at + 8];
    }
    if constexpr (Tile::kNorms) {
      At(s_.x_full).Wait(0);
      Each([&](int i, int n, int r, int e) {
        float x;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(x_at_[r][e] + n * 1024));
        d[i] = x + b[r];
      });
    } else {
      Each([&](int i, int, int r, int) { d[i] = b[r]; });
    }
  }

  __device__ __forceinline__ void Store(float (&d)[kValues]) const {
    if (first_ >= a_.out) return StoreSecond(d);
    if (a_.relu) {
      for (float& v : d) v = fmaxf(v, 0);
    }
    BlockSync();  // both groups' products are done
    Write(d, 0, false);
  }

  __device__ __forceinline__ void Norm(float (&v)[kValues]) const {
    ForEights([&](int at, int row) {
      float sum[8], squares[8];
      EachOfEight([&](int j, int i) { sum[j] = v[at + i] + v[at + i + 2]; });
      const float mean = ScatterSum(sum) * (1.0f / 16);
      EachOfEight([&](int j, int i) {
        const float m = __shfl_sync(0xffffffff, mean, 4 * j + lane_ % 4), low = v[at + i] - m, high = v[at + i + 2] - m;
        squares[j] = fmaf(low, low, high * high);
      });
      s_.of_warp[warp_][row] = make_float2(mean, ScatterSum(squares));
    });
    float gain[2], shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      gain[r] = a_.gain[channel_ * a_.out + feature_ + 8 * r],
      shift[r] = a_.shift[channel_ * a_.out + feature_ + 8 * r];
    }
    UnitSync();
    const int row = thread_ % Tile::kUnitThreads;
    if (row < kRows) {
      constexpr int kWarps = 8 / Tile::kUnits;
      Send(JoinMoments(&s_.of_warp[kWarps * unit_][row], kRows, kWarps, 16), &s_.moments[unit_][blockIdx.x][row],
           s_.moments_full[unit_]);
      WaitForCluster(At(s_.moments_full[unit_]), 0);
      const float2 all = JoinMoments(&s_.moments[unit_][0][row], kRows, gridDim.x, Tile::kFeatures);
      s_.of_row[unit_][row] = make_float2(all.x, rsqrtf(__fdividef(all.y, static_cast<float>(a_.out)) + 1e-5f));
    }
    UnitSync();
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const float4 fact = *reinterpret_cast<const float4*>(&s_.of_row[unit_][8 * n + lane_ % 4 * 2]);
      v[4 * n] = fmaf((v[4 * n] - fact.x) * fact.y, gain[0], shift[0]);
      v[4 * n + 1] = fmaf((v[4 * n + 1] - fact.z) * fact.w, gain[0], shift[0]);
      v[4 * n + 2] = fmaf((v[4 * n + 2] - fact.x) * fact.y, gain[1], shift[1]);
      v[4 * n + 3] = fmaf((v[4 * n + 3] - fact.z) * fact.w, gain[1], shift[1]);
    }
  }

  // v += sigmoid(gate of the other channel) times the other channel's rows, which the other warpgroup has: a thread
  // there holds the same rows and features.
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
    float4* const place = reinterpret_cast<float4*>(s_.ring);
#pragma unroll
    for (int i = 0; i < kValues / 4; ++i) {
      place[i * 256 + thread_] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
    if (thread_ < kRows) {
      const float2 all = SumOverCluster(thread_);
      s_.of_row[0][thread_].x = __fdividef(1, 1 + __expf(-(all.y + a_.gate_b[1])));
      s_.of_row[1][thread_].x = __fdividef(1, 1 + __expf(-(all.x + a_.gate_b[0])));
    }
    BlockSync();
#pragma unroll
    for (int n = 0; n < kValues / 4; ++n) {
      const float4 x = place[n * 256 + (thread_ ^ 128)];
      const float4 beta = *reinterpret_cast<const float4*>(&s_.of_row[unit_][8 * n + lane_ % 4 * 2]);
      v[4 * n] = fmaf(beta.x, x.x, v[4 * n]), v[4 * n + 1] = fmaf(beta.z, x.y, v[4 * n + 1]);
      v[4 * n + 2] = fmaf(beta.x, x.z, v[4 * n + 2]), v[4 * n + 3] = fmaf(beta.z, x.w, v[4 * n + 3]);
    }
  }

  // v to x, where a thread writes what it has read, and rounded to y by way of the ring from byte `from` on.
  __device__ __forceinline__ void Write(const float (&v)[kValues], int from, bool write_x) const {
    if (Tile::kNorms && write_x) {
      Each([&](int i, int n, int r, int e) {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(x_at_[r][e] + n * 1024), "f"(v[i]) : "memory");
      });
    }
    unsigned char* const place = &s_.ring[0][0] + from;  // [units][features / 64][rows][64], swizzled
    const uint32_t to = SharedAddress(place) + warp_ / 4 * Tile::kRowBytes + lane_ / 16 * 1024 + lane_ % 8 * 128 +
                        ((warp_ % 4 * 2 + lane_ / 8 % 2) ^ lane_ % 8) * 16;
#pragma unroll
    for (int n = 0; n < kRows / 8; n += 2) {
      const float* const x = &v[4 * n];
      const uint32_t m[4] = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]), PackBf16(x[6], x[7])};
      StoreTransposed(to + n * 1024, m);
    }
    FenceForCopyEngine();
    UnitSync();
    if (thread_ % Tile::kUnitThreads != 0) return;
    constexpr int kBoxes = Tile::kFeatures / 64;
    for (int i = 0; i < kBoxes; ++i) {
      StoreBox3(&maps_.y, place + (unit_ * kBoxes + i) * Tile::kRowBytes, first_ + 64 * i, row_, channel_);
    }
    for (int i = 0; i < 2 * kBoxes && Tile::kNorms && write_x; ++i) {
      StoreBox3(&maps_.x, s_.x + (unit_ * 2 * kBoxes + i) * Tile::kRowBytes, first_ + 32 * i, row_, channel_);
    }
    CommitStores();
    WaitForStoresRead();
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
  // f(i, n, r, e) for value i = 4 n + 2 r + e.
  template <typename F>
  static __device__ __forceinline__ void Each(F f) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) f(i, i / 4, i / 2 % 2, i % 2);
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
  __device__ __forceinline__ void BlockSync() const { NamedSync(3, 256); }
  __device__ __forceinline__ void UnitSync() const { NamedSync(1 + unit_, Tile::kUnitThreads); }

  // To the same place of every block of the cluster.
  __device__ __forceinline__ void Send(float2 pair, const float2* place, const uint64_t& full) const {
#pragma unroll 2
    for (uint32_t block = 0; block < gridDim.x; ++block) SendPair(pair, SharedAddress(place), At(full), block);
  }
  // of_warp of all warps of all blocks, added up in order.
  __device__ __forceinline__ float2 SumOverCluster(int row) const {
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.x += s_.of_warp[i][row].x, sum.y += s_.of_warp[i][row].y;
    Send(sum, &s_.sums[blockIdx.x][row], s_.sums_full);
    WaitForCluster(At(s_.sums_full), 0);
    float2 all = make_float2(0, 0);
#pragma unroll 4
    for (int i = 0; i < static_cast<int>(gridDim.x); ++i) all.x += s_.sums[i][row].x, all.y += s_.sums[i][row].y;
    return all;
  }

  __device__ __forceinline__ void StoreSecond(const float (&d)[kValues]) const {
    const int row = row_ + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int feature = feature_ - a_.out + 8 * r;
      if (feature >= a_.second_out) continue;
      float* const to = a_.second + (int64_t{channel_} * a_.second_out + feature) * a_.rows + row;
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n) {
        if (row + 8 * n < a_.rows) {
          *reinterpret_cast<float2*>(to + 8 * n) = make_float2(d[4 * n + 2 * r], d[4 * n + 2 * r + 1]);
        }
      }
    }
  }

  const LinearArgs& a_;
  const LinearMaps& maps_;
  LinearShared<Tile>& s_;
  const int thread_, warp_, lane_, unit_, channel_, row_, first_, feature_;
  uint32_t x_at_[2][2];  // of this thread's values in x: [r][e], 1,024 bytes further for each n
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, LinearBlocksPerSm<Tile>())
    LinearKernel(const __grid_constant__ LinearArgs a, const __grid_constant__ LinearMaps maps) {
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& s = *reinterpret_cast<LinearShared<Tile>*>(raw);
  if (threadIdx.x == 256) {
    PrefetchTensorMap(&maps.w);
    LinearInit(s);
  }
  __syncthreads();
  if (Tile::kCluster) ClusterArrive();
  if (threadIdx.x >= 256) {
    if (threadIdx.x == 256) LinearLoad(a, maps, s);
    if (Tile::kCluster) ClusterWait();
    return;
  }
  LinearGroup<Tile> group(a, maps, s);
  float d[Tile::kRows / 2];
  group.Start(d);
  LinearMultiply(s, __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0), a.in / 64, d);
  if (Tile::kCluster) ClusterWait();  // the other blocks' barriers exist
  if constexpr (Tile::kEnd == LinearEnd::kStore) group.Store(d);
  if constexpr (Tile::kEnd == LinearEnd::kHead) group.Head(d);
  if constexpr (Tile::kNorms) {
    group.Norm(d);
    if constexpr (Tile::kTwin) group.Mix(d);
    group.Write(d, Tile::kTwin ? Tile::kXBytes : 0, a.write_x);
  }
}

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_LINEAR_END_CUH_
