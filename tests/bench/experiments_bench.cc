// What assignment costs a request. Target: <= 2 microseconds for 10 layers with every unit in an arm of each.
// Bound: 20 hashes of a short id (about 5 ns each) and the copies that the result consists of.
#include <benchmark/benchmark.h>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/assigner.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

void BM_Assign(benchmark::State& state) {
  ExperimentAssigner assigner(&TestRegistry());
  if (!assigner.Apply(Layers(static_cast<int>(state.range(0)))).ok()) state.SkipWithError("configuration refused");
  std::vector<Units> units;
  for (int n = 0; n < 4096; ++n) units.push_back({absl::StrCat("user-", n), "", ""});
  size_t next = 0;
  const FeatureMap features;
  const std::string ns = "default", scene = "home";
  for (auto _ : state) benchmark::DoNotOptimize(assigner.Assign(ns, scene, units[next++ % units.size()], features));
}
BENCHMARK(BM_Assign)->Arg(1)->Arg(10);

void BM_AssignTargeted(benchmark::State& state) {
  ExperimentConfig config = Layers(10);
  for (LayerConfig& layer : config.domains[0].layers) {
    layer.experiments[0].targeting = "scene == 'home' and features.country in ['at', 'ch', 'de'] and not features.age < 18";
  }
  ExperimentAssigner assigner(&TestRegistry());
  if (!assigner.Apply(config).ok()) state.SkipWithError("configuration refused");
  const FeatureMap features = {{"country", {"de", 0, false}}, {"age", {"", 44, true}}};
  const Units units{"user-1", "", ""};
  const std::string ns = "default", scene = "home";
  for (auto _ : state) benchmark::DoNotOptimize(assigner.Assign(ns, scene, units, features));
}
BENCHMARK(BM_AssignTargeted);

}  // namespace
}  // namespace backstory

BENCHMARK_MAIN();
