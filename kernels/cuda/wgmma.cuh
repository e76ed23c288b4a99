// Warpgroup matrix products: bf16 in, fp32 accumulators in registers.
//
// Accumulator layout, thread t of the warpgroup, lane l = t % 32: d[4 n + 2 r + e] is row 16 (t / 32) + l / 4 + 8 r,
// column 8 n + 2 (l % 4) + e. The a operand of 16 columns k: a[0..3] are bf16 pairs of (row, k pair) = (r 0, low 8),
// (r 1, low 8), (r 0, high 8), (r 1, high 8): the accumulators of two neighbouring n, packed in order.
#ifndef BACKSTORY_KERNELS_CUDA_WGMMA_CUH_
#define BACKSTORY_KERNELS_CUDA_WGMMA_CUH_

#include <cstdint>

namespace backstory::cuda {

// Describes a matrix in shared memory, 128-byte swizzled, whose rows of 64 bf16 lie 128 bytes apart. `leading` is the
// distance in bytes between blocks of 64 columns (used only where the outer dimension is contiguous and wider than 64).
// A descriptor's low word; a step of s bytes along the matrix adds s / 16 to it, and the high word is the same for all.
__device__ __forceinline__ uint32_t MatrixWord(uint32_t shared_address, uint32_t leading) {
  return leading / 16 << 16 | (shared_address & 0x3ffff) >> 4;
}
__device__ __forceinline__ uint64_t Descriptor(uint32_t word) {
  constexpr uint64_t kSwizzle128 = 1ull << 62, kEightRows = 1024 / 16;
  return kSwizzle128 | kEightRows << 32 | word;
}

// Before the first product after registers were written.
__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending committed groups are unfinished.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of accumulators across a fence or wait.
template <int kCount>
__device__ __forceinline__ void Pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Eight accumulators as operands.
#define BACKSTORY_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
// clang-format off
// d [64][128] = a [64][16] b [16][128] (+ d if accumulate). a and b from shared memory, both with the inner dimension contiguous.
__device__ __forceinline__ void Wgmma128(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 0;}\n"
      : BACKSTORY_D8(0), BACKSTORY_D8(8), BACKSTORY_D8(16), BACKSTORY_D8(24),
        BACKSTORY_D8(32), BACKSTORY_D8(40), BACKSTORY_D8(48), BACKSTORY_D8(56)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d [64][64] = a [64][16] b [16][64] (+ d if accumulate). a and b from shared memory, both with the inner dimension contiguous.
__device__ __forceinline__ void Wgmma64(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}\n"
      : BACKSTORY_D8(0), BACKSTORY_D8(8), BACKSTORY_D8(16), BACKSTORY_D8(24)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d [64][32] = a [64][16] b [16][32] (+ d if accumulate). a and b from shared memory, both with the inner dimension contiguous.
__device__ __forceinline__ void Wgmma32(float (&d)[16], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1, 0, 0;}\n"
      : BACKSTORY_D8(0), BACKSTORY_D8(8)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d [64][128] += a [64][16] b [16][128]. a from registers, b from shared memory with its outer dimension contiguous.
__device__ __forceinline__ void WgmmaAccumulate(float (&d)[64], const uint32_t* a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}\n"
      : BACKSTORY_D8(0), BACKSTORY_D8(8), BACKSTORY_D8(16), BACKSTORY_D8(24),
        BACKSTORY_D8(32), BACKSTORY_D8(40), BACKSTORY_D8(48), BACKSTORY_D8(56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// d [64][64] += a [64][16] b [16][64]. a from registers, b from shared memory with its outer dimension contiguous.
__device__ __forceinline__ void WgmmaAccumulate(float (&d)[32], const uint32_t* a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}\n"
      : BACKSTORY_D8(0), BACKSTORY_D8(8), BACKSTORY_D8(16), BACKSTORY_D8(24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// clang-format on
#undef BACKSTORY_D8

}  // namespace backstory::cuda

#endif  // BACKSTORY_KERNELS_CUDA_WGMMA_CUH_
