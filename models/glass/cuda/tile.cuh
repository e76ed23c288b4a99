// Products of a row tile on the tensor cores, from shared memory and packed weights. Private to this folder's kernels.
//
// kS is the number of bf16 parts a number is kept in. 1: rounded to bf16. 3: x = hi + mid + lo carries fp32's 24 bits,
// and the six products of parts that matter (hi hi, hi mid, mid hi, mid mid, hi lo, lo hi) give a product of fp32
// grade: what is left out is below 2^-24 of it.
//
// A fragment of m16n8k16 holds, in lane 4 g + c, rows g and g + 8 and of every 8 columns the pair 2c, 2c + 1 (the PTX
// manual's figure). Two neighbouring accumulators of an n8 tile therefore are the A operand of one further k16 step.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_TILE_CUH_
#define BACKSTORY_MODELS_GLASS_CUDA_TILE_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace backstory::glass::cuda {

using backstory::cuda::SharedAddress;

constexpr int kWarps = 12, kThreads = 32 * kWarps, kHeadsMax = 8;
constexpr float kHidden = -1e30f;  // a logit that softmax takes to zero

// At the start of a kernel of a chain: the next may take its place on the card at once, where it waits as this one
// does, until everything before is done and seen.
__device__ __forceinline__ void JoinChain() {
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ int Warp() { return threadIdx.x / 32; }
__device__ __forceinline__ int Lane() { return threadIdx.x % 32; }

// Two floats as kS pairs of bf16.
template <int kS>
__device__ __forceinline__ void Split(float x, float y, uint32_t (&parts)[kS]) {
#pragma unroll
  for (int s = 0; s < kS; ++s) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    parts[s] = *reinterpret_cast<const uint32_t*>(&pair);
    if (s + 1 < kS) {
      x -= __low2float(pair);
      y -= __high2float(pair);
    }
  }
}

__device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, small parts first.
template <int kS>
__device__ __forceinline__ void MmaParts(float (&c)[4], const uint32_t (&a)[kS][4], const uint32_t (&b0)[kS],
                                         const uint32_t (&b1)[kS]) {
#pragma unroll
  for (int order = kS - 1; order >= 0; --order) {
#pragma unroll
    for (int i = 0; i <= order; ++i) Mma(c, a[i], b0[order - i], b1[order - i]);
  }
}

// Rows of bf16 parts in shared memory: [kS][rows][stride]. stride = width + 8: rows shift by four banks.
struct Planes {
  __nv_bfloat16* data;
  int rows, stride;
  __device__ __forceinline__ __nv_bfloat16* At(int part, int row, int column) const {
    return data + (part * rows + row) * stride + column;
  }
};
__host__ __device__ constexpr int PlaneStride(int width) { return width + 8; }
__host__ __device__ constexpr int PlaneBytes(int parts, int rows, int width) {
  return parts * rows * PlaneStride(width) * 2;
}

template <int kS>
__device__ __forceinline__ void StorePair(const Planes& planes, int row, int column, float x, float y) {
  uint32_t parts[kS];
  Split<kS>(x, y, parts);
#pragma unroll
  for (int s = 0; s < kS; ++s) *reinterpret_cast<uint32_t*>(planes.At(s, row, column)) = parts[s];
}

// A operand: rows row .. row + 15, columns column .. column + 15.
template <int kS>
__device__ __forceinline__ void LoadA(const Planes& planes, int row, int column, uint32_t (&a)[kS][4]) {
  const int lane = Lane();
#pragma unroll
  for (int s = 0; s < kS; ++s) {
    const uint32_t at = SharedAddress(planes.At(s, row + lane % 16, column + lane / 16 * 8));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[s][0]), "=r"(a[s][1]), "=r"(a[s][2]), "=r"(a[s][3])
                 : "r"(at));
  }
}

// A matrix [n][k] by columns: [n / 8][k / 32][kS][lane] of 16 bytes, the B operand of two k16 steps (weights.h).
template <int kS>
struct ByColumns {
  const uint4* data;
  int pairs;  // k / 32
  __device__ __forceinline__ uint4 Load(int tile, int pair, int part) const {
    return __ldg(data + ((tile * pairs + pair) * kS + part) * 32 + Lane());
  }
};

// acc[m][n] += rows (16 m ..) of a, columns from `column` on, times n8 tiles first .. first + kN - 1 of w over `pairs`
// steps of 32 from `w_pair` on.
template <int kS, int kM, int kN>
__device__ __forceinline__ void Product(float (&acc)[kM][kN][4], const Planes& a, int column, const ByColumns<kS>& w,
                                        int first, int w_pair, int pairs, int row = 0) {
#pragma unroll(kS == 1 ? 3 : 1)
  for (int p = 0; p < pairs; ++p) {
    uint4 b[kN][kS];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int s = 0; s < kS; ++s) b[n][s] = w.Load(first + n, w_pair + p, s);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t x[kS][4];
        LoadA<kS>(a, row + 16 * m, column + 32 * p + 16 * half, x);
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          uint32_t b0[kS], b1[kS];
#pragma unroll
          for (int s = 0; s < kS; ++s) {
            b0[s] = half == 0 ? b[n][s].x : b[n][s].z;
            b1[s] = half == 0 ? b[n][s].y : b[n][s].w;
          }
          MmaParts<kS>(acc[m][n], x, b0, b1);
        }
      }
    }
  }
}

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_TILE_CUH_
