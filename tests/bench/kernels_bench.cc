// Rates of the kernels on one core beside the core's bounds. Run: build/release/bin/kernels_bench
#include <vector>

#include "tests/bench/machine.h"
#include "tests/kernels/random.h"

namespace backstory {
namespace {

constexpr Dtype DtypeOf(int64_t bf16) { return bf16 == 1 ? Dtype::kBf16 : Dtype::kF32; }

// m x k x n
void BM_Gemm(benchmark::State& state) {
  const size_t m = static_cast<size_t>(state.range(0)), k = static_cast<size_t>(state.range(1)),
               n = static_cast<size_t>(state.range(2));
  const Dtype dtype = DtypeOf(state.range(3));
  Random random(1);
  const std::vector<float> a = random.Normals(m * k), b = random.Normals(k * n);
  std::vector<float> c(m * n);
  const PackedMatrix packed(b.data(), k, n, n, dtype);
  for (auto _ : state) {
    Kernels().gemm({.a = a.data(), .lda = k, .m = m, .b = &packed, .c = c.data(), .ldc = n});
    benchmark::DoNotOptimize(c.data());
    benchmark::ClobberMemory();
  }
  ReportFlops(state, 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n), dtype);
}
BENCHMARK(BM_Gemm)
    ->ArgNames({"m", "k", "n", "bf16"})
    ->Args({1, 64, 192, 0})
    ->Args({6, 64, 64, 0})
    ->Args({48, 64, 64, 0})
    ->Args({48, 64, 128, 0})
    ->Args({48, 128, 64, 0})
    ->Args({192, 16, 320, 0})
    ->ArgsProduct({{48}, {256}, {256, 512}, {0, 1}})
    ->ArgsProduct({{128}, {256}, {256, 512}, {0, 1}})
    ->ArgsProduct({{512}, {64}, {320}, {0, 1}})
    ->ArgsProduct({{96, 1}, {512}, {1024}, {0, 1}});

// queries x rows x heads x d_head; kind 0: no bias, 1: position and time bias over log-spaced buckets, newest 255
// ramped.
void BM_Attend(benchmark::State& state) {
  const size_t queries = static_cast<size_t>(state.range(0)), rows = static_cast<size_t>(state.range(1)),
               heads = static_cast<size_t>(state.range(2)), width = static_cast<size_t>(state.range(3));
  constexpr size_t kPos = 256, kTime = 64;
  Random random(2);
  const PageShape shape{heads, width, width, DtypeOf(state.range(5))};
  std::vector<Page> pages;
  std::vector<PageView> views;
  for (size_t row = 0; row < rows; ++row) {
    if (row % kPageRows == 0) pages.emplace_back(shape);
    WriteRow(shape, row % kPageRows, random.Normals(heads * width).data(), random.Normals(heads * width).data(),
             &pages.back());
  }
  for (const Page& page : pages) views.push_back(page.view());
  const std::vector<float> q = random.Normals(queries * heads * width), self = random.Normals(queries * heads * width);
  const std::vector<float> bias = random.Normals(queries * heads * (kPos + kTime) + kPanel);
  std::vector<float> o(queries * heads * width), lse(queries * heads);
  std::vector<KeyRun> runs;
  for (size_t length = 1, end = rows, bucket = 0; end > 0; length = length * 4 / 3 + 1, ++bucket) {
    const size_t begin = end > length ? end - length : 0;
    runs.insert(runs.begin(), {static_cast<uint32_t>(begin), static_cast<uint32_t>(end),
                               static_cast<uint32_t>(rows - begin), static_cast<uint32_t>(bucket)});
    end = begin;
  }
  AlignedFloats workspace(AttendWorkspaceFloats(shape));
  AttendArgs args{.queries = queries, .heads = heads, .shape = shape, .scale = 0.125f, .q = q.data()};
  if (state.range(4) == 1) args.bias = {.rows = bias.data(), .stride = kPos + kTime, .n_pos = kPos, .n_time = kTime};
  args.pages = views;
  args.shared_runs = runs;
  args.self_k = args.self_v = self.data();
  args.o = o.data();
  args.lse = lse.data();
  args.workspace = workspace.data();
  for (auto _ : state) {
    Kernels().attend(args);
    benchmark::ClobberMemory();
  }
  ReportFlops(state,
              4.0 * static_cast<double>(queries) * static_cast<double>(rows) * static_cast<double>(heads * width),
              shape.dtype);
}
BENCHMARK(BM_Attend)
    ->ArgNames({"M", "N", "heads", "d_head", "bias", "bf16"})
    ->ArgsProduct({{48}, {2500}, {4}, {16}, {0, 1}, {0, 1}})
    ->ArgsProduct({{48}, {2500}, {2}, {32}, {1}, {0, 1}})
    ->ArgsProduct({{48, 128}, {4096}, {4}, {64}, {0, 1}, {0, 1}})
    ->ArgsProduct({{48}, {4096}, {4}, {128}, {1}, {0, 1}})
    ->ArgsProduct({{1}, {4096}, {4}, {64}, {1}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace backstory

int main(int argc, char** argv) {
  backstory::PrintMachine();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
