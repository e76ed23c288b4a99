#include "kernels/peak.h"

#include <algorithm>
#include <chrono>

#include "kernels/cpu/bf16_dot.h"

namespace backstory {
namespace {

#if defined(__x86_64__)
using Lanes8 = float __attribute__((vector_size(32)));

// Twelve independent chains of 8-wide multiply-adds, one core: the ceiling of any fp32 kernel on an AVX2 machine, and
// on one that runs AVX-512 in two halves (Zen 4); on others with AVX-512 shares may pass 1.
__attribute__((target("avx2,fma"), noinline)) void FmaSteps(int steps) {
  Lanes8 a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{}, a8{}, a9{}, a10{}, a11{};
  const Lanes8 x{};
  for (int step = 0; step < steps; ++step) {
    asm volatile(
        "vfmadd231ps %12, %12, %0\n\tvfmadd231ps %12, %12, %1\n\tvfmadd231ps %12, %12, %2\n\t"
        "vfmadd231ps %12, %12, %3\n\tvfmadd231ps %12, %12, %4\n\tvfmadd231ps %12, %12, %5\n\t"
        "vfmadd231ps %12, %12, %6\n\tvfmadd231ps %12, %12, %7\n\tvfmadd231ps %12, %12, %8\n\t"
        "vfmadd231ps %12, %12, %9\n\tvfmadd231ps %12, %12, %10\n\tvfmadd231ps %12, %12, %11"
        : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5), "+x"(a6), "+x"(a7), "+x"(a8), "+x"(a9), "+x"(a10),
          "+x"(a11)
        : "x"(x));
  }
}
// The same with VDPBF16PS, 16 lanes of two products.
__attribute__((target("avx512f"), noinline)) void DotSteps(int steps) {
  asm volatile(
      "vpxord %%zmm31, %%zmm31, %%zmm31\n1:\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm0\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm1\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm2\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm3\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm4\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm5\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm6\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm7\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm8\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm9\n\t"
      "vdpbf16ps %%zmm31, %%zmm31, %%zmm10\n\tvdpbf16ps %%zmm31, %%zmm31, %%zmm11\n\t"
      "dec %0\n\tjnz 1b"
      : "+r"(steps)
      :
      : "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11",
        "zmm31");
}
double BestRate(void (*steps)(int), double operations) {
  using Clock = std::chrono::steady_clock;
  constexpr int kSteps = 20'000;
  double best = 0;
  for (int round = 0; round < 50; ++round) {
    const auto start = Clock::now();
    steps(kSteps);
    best = std::max(best, operations * kSteps / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}
double MeasuredFlops(Dtype dtype) {
  if (dtype == Dtype::kBf16 && HasBf16Dot()) return BestRate(DotSteps, 12.0 * 64.0);
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return fma ? BestRate(FmaSteps, 12.0 * 16.0) : 0;
}
#else
double MeasuredFlops(Dtype) { return 0; }
#endif

}  // namespace

double PeakFlops(Dtype dtype) {
  static const double f32 = MeasuredFlops(Dtype::kF32), bf16 = MeasuredFlops(Dtype::kBf16);
  return dtype == Dtype::kF32 ? f32 : bf16;
}

}  // namespace backstory
