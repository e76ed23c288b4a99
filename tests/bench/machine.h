// What every benchmark prints first: the machine, and its fp32 bound measured in the same run.
#ifndef BACKSTORY_TESTS_BENCH_MACHINE_H_
#define BACKSTORY_TESTS_BENCH_MACHINE_H_

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "kernels/dispatch.h"

namespace backstory {

#if defined(__x86_64__)
using BenchVec = float __attribute__((vector_size(32)));

// Twelve independent chains of 8-wide multiply-adds, one core: the ceiling of any fp32 kernel on an AVX2 machine (on an
// AVX-512 machine the ceiling is up to twice as high, and the shares printed below may pass 1).
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
inline double FmaFlops() {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  for (int round = 0; round < 50; ++round) {
    constexpr int kSteps = 20'000;
    const auto start = Clock::now();
    FmaSteps(kSteps);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, 12.0 * 16.0 * kSteps / seconds);
  }
  return best;
}
inline bool HasFma() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
inline double FmaFlops() { return 0; }
inline bool HasFma() { return false; }
#endif

// fp32 operations per second of one core, best of 50 rounds; 0 where it cannot be measured.
inline double PeakFlops() {
  static const double peak = HasFma() ? FmaFlops() : 0;
  return peak;
}

// Counters every benchmark reports: GFLOP/s, and the share of `threads` cores' bound.
inline void ReportFlops(benchmark::State& state, double flops_per_iteration, double threads = 1) {
  state.counters["FLOP/s"] = benchmark::Counter(flops_per_iteration, benchmark::Counter::kIsIterationInvariantRate,
                                                benchmark::Counter::kIs1000);
  if (PeakFlops() > 0) {
    state.counters["of_bound"] = benchmark::Counter(flops_per_iteration / (PeakFlops() * threads),
                                                    benchmark::Counter::kIsIterationInvariantRate);
  }
}

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
  benchmark::AddCustomContext("bound_gflops_per_core", std::to_string(PeakFlops() / 1e9));
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_BENCH_MACHINE_H_
