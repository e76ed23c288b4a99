// What every benchmark prints first: the machine, and its fp32 and bf16 bounds measured in the same run.
#ifndef BACKSTORY_TESTS_BENCH_MACHINE_H_
#define BACKSTORY_TESTS_BENCH_MACHINE_H_

#include <benchmark/benchmark.h>

#include <fstream>
#include <string>
#include <thread>

#include "kernels/dispatch.h"
#include "kernels/peak.h"

namespace backstory {

// Counters every benchmark reports: GFLOP/s, and the share of `threads` cores' bound.
inline void ReportFlops(benchmark::State& state, double flops_per_iteration, Dtype dtype, double threads = 1) {
  state.counters["FLOP/s"] = benchmark::Counter(flops_per_iteration, benchmark::Counter::kIsIterationInvariantRate,
                                                benchmark::Counter::kIs1000);
  if (PeakFlops(dtype) > 0) {
    state.counters["of_bound"] = benchmark::Counter(flops_per_iteration / (PeakFlops(dtype) * threads),
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
  benchmark::AddCustomContext("f32_bound_gflops_per_core", std::to_string(PeakFlops(Dtype::kF32) / 1e9));
  benchmark::AddCustomContext("bf16_bound_gflops_per_core", std::to_string(PeakFlops(Dtype::kBf16) / 1e9));
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_BENCH_MACHINE_H_
