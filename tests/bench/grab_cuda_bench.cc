// The whole scoring pass of grab-512 on a card: token rows in, logits out, K/V resident. Users are rotated past the L2.
//   grab_cuda_bench [repeats [PART | first rows]]
// All shapes, prefill and append; or shapes whose names contain PART; or only the prefill of `rows` or the append to
// `first`.
// GPU time is between CUDA events around the pass; wall time is the host's for inputs, pass and scores (planning and
// copies included, the tokenizer not). The second line splits the pass by steps, of all layers together: launches as
// they come, without a graph, with an event between steps, behind so much other work that the host is ahead. Medians
// and [p10 p90] of `repeats` passes. Values are random; times do not depend on them.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/prefill.h"
#include "models/grab/cuda/runtime.h"
#include "models/grab/init_random.h"
#include "tests/bench/must.h"

namespace backstory::grab {
namespace {

struct Shape {
  int users, history, candidates;
  double floor_ms;  // at 790 TFLOP/s of bf16 and 3.0 TB/s of memory
};
constexpr Shape kShapes[] = {{1, 1024, 256, 0.016},   {1, 4096, 256, 0.033}, {1, 4096, 1024, 0.130},
                             {1, 16384, 1024, 0.391}, {8, 4096, 256, 0.261}, {8, 4096, 1024, 1.044},
                             {1, 65536, 1024, 1.435}};

// One user's pages of every channel, at blocks of its own, as an even event rate makes them.
std::vector<CudaChannelPages> MakeUser(const Config& config, int history, CudaPagePool* pool, int* folded) {
  std::vector<int64_t> time, tie;
  for (int64_t i = 0; i < history; ++i) time.push_back(i * 3'600'000'000), tie.push_back(i);
  const std::vector<int32_t> previous(static_cast<size_t>(history), -1);
  const auto runs = CandidateRuns({time, tie, previous}, 0, static_cast<size_t>(history), time.back() + 1, -1, {},
                                  TimeBuckets(config.n_time));
  const VisiblePages pages = FindVisiblePages(runs, static_cast<size_t>(history), static_cast<size_t>(config.n_pos));
  std::vector<CudaChannelPages> channels;
  *folded = static_cast<int>(pages.pages() - pages.direct.size());
  for (int c = 0; c < config.channels(); ++c) {
    const auto blocks = Must(pool->Take(static_cast<size_t>(history) / 128));
    const auto scratch = Must(pool->Take(static_cast<size_t>(*folded)));
    CudaChannelPages& to = channels.emplace_back();
    for (cuda::PageEntry entry : pages.direct) {
      entry.page = blocks[static_cast<size_t>(entry.page)];
      to.entries.push_back(entry);
    }
    for (size_t i = 0; i < pages.folded.size(); ++i) {
      const auto& fold = pages.folded[i];
      to.folds.push_back({.from = blocks[fold.row / 128] * 128 + static_cast<int32_t>(fold.row % 128),
                          .to = scratch[i / 128] * 128 + static_cast<int32_t>(i % 128),
                          .position = fold.position,
                          .time = fold.time,
                          .channel = c});
    }
    for (int32_t block : scratch) to.entries.push_back({.page = block});
  }
  return channels;
}

void FillRandom(CudaPagePool* pool, size_t blocks) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> block(pool->shape().block_size());
  for (uint16_t& x : block) x = ToBf16(normal(random));
  constexpr size_t kDifferent = 1024;  // further pages repeat them: an L2 goes by addresses
  for (size_t i = 0; i < blocks; ++i) {
    if (i >= kDifferent) {
      Must(pool->device().Check(
          cudaMemcpy(static_cast<char*>(pool->data()) + i * pool->shape().block_bytes(),
                     static_cast<char*>(pool->data()) + i % kDifferent * pool->shape().block_bytes(),
                     pool->shape().block_bytes(), cudaMemcpyDeviceToDevice),
          "filling the pool"));
      continue;
    }
    // The same values from another place on: no two of them are alike.
    std::rotate(block.begin(), block.begin() + 977, block.end());
    Must(pool->device().Check(cudaMemcpy(static_cast<char*>(pool->data()) + i * pool->shape().block_bytes(),
                                         block.data(), pool->shape().block_bytes(), cudaMemcpyHostToDevice),
                              "filling the pool"));
  }
}

struct Times {
  double median, p10, p90;
};
Times Summary(std::vector<double> t) {
  std::sort(t.begin(), t.end());
  return {t[t.size() / 2], t[t.size() / 10], t[t.size() * 9 / 10]};
}

// Milliseconds of each step, all layers together.
std::map<std::string, double> StepTimes(const CudaNetwork& network, CudaPagePool* pool, CudaLane* lane) {
  constexpr int kPasses = 11;
  std::map<std::string, std::vector<double>> seen;
  const auto stream = static_cast<cudaStream_t>(lane->stream());
  for (int i = 0; i < kPasses; ++i) {
    std::vector<std::pair<std::string, cudaEvent_t>> marks;
    const auto mark = [&](const char* step) {
      cudaEvent_t& event = marks.emplace_back(step, nullptr).second;
      cudaEventCreate(&event);
      cudaEventRecord(event, stream);
    };
    for (int before = 0; before < 12; ++before) Must(network.Run(lane));
    mark("");
    Must(network.RunBySteps(lane, mark));
    Must(pool->device().Check(cudaStreamSynchronize(stream), "pass"));
    std::map<std::string, double> sums;
    for (size_t m = 1; m < marks.size(); ++m) {
      float ms = 0;
      cudaEventElapsedTime(&ms, marks[m - 1].second, marks[m].second);
      sums[marks[m].first] += ms;
    }
    for (auto& [step, event] : marks) cudaEventDestroy(event);
    for (const auto& [step, ms] : sums) seen[step].push_back(ms);
  }
  std::map<std::string, double> medians;
  for (auto& [step, t] : seen) medians[step] = Summary(t).median;
  return medians;
}

void Measure(const Config& config, const Shape& shape, const CudaNetwork& network, CudaPagePool* pool, CudaLane* lane,
             int repeats) {
  const double set_mb = shape.users * shape.history * config.channels() * config.layers * 4.0 * config.d / 1e6;
  const int sets = std::max(2, static_cast<int>(200 / set_mb));
  std::vector<std::vector<CudaSegment>> all;
  int folded = 0;
  for (int s = 0; s < sets; ++s) {
    auto& segments = all.emplace_back();
    for (int u = 0; u < shape.users; ++u) {
      segments.push_back({.first_row = u * shape.candidates,
                          .rows = shape.candidates,
                          .channels = MakeUser(config, shape.history, pool, &folded)});
    }
  }
  const int rows = shape.users * shape.candidates;
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  for (int i = 0; i < rows * network.widths().stride; ++i) lane->rows()[i] = normal(random);
  const auto stream = static_cast<cudaStream_t>(lane->stream());
  cudaEvent_t start, end;
  Must(pool->device().Check(cudaEventCreate(&start), "event"));
  Must(pool->device().Check(cudaEventCreate(&end), "event"));
  std::vector<double> gpu, wall;
  for (int i = 0; i < repeats + 8; ++i) {
    const auto& segments = all[static_cast<size_t>(i % sets)];
    const auto began = std::chrono::steady_clock::now();
    Must(network.Prepare(segments, rows, lane));
    cudaEventRecord(start, stream);
    Must(network.Run(lane));
    cudaEventRecord(end, stream);
    Must(pool->device().Check(cudaStreamSynchronize(stream), "pass"));
    const auto ended = std::chrono::steady_clock::now();
    float ms = 0;
    cudaEventElapsedTime(&ms, start, end);
    if (i < 8) continue;
    gpu.push_back(ms);
    wall.push_back(std::chrono::duration<double, std::milli>(ended - began).count());
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  const Times g = Summary(gpu), w = Summary(wall);
  std::printf(
      "%dx%dx%d  gpu %.3f ms [%.3f %.3f]  wall %.3f ms [%.3f %.3f]  floor %.3f  folded pages %d"
      "  sets %d\n",
      shape.users, shape.history, shape.candidates, g.median, g.p10, g.p90, w.median, w.p10, w.p90, shape.floor_ms,
      folded, sets);
  for (const auto& [step, ms] : StepTimes(network, pool, lane)) std::printf("   %s %.1f us", step.c_str(), 1000 * ms);
  std::printf("\n");
  std::fflush(stdout);
}

// Rows [first, rows) of every channel, over and over.
void MeasurePrefill(const Config& config, const CudaNetwork& network, CudaPagePool* pool,
                    std::shared_ptr<CudaGemmLibrary> gemms, std::shared_ptr<CudaPagePool> shared, size_t first,
                    size_t rows, int repeats) {
  const auto prefill = Must(CudaPrefill::Create(config, &network.weights(), std::move(gemms), std::move(shared)));
  std::vector<int64_t> time, tie;
  std::vector<int32_t> previous(rows, -1), action(rows, 1);
  for (size_t i = 0; i < rows; ++i) {
    time.push_back(static_cast<int64_t>(i) * 3'600'000'000), tie.push_back(static_cast<int64_t>(i));
  }
  std::vector<std::vector<int32_t>> blocks;
  std::vector<CudaHistory> channels;
  for (int c = 0; c < config.channels(); ++c) blocks.push_back(Must(pool->Take((rows + 127) / 128)));
  for (const auto& b : blocks) channels.push_back({first, rows, b, {time, tie, previous}, action});
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> values(1 << 20);
  for (float& x : values) x = normal(random);
  std::vector<double> gpu, wall;
  for (int i = 0; i < repeats + 3; ++i) {
    const auto began = std::chrono::steady_clock::now();
    Must(prefill->Append(channels, [&](size_t, size_t, size_t count, size_t stride, float* out) {
      if (i > 0 && count > 1) return;  // filled once; what a tokenizer takes is not of interest here
      for (size_t x = 0; x < count * stride; ++x) out[x] = values[x % values.size()];
    }));
    const auto ended = std::chrono::steady_clock::now();
    if (i < 3) continue;
    gpu.push_back(prefill->last_milliseconds());
    wall.push_back(std::chrono::duration<double, std::milli>(ended - began).count());
  }
  for (const auto& b : blocks) pool->Free(b);
  const Times g = Summary(gpu), w = Summary(wall);
  std::printf("rows %zu..%zu of both channels  gpu %.3f ms [%.3f %.3f]  wall %.3f ms [%.3f %.3f]\n", first, rows,
              g.median, g.p10, g.p90, w.median, w.p10, w.p90);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 100;
  const size_t first_row = argc > 3 ? static_cast<size_t>(std::atol(argv[2])) : 0;
  const size_t last_row = argc > 3 ? static_cast<size_t>(std::atol(argv[3])) : 0;
  const Config config = *PresetConfig("grab-512");
  constexpr size_t kPoolBytes = size_t{24} << 30;
  const auto runtime = Must(CudaRuntime::Open({.kv_bytes = kPoolBytes}));
  std::printf("%s, %d multiprocessors; events and host clock, medians [p10 p90] of %d passes\n",
              runtime->device().name().c_str(), runtime->device().multiprocessors(), repeats);
  const auto pool = Must(runtime->PoolFor(Must(CudaNetwork::KvShape(config))));
  const auto network = Must(CudaNetwork::Load(config, RandomWeights(config, 1), runtime->gemms(), pool));
  if (last_row > 0) {
    FillRandom(pool.get(), 2 * (last_row / 128 + 1));
    MeasurePrefill(config, *network, pool.get(), runtime->gemms(), pool, first_row, last_row, repeats);
    return 0;
  }
  const auto lane = Must(network->NewLane());
  FillRandom(pool.get(), static_cast<size_t>(pool->blocks()) / 2);
  const std::string only = argc == 3 ? argv[2] : "";
  for (const Shape& shape : kShapes) {
    const std::string name =
        std::to_string(shape.users) + "x" + std::to_string(shape.history) + "x" + std::to_string(shape.candidates);
    if (name.find(only) != std::string::npos) Measure(config, shape, *network, pool.get(), lane.get(), repeats);
  }
  if (!only.empty()) return 0;
  for (const auto& [first, rows] : {std::pair<size_t, size_t>{0, 4096}, {0, 16384}, {4095, 4096}, {4032, 4096}}) {
    MeasurePrefill(config, *network, pool.get(), runtime->gemms(), pool, first, rows, std::min(repeats, 50));
  }
  return 0;
}

}  // namespace
}  // namespace backstory::grab

int main(int argc, char** argv) { return backstory::grab::Main(argc, argv); }
