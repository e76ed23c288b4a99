// What every benchmark prints first: the machine, and its fp32 and bf16 bounds measured in the same run.
#ifndef BACKSTORY_TESTS_BENCH_MACHINE_H_
#define BACKSTORY_TESTS_BENCH_MACHINE_H_

#include <benchmark/benchmark.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "kernels/cpu/bf16_dot.h"
#include "kernels/dispatch.h"

namespace backstory {

#if defined(__x86_64__)
using BenchVec = float __attribute__((vector_size(32)));

// Twelve independent chains of 8-wide multiply-adds, one core: the ceiling of any fp32 kernel on an AVX2 machine, and
// on one that runs AVX-512 in two halves (Zen 4); on others with AVX-512 shares may pass 1.
__attribute__((target("avx2,fma"), noinline)) inline void FmaSteps(int steps) {
  BenchVec a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{}, a8{}, a9{}, a10{}, a11{};
  const BenchVec x{};
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
__attribute__((target("avx512f"), noinline)) inline void DotSteps(int steps) {
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
inline double BestRate(void (*steps)(int), double operations) {
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
inline double MeasuredFlops(Dtype dtype) {
  if (dtype == Dtype::kBf16 && HasBf16Dot()) return BestRate(DotSteps, 12.0 * 64.0);
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return fma ? BestRate(FmaSteps, 12.0 * 16.0) : 0;
}
#else
inline double MeasuredFlops(Dtype) { return 0; }
#endif

// Operations per second of one core, best of 50 rounds; 0 where it cannot be measured. Without VDPBF16PS bf16 is
// computed in fp32 and has its bound.
inline double PeakFlops(Dtype dtype) {
  static const double f32 = MeasuredFlops(Dtype::kF32), bf16 = MeasuredFlops(Dtype::kBf16);
  return dtype == Dtype::kF32 ? f32 : bf16;
}

// Counters every benchmark reports: GFLOP/s, and the share of `threads` cores' bound.
inline void ReportFlops(benchmark::State& state, double flops_per_iteration, Dtype dtype, double threads = 1) {
  state.counters["FLOP/s"] = benchmark::Counter(flops_per_iteration, benchmark::Counter::kIsIterationInvariantRate,
                                                benchmark::Counter::kIs1000);
  if (PeakFlops(dtype) > 0) {
    state.counters["of_bound"] = benchmark::Counter(flops_per_iteration / (PeakFlops(dtype) * threads),
                                                    benchmark::Counter::kIsIterationInvariantRate);
  }
}

// While alive, threads started by the caller run beside it, on the machine's other processors, and from Pin on the caller
// keeps to the first one: a scheduler that finds no processor idle otherwise likes to wake a worker on the caller's.
class OwnProcessors {
 public:
  explicit OwnProcessors(size_t threads) {
#ifdef __linux__
    if (threads < 2 || sched_getaffinity(0, sizeof(before_), &before_) != 0 || CPU_COUNT(&before_) < 2) return;
    cpu_set_t others = before_;
    CPU_ZERO(&first_);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &before_)) continue;
      CPU_SET(cpu, &first_);
      CPU_CLR(cpu, &others);
      break;
    }
    active_ = sched_setaffinity(0, sizeof(others), &others) == 0;
#endif
  }
  void Pin() {
#ifdef __linux__
    if (active_) sched_setaffinity(0, sizeof(first_), &first_);
#endif
  }
  ~OwnProcessors() {
#ifdef __linux__
    if (active_) sched_setaffinity(0, sizeof(before_), &before_);
#endif
  }
  OwnProcessors(const OwnProcessors&) = delete;
  OwnProcessors& operator=(const OwnProcessors&) = delete;

 private:
  bool active_ = false;
#ifdef __linux__
  cpu_set_t before_, first_;
#endif
};

inline void PrintMachine() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line, name = "unknown";
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) == 0) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  }
  benchmark::AddCustomContext("cpu", name);
  benchmark::AddCustomContext("hardware_threads", std::to_string(std::thread::hardware_concurrency()));
  benchmark::AddCustomContext("kernel_target", Kernels().target);
  benchmark::AddCustomContext("f32_bound_gflops_per_core", std::to_string(PeakFlops(Dtype::kF32) / 1e9));
  benchmark::AddCustomContext("bf16_bound_gflops_per_core", std::to_string(PeakFlops(Dtype::kBf16) / 1e9));
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_BENCH_MACHINE_H_
