#include "serving/cli/bench_kernels.h"

#include <array>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "kernels/dispatch.h"
#include "kernels/own_processors.h"
#include "kernels/peak.h"
#include "serving/cli/local_bench.h"

namespace backstory {
namespace {

struct Options {
  double seconds = 0.2;
  std::string only;
  bool json = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory bench kernels
  backstory bench kernels --only attend --seconds 1 --json
One thread, inputs in cache. "of bound" is the share of what the core multiplies and adds from registers, measured first.
No server and no model is needed.)";

std::vector<float> Normals(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

struct Case {
  std::string name;
  double flops;
  Timing timing;
  Dtype dtype;
};

class KernelBench {
 public:
  explicit KernelBench(const Options& options) : options_(options) {}

  void Gemm(size_t m, size_t k, size_t n, Dtype dtype);
  // `bias`: position and time bias over log-spaced buckets, the newest 255 rows ramped.
  void Attend(size_t queries, size_t rows, size_t heads, size_t width, bool bias, Dtype dtype);
  const std::vector<Case>& cases() const { return cases_; }

 private:
  void Time(const std::string& name, double flops, Dtype dtype, const std::function<void()>& fn) {
    const Case result{name, flops, TimeCalls(options_.seconds, fn), dtype};
    cases_.push_back(result);
    if (options_.json) return;
    const double rate = flops / result.timing.median, bound = PeakFlops(dtype);
    fmt::print("{:<58} {:>11.1f} {:>11.1f} {:>9.1f} {:>9}\n", name, result.timing.median * 1e6,
               result.timing.least * 1e6, rate * 1e-9, bound > 0 ? fmt::format("{:.2f}", rate / bound) : "?");
  }
  bool Wanted(const std::string& name) const { return name.find(options_.only) != std::string::npos; }

  const Options& options_;
  std::vector<Case> cases_;
};

void KernelBench::Gemm(size_t m, size_t k, size_t n, Dtype dtype) {
  const std::string name = fmt::format("gemm {} x {} x {} {}", m, k, n, PrecisionName(dtype));
  if (!Wanted(name)) return;
  const std::vector<float> a = Normals(m * k, 1), b = Normals(k * n, 2);
  std::vector<float> c(m * n);
  const PackedMatrix packed(b.data(), k, n, n, dtype);
  Time(name, 2.0 * static_cast<double>(m * k * n), dtype,
       [&] { Kernels().gemm({.a = a.data(), .lda = k, .m = m, .b = &packed, .c = c.data(), .ldc = n}); });
}

void KernelBench::Attend(size_t queries, size_t rows, size_t heads, size_t width, bool bias, Dtype dtype) {
  const std::string name = fmt::format("attend {} queries x {} rows, {} heads x {}{} {}", queries, rows, heads, width,
                                       bias ? ", bias" : "", PrecisionName(dtype));
  if (!Wanted(name)) return;
  constexpr size_t kPos = 256, kTime = 64;
  const PageShape shape{heads, width, width, dtype};
  const size_t wide = heads * width;
  const std::vector<float> kv = Normals(wide * 64, 3);
  std::vector<Page> pages;
  std::vector<PageView> views;
  for (size_t row = 0; row < rows; ++row) {
    if (row % kPageRows == 0) pages.emplace_back(shape);
    WriteRow(shape, row % kPageRows, kv.data() + row * 7 % 64 * wide, kv.data() + row * 11 % 64 * wide, &pages.back());
  }
  for (const Page& page : pages) views.push_back(page.view());
  std::vector<KeyRun> runs;
  for (size_t length = 1, end = rows, bucket = 0; end > 0; length = length * 4 / 3 + 1, ++bucket) {
    const size_t begin = end > length ? end - length : 0;
    runs.insert(runs.begin(), {static_cast<uint32_t>(begin), static_cast<uint32_t>(end),
                               static_cast<uint32_t>(rows - begin), static_cast<uint32_t>(bucket)});
    end = begin;
  }
  const std::vector<float> q = Normals(queries * wide, 4), self = Normals(queries * wide, 5);
  const std::vector<float> table = Normals(queries * heads * (kPos + kTime) + kPanel, 6);
  std::vector<float> o(queries * wide), lse(queries * heads);
  AlignedFloats workspace(AttendWorkspaceFloats(shape));
  AttendArgs args{.queries = queries, .heads = heads, .shape = shape, .scale = 0.125f, .q = q.data()};
  if (bias) args.bias = {.rows = table.data(), .stride = kPos + kTime, .n_pos = kPos, .n_time = kTime};
  args.pages = views;
  args.shared_runs = runs;
  args.self_k = args.self_v = self.data();
  args.o = o.data();
  args.lse = lse.data();
  args.workspace = workspace.data();
  Time(name, 4.0 * static_cast<double>(queries * rows * wide), dtype, [&] { Kernels().attend(args); });
}

void RunCases(KernelBench* bench) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    for (const auto& [m, k, n] : {std::array<size_t, 3>{48, 64, 128},
                                  {48, 256, 256},
                                  {128, 256, 256},
                                  {128, 256, 512},
                                  {512, 64, 320},
                                  {96, 512, 1024},
                                  {1, 64, 192},
                                  {1, 512, 1024}}) {
      bench->Gemm(m, k, n, dtype);
    }
    for (const bool bias : {false, true}) {
      bench->Attend(48, 2500, 4, 16, bias, dtype);
      bench->Attend(48, 4096, 4, 64, bias, dtype);
      bench->Attend(128, 4096, 4, 64, bias, dtype);
    }
    bench->Attend(48, 2500, 2, 32, true, dtype);
    bench->Attend(48, 4096, 4, 128, true, dtype);
    bench->Attend(1, 4096, 4, 64, true, dtype);
  }
}

void BenchKernels(const Options& options) {
  OwnProcessors processors(2);
  processors.Pin();
  if (!options.json) {
    PrintMachineReport();
    fmt::print("{:<58} {:>11} {:>11} {:>9} {:>9}\n", "one thread", "median us", "least us", "GFLOP/s", "of bound");
  }
  KernelBench bench(options);
  RunCases(&bench);
  if (!options.json) return;
  nlohmann::ordered_json out = MachineReport();
  for (const Case& c : bench.cases()) {
    nlohmann::ordered_json one;
    one["case"] = c.name;
    one["median_us"] = c.timing.median * 1e6;
    one["least_us"] = c.timing.least * 1e6;
    one["samples"] = c.timing.samples;
    one["gflops"] = c.flops / c.timing.median * 1e-9;
    if (const double bound = PeakFlops(c.dtype); bound > 0) one["of_bound"] = c.flops / c.timing.median / bound;
    out["cases"].push_back(one);
  }
  std::cout << out.dump() << "\n";
}

}  // namespace

void AddBenchKernels(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("kernels", "Rates of GEMM and attention on one core of this machine");
  command->footer(kExamples);
  command->add_option("--seconds", options->seconds, "Duration of each case")
      ->check(CLI::Range(0.0, 60.0))
      ->capture_default_str();
  command->add_option("--only", options->only, "Cases whose name has this in it [all]");
  command->add_flag("--json", options->json, "Print as JSON");
  command->callback([options] { BenchKernels(*options); });
}

}  // namespace backstory
