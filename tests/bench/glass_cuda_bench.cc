// GLASS on a card at the released size: device times of a launch and of its kernels, and wall times of Search.
//   glass_cuda_bench [--shapes 1x20,32x20] [--repeats N] [--json] [--mask] [--throughput] [--fp32-only | --bf16-only]
//   glass_cuda_bench --verify VERSION_DIR    every golden case: beams in fp32 are the twin's, log-probabilities in bf16
//   near
// d 96, 6 heads x 32, FFN 1024, 4 + 4 layers, levels [64, 128, 128], vocabulary 328, 151 slots, a catalogue of 10,000
// items, users of 1,000 events. Weights are random; time does not depend on them. Device times lie between CUDA events.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "models/glass/cuda/lane.h"
#include "models/glass/cuda/model.h"
#include "models/glass/cuda/weights.h"
#include "models/glass/golden.h"
#include "models/glass/loader.h"
#include "models/safetensors.h"
#include "tests/bench/must.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

struct Shape {
  size_t users, beam;
};

struct World {
  Config config;
  TensorMap tensors;
  std::unique_ptr<const Catalogue> catalogue;
  std::vector<CudaUser> users;
  World() {
    config.tokens = TokenLayout::kDense;
    config.vocabulary = 328;
    tensors = RandomTensors(config, 5);
    catalogue = RandomCatalogue(config, 10'000, 3);
    for (uint32_t u = 0; u < 64; ++u) {
      History history(catalogue.get());
      for (uint32_t i = 0; i < 1'000; ++i) history.Append((i * 7919 + u * 104729 + i * i * u) % 10'000);
      users.push_back(MakeCudaUser(*catalogue, history));
    }
  }
  std::vector<CudaGlassRequest> Requests(const Shape& shape, SearchMode mode, const CudaTrie* trie) const {
    std::vector<CudaGlassRequest> requests;
    for (size_t i = 0; i < shape.users; ++i) requests.push_back({&users[i % users.size()], shape.beam, mode, trie});
    return requests;
  }
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// Milliseconds of Search on the host's clock.
double WallOf(const CudaGlass& glass, const std::vector<CudaGlassRequest>& requests, int repeats) {
  std::vector<CudaGlassReply> replies(requests.size());
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    Must(glass.Search(requests, replies));
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return Median(times);
}

void Run(const World& w, const std::shared_ptr<grab::CudaDevice>& device, const std::vector<Shape>& shapes, int repeats,
         CudaPrecision precision, bool mask, std::map<std::string, double>* results) {
  const std::string name = precision == CudaPrecision::kFp32 ? "fp32" : "bf16";
  const CudaGlassOptions options{.precision = precision, .users_max = 256, .rows_max = 8192, .lanes = 1};
  const auto weights =
      Must(cuda::UploadWeights(w.config, w.tensors, precision == CudaPrecision::kFp32 ? 3 : 1, device.get()));
  const auto lane = Must(cuda::Lane::Create(w.config, weights->model, {options.users_max, options.rows_max}, device));
  const auto glass = Must(CudaGlass::Create(w.config, w.tensors, device, options));
  const auto trie = Must(CudaTrie::Create(w.catalogue->trie(), device));
  std::printf("%s: weights and tables %.1f MB, a lane %.1f MB\n", name.c_str(),
              static_cast<double>(weights->memory.bytes()) / 1e6, static_cast<double>(lane->bytes()) / 1e6);
  std::printf(
      "users x beam   device   graph   encode  step1  select  step2  select  step3  select   wall  requests/s "
      "(device)\n");
  for (const Shape& shape : shapes) {
    if (shape.users * ((shape.beam + 31) / 32 * 32) > options.rows_max) continue;
    const auto requests = w.Requests(shape, SearchMode::kValid, trie.get());
    Must(lane->Time(requests, 5));
    const cuda::Lane::Times t = Must(lane->Time(requests, repeats));
    WallOf(*glass, requests, 3);
    const double wall = WallOf(*glass, requests, repeats);
    std::printf("%5zu x %-5zu  %7.3f %7.3f  %7.3f %6.3f %6.3f %7.3f %6.3f %7.3f %6.3f %7.3f  %8.0f\n", shape.users,
                shape.beam, t.whole, t.graph, t.encode, t.step[0], t.select[0], t.step[1], t.select[1], t.step[2],
                t.select[2], wall, 1e3 * static_cast<double>(shape.users) / t.whole);
    const std::string key = name + " " + std::to_string(shape.users) + "x" + std::to_string(shape.beam);
    (*results)[key + " search"] = t.whole;
    (*results)[key + " encode"] = t.encode;
    if (!mask) continue;
    const auto level = w.Requests(shape, SearchMode::kLevel, trie.get());
    Must(lane->Time(level, 5));
    const cuda::Lane::Times open = Must(lane->Time(level, repeats));
    std::printf("               level mask alone: graph %.3f: valid items cost %.1f %%\n", open.graph,
                100 * (t.graph / open.graph - 1));
  }
}

// Lanes kept busy by a thread each: what overlaps, and what the host's share costs.
void Throughput(const World& w, const std::shared_ptr<grab::CudaDevice>& device, CudaPrecision precision,
                size_t batch) {
  constexpr int kThreads = 4, kCalls = 50;
  const auto glass = Must(
      CudaGlass::Create(w.config, w.tensors, device,
                        {.precision = precision, .users_max = batch, .rows_max = 512 + 32 * batch, .lanes = kThreads}));
  const auto trie = Must(CudaTrie::Create(w.catalogue->trie(), device));
  const auto requests = w.Requests({batch, 20}, SearchMode::kValid, trie.get());
  const auto run = [&](int calls) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        std::vector<CudaGlassReply> replies(requests.size());
        for (int i = 0; i < calls; ++i) Must(glass->Search(requests, replies));
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  run(5);
  const auto start = std::chrono::steady_clock::now();
  run(kCalls);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%s, batches of %zu at beam 20, %d lanes: %.0f requests/s on the host's clock\n",
              precision == CudaPrecision::kFp32 ? "fp32" : "bf16", batch, kThreads,
              kThreads * kCalls * static_cast<double>(batch) / seconds);
}

// Beams of every golden case, with what the twin expects of it.
int Verify(const std::string& path, const std::shared_ptr<grab::CudaDevice>& device) {
  const auto loaded = Must(LoadGlassVersion(path));  // its goldens run on the CPU
  SafetensorsFile file = Must(SafetensorsFile::Open(path + "/weights-00001-of-00001.safetensors"));
  TensorMap tensors;
  Must(file.AddTo(&tensors));
  std::stringstream text;
  text << std::ifstream(path + "/goldens.jsonl").rdbuf();
  const auto goldens = Must(ParseGoldens(text.str(), "goldens.jsonl"));
  const Catalogue& catalogue = *loaded->catalogue;
  const auto trie = Must(CudaTrie::Create(catalogue.trie(), device));
  int failed = 0;
  for (const CudaPrecision precision : {CudaPrecision::kFp32, CudaPrecision::kBf16}) {
    const bool exact = precision == CudaPrecision::kFp32;
    const auto glass = Must(CudaGlass::Create(loaded->config, tensors, device, {.precision = precision, .lanes = 1}));
    size_t beams = 0, same = 0, first_same = 0, users = 0, orders = 0, overlap = 0;
    double worst = 0, sum = 0;
    for (const GoldenCase& golden : goldens) {
      if (golden.expect.min_gap < kGoldenGapMin) continue;
      std::vector<Event> events = golden.events;
      std::sort(events.begin(), events.end(), CanonicalLess);
      History history(&catalogue);
      for (const Event& event : events) {
        const auto row = catalogue.RowOf(event.item_id);
        if (event.time_us < golden.as_of_us && row.has_value() && IsBehaviour(loaded->config, event))
          history.Append(*row);
      }
      const CudaUser user = MakeCudaUser(catalogue, history);
      CudaGlassRequest request{&user, golden.beam, SearchMode::kValid, trie.get()};
      CudaGlassReply reply;
      Must(glass->Search({&request, 1}, {&reply, 1}));
      ++users;
      bool all = reply.beams.size() == golden.expect.sids.size();
      std::map<Sid, double> expected;
      for (size_t i = 0; i < golden.expect.sids.size(); ++i)
        expected[golden.expect.sids[i]] = golden.expect.log_probability[i];
      for (size_t i = 0; i < std::min(reply.beams.size(), golden.expect.sids.size()); ++i) {
        const Sid sid = catalogue.sid(catalogue.Items(reply.beams[i].node)[0]);
        ++beams;
        same += sid == golden.expect.sids[i];
        first_same += i == 0 && sid == golden.expect.sids[0];
        all &= sid == golden.expect.sids[i];
        if (const auto found = expected.find(sid); found != expected.end()) {
          ++overlap;
          const double difference = std::abs(found->second - static_cast<double>(reply.beams[i].score));
          worst = std::isnan(difference) ? INFINITY : std::max(worst, difference), sum += difference;
        }
      }
      orders += all;
      if (exact && !all) {
        std::printf("case %s: beams differ\n", golden.name.c_str());
        ++failed;
      }
    }
    std::printf(
        "%s: %zu users, %zu with all beams the twin's in order; %zu of %zu beams in place, %zu in the twin's list, %zu "
        "first "
        "ones; log-probability differs by at most %.2e, on average %.2e\n",
        exact ? "fp32" : "bf16", users, orders, same, beams, overlap, first_same, worst,
        sum / static_cast<double>(std::max<size_t>(1, overlap)));
    if (exact && !(worst <= kGoldenTolerance)) ++failed;
  }
  return failed;
}

}  // namespace
}  // namespace backstory::glass

int main(int argc, char** argv) {
  using namespace backstory;
  using namespace backstory::glass;
  std::vector<Shape> shapes;
  int repeats = 50;
  bool json = false, mask = false, fp32 = true, bf16 = true, throughput = false;
  std::string verify, list = "1x20,1x50,1x256,1x512,8x20,32x20,128x20,256x20,32x256";
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--shapes" && i + 1 < argc)
      list = argv[++i];
    else if (option == "--repeats" && i + 1 < argc)
      repeats = std::atoi(argv[++i]);
    else if (option == "--verify" && i + 1 < argc)
      verify = argv[++i];
    else if (option == "--json")
      json = true;
    else if (option == "--mask")
      mask = true;
    else if (option == "--throughput")
      throughput = true;
    else if (option == "--fp32-only")
      bf16 = false;
    else if (option == "--bf16-only")
      fp32 = false;
    else {
      std::printf("%s: unknown option, or its value is missing\n", option.c_str());
      return 2;
    }
  }
  std::stringstream text(list);
  for (std::string item; std::getline(text, item, ',');) {
    Shape shape{1, 20};
    if (std::sscanf(item.c_str(), "%zux%zu", &shape.users, &shape.beam) == 2) shapes.push_back(shape);
  }
  const auto device = Must(grab::CudaDevice::Open(0));
  std::printf("%s\n", device->name().c_str());
  if (!verify.empty()) return Verify(verify, device);
  const World world;
  std::map<std::string, double> results;
  if (bf16) Run(world, device, shapes, repeats, CudaPrecision::kBf16, mask, &results);
  if (fp32) Run(world, device, shapes, repeats, CudaPrecision::kFp32, mask, &results);
  if (throughput) {
    for (const size_t batch : {1, 32, 256}) {
      if (bf16) Throughput(world, device, CudaPrecision::kBf16, batch);
      if (fp32) Throughput(world, device, CudaPrecision::kFp32, batch);
    }
  }
  if (json) {
    std::string line;
    for (const auto& [key, value] : results)
      line += (line.empty() ? "{\"" : ", \"") + key + "\": " + std::to_string(value);
    std::printf("%s}\n", line.c_str());
  }
  return 0;
}
