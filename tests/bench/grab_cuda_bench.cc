// The whole scoring pass of grab-512 on a card: token rows in, logits out, K/V resident. Users are rotated past the L2.
//   grab_cuda_bench [repeats]
// GPU time is between CUDA events around the pass; wall time is the host's for inputs, pass and scores (planning and
// copies included, the tokenizer not). Medians and [p10 p90] of `repeats` passes. Values are random; times do not depend
// on them.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "models/grab/cuda/network.h"
#include "models/grab/cuda/runtime.h"
#include "models/grab/init_random.h"

namespace backstory::grab {
namespace {

struct Shape {
  int users, history, candidates;
  double best_torch_ms, floor_ms;  // measured once on another run, DESIGN section 9
};
constexpr Shape kShapes[] = {{1, 1024, 256, 0.256, 0.016},   {1, 4096, 256, 0.326, 0.033},
                             {1, 4096, 1024, 0.513, 0.130},  {1, 16384, 1024, 1.156, 0.391},
                             {8, 4096, 256, 0.864, 0.261},   {8, 4096, 1024, 2.187, 1.044},
                             {1, 65536, 1024, 3.825, 1.435}};

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::printf("%s\n", value.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(value);
}
void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::printf("%s\n", status.ToString().c_str());
  std::exit(1);
}

// One user's pages of every channel, at blocks of its own, as an even event rate makes them.
std::vector<CudaChannelPages> MakeUser(const Config& config, int history, CudaPagePool* pool, int* folded) {
  std::vector<int64_t> time, tie;
  for (int64_t i = 0; i < history; ++i) time.push_back(i * 3'600'000'000), tie.push_back(i);
  const std::vector<int32_t> previous(static_cast<size_t>(history), -1);
  const auto runs = CandidateRuns({time, tie, previous}, 0, static_cast<size_t>(history), time.back() + 1, -1, {},
                                  TimeBuckets(config.n_time));
  const VisiblePages pages =
      FindVisiblePages(runs, static_cast<size_t>(history), static_cast<size_t>(config.n_pos));
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
  for (size_t i = 0; i < blocks; ++i) {
    // The same values from another place on: no two pages are alike.
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
  std::printf("%dx%dx%d  gpu %.3f ms [%.3f %.3f]  wall %.3f ms [%.3f %.3f]  best torch %.3f  floor %.3f  folded pages %d"
              "  sets %d\n",
              shape.users, shape.history, shape.candidates, g.median, g.p10, g.p90, w.median, w.p10, w.p90,
              shape.best_torch_ms, shape.floor_ms, folded, sets);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 100;
  const Config config = *PresetConfig("grab-512");
  constexpr size_t kPoolBytes = size_t{24} << 30;
  const auto runtime = Must(CudaRuntime::Open({.kv_bytes = kPoolBytes}));
  std::printf("%s, %d multiprocessors; events and host clock, medians [p10 p90] of %d passes\n",
              runtime->device().name().c_str(), runtime->device().multiprocessors(), repeats);
  const auto pool = Must(runtime->PoolFor(Must(CudaNetwork::KvShape(config))));
  const auto network = Must(CudaNetwork::Load(config, RandomWeights(config, 1), runtime->gemms(), pool));
  const auto lane = Must(network->NewLane());
  FillRandom(pool.get(), static_cast<size_t>(pool->blocks()) / 2);
  for (const Shape& shape : kShapes) Measure(config, shape, *network, pool.get(), lane.get(), repeats);
  return 0;
}

}  // namespace
}  // namespace backstory::grab

int main(int argc, char** argv) { return backstory::grab::Main(argc, argv); }
