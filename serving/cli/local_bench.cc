#include "serving/cli/local_bench.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "fmt/format.h"
#include "kernels/dispatch.h"
#include "kernels/peak.h"
#include "serving/cli/machine.h"

namespace backstory {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsOf(const std::function<void()>& fn, size_t calls) {
  const Clock::time_point start = Clock::now();
  for (size_t i = 0; i < calls; ++i) fn();
  return std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(calls);
}

}  // namespace

Timing TimeCalls(double seconds, const std::function<void()>& fn) {
  constexpr double kSample = 50e-6;
  constexpr size_t kLeast = 7, kMost = 10'000;
  fn();
  const double once = SecondsOf(fn, 1);
  const size_t calls = once >= kSample ? 1 : static_cast<size_t>(kSample / std::max(once, 1e-9)) + 1;
  std::vector<double> samples;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6));
  while (samples.size() < kLeast || (samples.size() < kMost && Clock::now() < end)) {
    samples.push_back(SecondsOf(fn, calls));
  }
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), samples.size()};
}

double GemmFlops(Dtype dtype, ThreadPool* pool) {
  constexpr size_t kM = 128, kK = 256, kN = 256, kRepeats = 8;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> b(kK * kN);
  for (float& value : b) value = normal(random);
  const PackedMatrix packed(b.data(), kK, kN, kN, dtype);
  const size_t threads = pool == nullptr ? 1 : pool->threads();
  std::vector<float> a(threads * kM * kK), c(threads * kM * kN);
  for (float& value : a) value = normal(random);
  const Timing timing = TimeCalls(0.2, [&] {
    ParallelFor(pool, threads, [&](size_t t) {
      for (size_t i = 0; i < kRepeats; ++i) {
        Kernels().gemm(
            {.a = a.data() + t * kM * kK, .lda = kK, .m = kM, .b = &packed, .c = c.data() + t * kM * kN, .ldc = kN});
      }
    });
  });
  return 2.0 * static_cast<double>(threads * kRepeats * kM * kK * kN) / timing.median;
}

const char* PrecisionName(Dtype dtype) { return dtype == Dtype::kBf16 ? "bf16" : "f32"; }

nlohmann::ordered_json MachineReport() {
  nlohmann::ordered_json out;
  out["machine"] = MachineLine();
  out["kernel_target"] = Kernels().target;
  out["core_bound_f32_gflops"] = PeakFlops(Dtype::kF32) * 1e-9;
  out["core_bound_bf16_gflops"] = PeakFlops(Dtype::kBf16) * 1e-9;
  return out;
}

void PrintMachineReport() {
  fmt::print("{}; kernels {}; one core from registers: {:.0f} GFLOP/s f32, {:.0f} bf16\n", MachineLine(),
             Kernels().target, PeakFlops(Dtype::kF32) * 1e-9, PeakFlops(Dtype::kBf16) * 1e-9);
}

}  // namespace backstory
