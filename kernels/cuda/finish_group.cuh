// A warpgroup that finishes a layer (finish.cuh). Over the size bar because its steps share registers and exchanges that
// are best followed in one piece.
#ifndef BACKSTORY_KERNELS_CUDA_FINISH_GROUP_CUH_
#define BACKSTORY_KERNELS_CUDA_FINISH_GROUP_CUH_

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/finish_shared.cuh"
#include "kernels/cuda/layer.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace backstory::cuda {

// A warpgroup: 32 rows, 64 features of x (128 of the inner layer). v[4 n + 2 r + e] is feature l / 4 + 8 r of the
// warp's 16, row 8 n + 2 (l % 4) + e of the group's.
class FinishGroup {
 public:
  using Tile = FinishTile;
  __device__ FinishGroup(const FinishArgs& a, int channel, int slice, int row, FinishShared& s)
      : a_(a), s_(s), channel_(channel), slice_(slice), row_(row) {}

  __device__ __forceinline__ void Run() {
    float v[16], x[1][16], inner[2][16], gain[2], shift[2];
    const int d_at = channel_ * Tile::kD + Feature();
    if (a_.overlap_previous) {
      WaitForPreviousKernel();
      LetNextKernelStart();
    }
    Each([&](int i, int r, int row) {
      v[i] = row_ + row < a_.rows ? a_.x[XAt(row) + 8 * r] : 0;
    });
    At(s_.attended_full).Wait(0);
    Multiply<1>(0, Tile::kWide / 64, x);
    for (int i = 0; i < 16; ++i) v[i] += x[0][i];
    Pair(a_.n1_g + d_at, gain), Pair(a_.n1_b + d_at, shift);
    Norm(0, gain, shift, v);
    StoreTile(v, s_.act[8 + slice_]);
    Send(s_.act[8 + slice_], Tile::kGroupBytes, s_.y_full[group_]);
    At(s_.y_full[group_]).Wait(0);
    Multiply<2>(8, Tile::kD / 64, inner);
    Sync();  // all four warps' products are done
    if (thread_ < Tile::kSlices) ArriveInBlock(At(s_.inner_free[group_]), channel_ * Tile::kSlices + thread_);
    for (int m = 0; m < 2; ++m) {
      const auto* b = static_cast<const __nv_bfloat16*>(a_.b_1) + channel_ * Tile::kFfn + 128 * slice_ + 64 * m +
                      16 * warp_ + lane_ / 4;
      const float shift1[2] = {__bfloat162float(b[0]), __bfloat162float(b[8])};
      Each([&](int i, int r, int) { inner[m][i] = fmaxf(inner[m][i] + shift1[r], 0); });
    }
    WaitForCluster(At(s_.inner_free[group_]), 0);
    StoreTile(inner[0], s_.act[2 * slice_]);
    StoreTile(inner[1], s_.act[2 * slice_ + 1]);
    Send(s_.act[2 * slice_], Tile::kGroupBytes, s_.inner_full[group_], s_.act[2 * slice_ + 1]);
    At(s_.inner_full[group_]).Wait(0);
    Multiply<1>(0, Tile::kFfn / 64, x);
    Pair(a_.b_2 + d_at, shift);
    Each([&](int i, int r, int) { v[i] += x[0][i] + shift[r]; });
    Pair(a_.n2_g + d_at, gain), Pair(a_.n2_b + d_at, shift);
    Norm(1, gain, shift, v);
    if (a_.gate_w != nullptr && a_.channels == 2) Mix(v);
    Write(v);
  }

 private:
  template <typename F>
  static __device__ __forceinline__ void Each(F f) {
    const int first = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 16; ++i) f(i, i / 2 % 2, i / 4 * 8 + first + i % 2);
  }
  // Of this thread's first row of features; the second is 8 further.
  __device__ __forceinline__ int Feature() const { return 64 * slice_ + 16 * warp_ + lane_ / 4; }
  __device__ __forceinline__ int64_t XAt(int row) const {
    return (int64_t{channel_} * a_.rows + row_ + row) * Tile::kD + Feature();
  }
  static __device__ __forceinline__ void Pair(const float* at, float (&pair)[2]) { pair[0] = at[0], pair[1] = at[8]; }
  __device__ __forceinline__ void Sync() const { NamedSync(1 + group_, 128); }

  // y[m] = the next weights (64 features each) times the group's rows of pieces [first, first + pieces) of `act`.
  template <int kM>
  __device__ __forceinline__ void Multiply(int first, int pieces, float (&y)[kM][16]) {
    int before = -1;
    for (int k = 0; k < pieces; ++k) {
      const uint32_t b = MatrixWord(SharedAddress(s_.act[first + k]) + group_ * Tile::kGroupBytes, 16);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const int stage = tile_ % Tile::kStages;
        At(s_.weights_full[stage]).Wait(tile_ / Tile::kStages % 2);
        const uint32_t w = MatrixWord(SharedAddress(s_.weights[stage]), 16);
        Pin(y[m]);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < 4; ++i) Wgmma32(y[m], Descriptor(w + 2 * i), Descriptor(b + 2 * i), k + i != 0);
        WgmmaCommit();
        WgmmaWait<1>();
        if (before >= 0 && lane_ == 0) At(s_.weights_empty[before]).Arrive();
        before = stage;
        ++tile_;
      }
    }
    WgmmaWait<0>();
#pragma unroll
    for (int m = 0; m < kM; ++m) Pin(y[m]);
    if (lane_ == 0) At(s_.weights_empty[before]).Arrive();
  }

  // v in bf16 to the group's rows of a piece of `act`: 64 features a row, this warp's 16 of them.
  __device__ __forceinline__ void StoreTile(const float (&v)[16], unsigned char* piece) const {
    const uint32_t at = SharedAddress(piece);
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      const float* const x = &v[4 * n];
      const uint32_t m[4] = {PackBf16(x[0], x[1]), PackBf16(x[2], x[3]), PackBf16(x[4], x[5]), PackBf16(x[6], x[7])};
      const int row = Tile::kGroupRows * group_ + 8 * (n + lane_ / 16) + lane_ % 8;
      StoreTransposed(at + row * 128 + ((2 * warp_ + lane_ / 8 % 2) ^ row % 8) * 16, m);
    }
  }

  // The group's rows of a piece, and perhaps another, to the channel's other blocks, and to the products here.
  __device__ __forceinline__ void Send(const unsigned char* piece, uint32_t bytes, const uint64_t& full,
                                       const unsigned char* another = nullptr) const {
    FenceForCopyEngine();
    Sync();
    if (thread_ < Tile::kSlices && thread_ != slice_) {
      const uint32_t block = channel_ * Tile::kSlices + thread_;
      const unsigned char* const from = piece + group_ * bytes;
      SendBytes(from, bytes, At(full), SharedAddress(from), block);
      if (another != nullptr) {
        SendBytes(another + group_ * bytes, bytes, At(full), SharedAddress(another + group_ * bytes), block);
      }
    }
  }

  // Sums of x and y over the warp's features, in lanes 0..3: eight lanes hold a row's.
  static __device__ __forceinline__ float OverFeatures(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 4);
    x += __shfl_xor_sync(0xffffffff, x, 8);
    return x + __shfl_xor_sync(0xffffffff, x, 16);
  }

  // Joins `parts` (mean, squares about it) of `each` values, `stride` apart, in order.
  static __device__ __forceinline__ float2 Join(const float2* part, int stride, int parts, float each) {
    float mean = 0, squares = 0;
    for (int i = 0; i < parts; ++i) mean += part[i * stride].x;
    mean /= parts;
    for (int i = 0; i < parts; ++i) {
      const float2 p = part[i * stride];
      squares += fmaf(each * (p.x - mean), p.x - mean, p.y);
    }
    return make_float2(mean, squares);
  }

  // v = LayerNorm(v) over all features of a row, by the `which`-th exchange.
  __device__ __forceinline__ void Norm(int which, const float (&gain)[2], const float (&shift)[2], float (&v)[16]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // this thread's rows: n = i / 2, e = i % 2
      const int at = i / 2 * 4 + i % 2;
      const float mean = OverFeatures(v[at] + v[at + 2]) / 16;
      const float low = v[at] - mean, high = v[at + 2] - mean;
      const float squares = OverFeatures(fmaf(low, low, high * high));
      if (lane_ < 4) s_.of_warp[4 * group_ + warp_][i / 2 * 8 + lane_ * 2 + i % 2] = make_float2(mean, squares);
    }
    Sync();
    if (thread_ < Tile::kGroupRows) {
      float2(*const moments)[Tile::kRows] = s_.moments[which];
      const int row = Tile::kGroupRows * group_ + thread_;
      moments[slice_][row] = Join(&s_.of_warp[4 * group_][thread_], Tile::kGroupRows, 4, 16);
      FenceForCopyEngine();
      __syncwarp();
      const BarrierAt full = At(s_.moments_full[which][group_]);
      if (thread_ < Tile::kSlices && thread_ != slice_) {
        const float2* const from = &moments[slice_][Tile::kGroupRows * group_];
        SendBytes(from, Tile::kGroupRows * sizeof(float2), full, SharedAddress(from),
                  channel_ * Tile::kSlices + thread_);
      }
      full.Wait(0);
      const float2 all = Join(&moments[0][row], Tile::kRows, Tile::kSlices, 64);
      s_.of_row[group_][thread_] = make_float2(all.x, rsqrtf(all.y / Tile::kD + 1e-5f));
    }
    Sync();
    Each([&](int i, int r, int row) {
      const float2 fact = s_.of_row[group_][row];
      v[i] = fmaf((v[i] - fact.x) * fact.y, gain[r], shift[r]);
    });
  }

  // v += sigmoid(gate of the other channel) times the other channel's rows.
  __device__ __forceinline__ void Mix(float (&v)[16]) {
    const int other = 1 - channel_, blocks = 2 * Tile::kSlices, rank = channel_ * Tile::kSlices + slice_;
    const float* const w = a_.gate_w + int64_t{channel_} * 2 * Tile::kD + Feature();
    float w0[2], w1[2];
    Pair(w, w0), Pair(w + Tile::kD, w1);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int at = i / 2 * 4 + i % 2;
      const float g0 = OverFeatures(fmaf(v[at], w0[0], v[at + 2] * w0[1]));
      const float g1 = OverFeatures(fmaf(v[at], w1[0], v[at + 2] * w1[1]));
      if (lane_ < 4) s_.of_warp[4 * group_ + warp_][i / 2 * 8 + lane_ * 2 + i % 2] = make_float2(g0, g1);
    }
    Sync();
    if (thread_ < Tile::kGroupRows) {
      float2 mine = make_float2(0, 0);
      for (int i = 0; i < 4; ++i) {
        const float2 p = s_.of_warp[4 * group_ + i][thread_];
        mine = make_float2(mine.x + p.x, mine.y + p.y);
      }
      float2* const from = &s_.gates[rank][Tile::kGroupRows * group_];
      from[thread_] = mine;
      FenceForCopyEngine();
      __syncwarp();
      if (thread_ < blocks && thread_ != rank) {
        SendBytes(from, Tile::kGroupRows * sizeof(float2), At(s_.gates_full[group_]), SharedAddress(from), thread_);
      }
      At(s_.gates_full[group_]).Wait(0);
      float gate = a_.gate_b[other];
      for (int i = 0; i < blocks; ++i) {
        const float2 p = s_.gates[i][Tile::kGroupRows * group_ + thread_];
        gate += other == 0 ? p.x : p.y;
      }
      s_.of_row[group_][thread_].x = 1 / (1 + __expf(-gate));
    }
    // All blocks have sent gates, so none multiplies any more, and their `act` can take rows: pieces 2 and 3 go from here
    // to the other channel's 0 and 1. A thread there holds the same rows and features.
    float4* const from = reinterpret_cast<float4*>(s_.act[2] + group_ * Tile::kGroupBytes) + thread_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      from[Place(i)] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
    FenceForCopyEngine();
    Sync();
    if (thread_ < 2) {
      const unsigned char* const piece = s_.act[2 + thread_] + group_ * Tile::kGroupBytes;
      SendBytes(piece, Tile::kGroupBytes, At(s_.other_full[group_]),
                SharedAddress(s_.act[thread_] + group_ * Tile::kGroupBytes), other * Tile::kSlices + slice_);
    }
    At(s_.other_full[group_]).Wait(0);
    const float4* const got = reinterpret_cast<const float4*>(s_.act[0] + group_ * Tile::kGroupBytes) + thread_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 x = got[Place(i)];
      const int row = 8 * i + lane_ % 4 * 2;
      const float low = s_.of_row[group_][row].x, high = s_.of_row[group_][row + 1].x;
      v[4 * i] = fmaf(low, x.x, v[4 * i]), v[4 * i + 1] = fmaf(high, x.y, v[4 * i + 1]);
      v[4 * i + 2] = fmaf(low, x.z, v[4 * i + 2]), v[4 * i + 3] = fmaf(high, x.w, v[4 * i + 3]);
    }
  }
  // Of a thread's i-th four values, in float4 from its first: two to a group's part of a piece.
  static __device__ __forceinline__ constexpr int Place(int i) {
    return (i / 2 * Tile::kTileBytes + i % 2 * (Tile::kGroupBytes / 2)) / 16;
  }

  __device__ __forceinline__ void Write(const float (&v)[16]) const {
    Each([&](int i, int r, int row) {
      if (row_ + row >= a_.rows) return;
      if (a_.concat != nullptr) {
        a_.concat[(int64_t{row_ + row} * a_.channels + channel_) * Tile::kD + Feature() + 8 * r] = v[i];
      } else {
        a_.x[XAt(row) + 8 * r] = v[i];
      }
      if (a_.z != nullptr) static_cast<__nv_bfloat16*>(a_.z)[XAt(row) + 8 * r] = __float2bfloat16_rn(v[i]);
    });
  }

  const FinishArgs& a_;
  FinishShared& s_;
  const int channel_, slice_;
  const int thread_ = threadIdx.x % 128, warp_ = thread_ / 32, lane_ = threadIdx.x % 32;
  const int group_ = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x / 128), 0);
  const int row_;  // the group's first
  int tile_ = 0;   // of weights
};

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_FINISH_GROUP_CUH_
