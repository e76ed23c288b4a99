// GLASS in process at the released size: encode and decode apart, beside the fp32 bound of the threads used.
// Run: build/release/bin/glass_bench. Weights are random; time does not depend on them.
#include <memory>
#include <random>
#include <vector>

#include "models/glass/beam_search.h"
#include "tests/bench/machine.h"
#include "tests/models/glass_version_fixture.h"
#include "tests/models/temp_dir.h"

namespace backstory::glass {
namespace {

// d 96, 6 heads x 32, FFN 1024, 4 + 4 layers, levels [64, 128, 128], 151 slots; a catalogue of 10,000 items and a user
// of 1,000 events.
struct World {
  Config config;
  std::unique_ptr<const Catalogue> catalogue = RandomCatalogue(config, 10'000, 3);
  std::unique_ptr<const Network> network = *Network::Create(config, RandomTensors(config, 5));
  std::unique_ptr<const Network> bf16 = *Network::Create(config, RandomTensors(config, 5), Dtype::kBf16);
  History history{catalogue.get()};
  std::vector<float> tier = std::vector<float>(static_cast<size_t>(config.levels[0]) * config.bins());
  World() {
    for (uint32_t i = 0; i < 1'000; ++i) history.Append(i * 7919 % 10'000);
    history.TierFeatures(tier.data());
  }
};

World& TheWorld() {
  static World world;
  return world;
}

// MACs of one request part (glass.md section 5): what no implementation of this function can leave out.
double EncodeMacs(const Config& c) {
  const double n = static_cast<double>(c.slots()), d = c.d, inner = static_cast<double>(c.inner());
  return c.encoder_layers * n * (4 * d * inner + 2 * n * inner + 2 * d * c.ffn) + c.decoder_layers * n * 2 * d * inner;
}
double DecodeMacs(const Config& c, double beam) {
  const double n = static_cast<double>(c.slots()), d = c.d, inner = static_cast<double>(c.inner());
  const double token =
      c.decoder_layers * (8 * d * inner + 2 * n * inner + 2 * d * d + 2 * d * c.ffn) + d * c.vocabulary;
  return (1 + 2 * beam) * token;
}

void BM_Encode(benchmark::State& state) {
  World& w = TheWorld();
  ThreadPool pool(static_cast<size_t>(state.range(0)));
  const Dtype dtype = state.range(1) == 16 ? Dtype::kBf16 : Dtype::kF32;
  const Network& network = dtype == Dtype::kBf16 ? *w.bf16 : *w.network;
  const std::vector<uint32_t> tokens = w.history.ShortTokens();
  for (auto _ : state) benchmark::DoNotOptimize(network.Encode(tokens, w.tier.data(), &pool));
  ReportFlops(state, 2 * EncodeMacs(w.config), dtype, static_cast<double>(state.range(0)));
}
// Threads, bits.
BENCHMARK(BM_Encode)->ArgsProduct({{1, 2}, {32, 16}})->UseRealTime()->Unit(benchmark::kMicrosecond);

void BM_Decode(benchmark::State& state) {
  World& w = TheWorld();
  SearchOptions options;
  options.beam = static_cast<size_t>(state.range(0));
  options.trie = &w.catalogue->trie();
  ThreadPool pool(static_cast<size_t>(state.range(1)));
  options.pool = &pool;
  const Dtype dtype = state.range(2) == 16 ? Dtype::kBf16 : Dtype::kF32;
  const Network& network = dtype == Dtype::kBf16 ? *w.bf16 : *w.network;
  const Memory memory = network.Encode(w.history.ShortTokens(), w.tier.data(), nullptr);
  const BucketTokens buckets = BucketsOf(*w.catalogue, w.history);
  for (auto _ : state) benchmark::DoNotOptimize(Search(network, memory, buckets, options));
  ReportFlops(state, 2 * DecodeMacs(w.config, static_cast<double>(options.beam)), dtype,
              static_cast<double>(state.range(1)));
}
// Beams, threads, bits.
BENCHMARK(BM_Decode)
    ->ArgsProduct({{1, 12, 20, 24, 50, 256}, {1, 2}, {32, 16}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

// A catalogue of a million items over codebooks of 8,192: what the trie costs against no constraint but the level, and
// what it takes. Without SID-Tier, whose table would be 8,192 bytes an item.
struct LargeWorld {
  Config config;
  std::vector<uint64_t> ids;
  std::vector<Sid> sids;
  std::unique_ptr<const Catalogue> catalogue;
  std::unique_ptr<const Network> network;
  std::unique_ptr<History> history;
  LargeWorld() {
    constexpr size_t kItems = 1'000'000;
    config.levels = {8192, 8192, 8192};
    config.tokens = TokenLayout::kDense;
    config.vocabulary = 24'584;
    config.tier_edges = {};
    std::mt19937 random(1);
    for (size_t i = 0; i < kItems; ++i) {
      ids.push_back(10 * i + 3);
      sids.push_back({static_cast<uint16_t>(random() % 8192), static_cast<uint16_t>(random() % 8192),
                      static_cast<uint16_t>(random() % 8192)});
    }
    catalogue = *Catalogue::Create(config, {ids, sids, {}, {}, {}});
    network = *Network::Create(config, RandomTensors(config, 5));
    history = std::make_unique<History>(catalogue.get());
    for (uint32_t i = 0; i < 1'000; ++i) history->Append(i * 7919 % kItems);
  }
};

LargeWorld& TheLargeWorld() {
  static LargeWorld world;
  return world;
}

void BM_MillionItems(benchmark::State& state) {
  LargeWorld& w = TheLargeWorld();
  SearchOptions options;
  options.beam = static_cast<size_t>(state.range(0));
  options.mode = state.range(1) == 0 ? SearchMode::kLevel : SearchMode::kValid;
  options.trie = &w.catalogue->trie();
  const Memory memory = Encode(*w.network, *w.history, nullptr);
  const BucketTokens buckets = BucketsOf(*w.catalogue, *w.history);
  size_t beams = 0, valid = 0;
  for (auto _ : state) {
    for (const Beam& beam : Search(*w.network, memory, buckets, options)) {
      ++beams;
      valid += options.mode == SearchMode::kValid && !w.catalogue->Items(beam.node).empty() ? 1 : 0;
    }
  }
  state.SetLabel(options.mode == SearchMode::kLevel ? "level mask only" : "valid items only");
  state.counters["valid_share"] = static_cast<double>(valid) / static_cast<double>(beams);
  state.counters["decode_bytes_per_item"] =
      static_cast<double>(w.catalogue->decode_bytes()) / static_cast<double>(w.catalogue->size());
}
BENCHMARK(BM_MillionItems)->ArgsProduct({{20, 256}, {0, 1}})->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_MillionItemsIndex(benchmark::State& state) {
  LargeWorld& w = TheLargeWorld();
  for (auto _ : state) benchmark::DoNotOptimize(Catalogue::Create(w.config, {w.ids, w.sids, {}, {}, {}}));
}
BENCHMARK(BM_MillionItemsIndex)->UseRealTime()->Unit(benchmark::kMillisecond);

// A version directory of that catalogue, from disk (in the page cache) to ready: digests, tensors, indexes, token
// tables, goldens.
void BM_MillionItemsLoad(benchmark::State& state) {
  const LargeWorld& w = TheLargeWorld();
  const TempDir dir;
  {
    VersionParts parts;
    parts.config = w.config;
    parts.config.name = "large";
    parts.config.quantiser = QuantiserKind::kRqKMeans;
    parts.config.quantiser_latent = parts.config.embedding_width;
    std::mt19937 random(2);
    std::normal_distribution<float> normal(0, 0.3f);
    for (const char* name : {"codebook.0", "codebook.1", "codebook.2", "prototype"}) {
      std::vector<float>& values = parts.quantiser[name];
      values.resize(8192 * 128);
      for (float& value : values) value = normal(random);
    }
    parts.item_ids.assign(w.ids.begin(), w.ids.end());
    parts.sids = w.sids;
    parts.prior.resize(w.ids.size());
    parts.config.sid_version = SidVersion(QuantiserTensors(parts), parts.sids);
    parts.weights = RandomTensors(parts.config, 5);
    parts.goldens = *RandomGoldens(parts);
    parts.extra_config = "tokens: DENSE without_tier: true\n";
    MustWrite(parts, dir.path("1"));
  }
  ThreadPool pool(2);
  for (auto _ : state) {
    const auto loaded = LoadGlassVersion(dir.path("1"), {&pool, "large"});
    if (!loaded.ok()) return state.SkipWithError(std::string(loaded.status().message()).c_str());
    state.counters["items"] = static_cast<double>((*loaded)->catalogue->size());
  }
}
BENCHMARK(BM_MillionItemsLoad)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_RebuildHistory(benchmark::State& state) {
  World& w = TheWorld();
  for (auto _ : state) {
    History history(w.catalogue.get());
    for (uint32_t i = 0; i < 1'000; ++i) history.Append(i * 7919 % 10'000);
    benchmark::DoNotOptimize(history);
  }
}
BENCHMARK(BM_RebuildHistory)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace backstory::glass

int main(int argc, char** argv) {
  backstory::PrintMachine();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
