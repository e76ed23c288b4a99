// The public GLASS implementation's outputs (tests/conformance/glass) against the readable kernels and every target.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "models/glass/beam_search.h"
#include "models/glass/decoder.h"
#include "models/safetensors.h"

namespace backstory::glass {
namespace {

// The README's bounds for fp32 code against the fp64 run.
constexpr double kMemoryBound = 5e-5, kLogitBound = 3e-4, kScoreBound = 2e-4;

std::string Path(const std::string& name) {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/tests/conformance/glass/" + name;
}

SafetensorsFile Open(const std::string& name) {
  auto file = SafetensorsFile::Open(Path(name));
  EXPECT_TRUE(file.ok()) << file.status();
  return *file;
}

template <typename T>
std::vector<T> Read(const SafetensorsFile& file, const std::string& name) {
  auto values = file.Read<T>(name);
  EXPECT_TRUE(values.ok()) << values.status();
  return values.ok() ? *values : std::vector<T>();
}

// Cases: every file that names its weights. More can be dropped into the folder.
std::vector<std::string> Cases() {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(Path(""))) {
    if (entry.path().extension() != ".safetensors") continue;
    auto file = SafetensorsFile::Open(entry.path().string());
    if (file.ok() && file->metadata().contains("weights")) cases.push_back(entry.path().filename().string());
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

struct Version {
  Config config;
  std::unique_ptr<const Network> network;
  std::unique_ptr<const Catalogue> catalogue;
};

Config ConfigOf(const SafetensorsFile& weights) {
  const auto json = nlohmann::json::parse(weights.metadata().at("config"));
  Config c;
  c.d = json["d_model"];
  c.heads = json["heads"];
  c.d_kv = json["d_kv"];
  c.ffn = json["ffn"];
  c.encoder_layers = json["enc_layers"];
  c.decoder_layers = json["dec_layers"];
  for (size_t l = 0; l < kLevels; ++l) c.levels[l] = json["levels"][l];
  c.vocabulary = json["vocab"];
  c.short_items = json["short_items"];
  c.retrieved_items = json["retrieved_items"];
  c.tier_edges = json["tier_edges"].get<std::vector<float>>();
  c.relative_buckets = json["rel_buckets"];
  c.relative_distance_max = json["rel_max_distance"];
  c.beam = json["beam"];
  EXPECT_EQ(c.bos(), json["bos"].get<uint32_t>());
  EXPECT_EQ(c.stride(), json["stride"].get<uint32_t>());
  return c;
}

Version LoadVersion(const std::string& weights_name, const std::string& catalogue_name) {
  Version v;
  const SafetensorsFile weights = Open(weights_name), items = Open(catalogue_name);
  v.config = ConfigOf(weights);
  const std::vector<float> embeddings = Read<float>(items, "item.embedding"), prototypes = Read<float>(items, "prototype");
  v.config.embedding_width = static_cast<int>(items.Find("item.embedding")->shape[1]);
  EXPECT_TRUE(Validate(v.config).ok()) << Validate(v.config);
  TensorMap tensors;
  EXPECT_TRUE(weights.AddTo(&tensors).ok());
  auto network = Network::Create(v.config, tensors);
  EXPECT_TRUE(network.ok()) << network.status();
  v.network = *std::move(network);
  const std::vector<int64_t> codes = Read<int64_t>(items, "item.sid");
  std::vector<uint64_t> ids;
  std::vector<Sid> sids;
  for (size_t i = 0; i * kLevels < codes.size(); ++i) {
    ids.push_back(i);
    sids.push_back({static_cast<uint16_t>(codes[3 * i]), static_cast<uint16_t>(codes[3 * i + 1]),
                    static_cast<uint16_t>(codes[3 * i + 2])});
  }
  auto catalogue = Catalogue::Create(v.config, {ids, sids, embeddings, prototypes, {}});
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  v.catalogue = *std::move(catalogue);
  return v;
}

void ExpectNear(const std::vector<double>& want, const float* got, size_t n, double bound, const std::string& what) {
  ASSERT_EQ(want.size(), n) << what;
  size_t worst = 0;
  for (size_t i = 1; i < n; ++i) {
    if (std::abs(want[i] - got[i]) > std::abs(want[worst] - got[worst])) worst = i;
  }
  EXPECT_LE(std::abs(want[worst] - got[worst]), bound) << what << ": worst at " << worst << ", expected " << want[worst]
                                                       << ", found " << got[worst];
}

struct Case {
  SafetensorsFile file;
  Version version;
  History history;
  std::vector<uint32_t> short_tokens;  // without the left padding
  std::vector<float> tier;
};

Case LoadCase(const std::string& name) {
  const SafetensorsFile file = Open(name);
  Version version = LoadVersion(file.metadata().at("weights"), file.metadata().at("catalogue"));
  History history(version.catalogue.get());
  std::vector<uint32_t> tokens;
  for (const int64_t token : Read<int64_t>(file, "in.short_tokens")) {
    if (token != 0 || !tokens.empty()) tokens.push_back(static_cast<uint32_t>(token));
  }
  // Whole behaviours: a behaviour of SID (0, 0, 0) at the old end is pads too, and then indistinguishable from padding.
  while (tokens.size() % kLevels != 0) tokens.insert(tokens.begin(), 0);
  for (const int64_t row : Read<int64_t>(file, "in.long_items")) history.Append(static_cast<uint32_t>(row));
  // What is appended after them pushes exactly these out of the short window.
  for (int i = 0; i < version.config.short_items; ++i) history.Append(0);
  std::vector<float> tier(static_cast<size_t>(version.config.levels[0]) * version.config.bins());
  history.TierFeatures(tier.data());
  return {file, std::move(version), std::move(history), std::move(tokens), std::move(tier)};
}

class GlassConformance : public testing::TestWithParam<std::string> {};

TEST_P(GlassConformance, HistorySide) {
  const Case c = LoadCase(GetParam());
  const std::vector<float> want = Read<float>(c.file, "in.tier");
  ASSERT_EQ(want.size(), c.tier.size());
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(want[i], c.tier[i], 1e-6) << "tier feature " << i;
  const std::vector<int64_t> targets = Read<int64_t>(c.file, "in.targets");
  const std::vector<int64_t> retrieved = Read<int64_t>(c.file, "in.retrieved_tokens");
  const BucketTokens buckets = BucketsOf(*c.version.catalogue, c.history);
  const size_t width = kLevels * static_cast<size_t>(c.version.config.retrieved_items);
  for (size_t t = 0; t * kLevels < targets.size(); ++t) {
    std::vector<uint32_t> tokens = buckets(static_cast<uint16_t>(targets[t * kLevels]));
    tokens.insert(tokens.begin(), width - tokens.size(), 0);
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), retrieved.begin() + static_cast<ptrdiff_t>(t * width)))
        << "retrieved tokens of target " << t;
  }
}

TEST_P(GlassConformance, MemoryAndTeacherForcing) {
  const Case c = LoadCase(GetParam());
  const Config& config = c.version.config;
  const size_t d = static_cast<size_t>(config.d), vocabulary = static_cast<size_t>(config.vocabulary);
  const std::vector<double> want_memory = Read<double>(c.file, "out64.memory");
  const std::vector<double> want_logits = Read<double>(c.file, "out64.logits");
  const std::vector<double> want_gate = Read<double>(c.file, "out64.gate_mean");
  const std::vector<int64_t> tokens = Read<int64_t>(c.file, "in.target_tokens"), codes = Read<int64_t>(c.file, "in.targets");
  const size_t targets = tokens.size() / kLevels;
  for (const KernelTable* table : AllKernels()) {
    const ScopedKernels scope(*table);
    const Memory memory = c.version.network->Encode(c.short_tokens, c.tier.data(), nullptr);
    for (size_t r = 0; r < memory.rows; ++r) {
      const auto row = want_memory.begin() + static_cast<ptrdiff_t>(memory.slots[r] * d);
      ExpectNear({row, row + static_cast<ptrdiff_t>(d)}, memory.states.data() + r * d, d, kMemoryBound,
                 std::string(table->target) + " memory slot " + std::to_string(memory.slots[r]));
    }
    Decoder decoder(c.version.network.get(), &memory, targets);
    const BucketTokens buckets = BucketsOf(*c.version.catalogue, c.history);
    std::vector<RetrievedSet> sets;
    for (size_t t = 0; t < targets; ++t) {
      sets.push_back(c.version.network->Retrieve(buckets(static_cast<uint16_t>(codes[t * kLevels]))));
    }
    std::vector<const RetrievedSet*> retrieved;
    for (const RetrievedSet& set : sets) retrieved.push_back(&set);
    std::vector<float> logits(targets * vocabulary);
    std::vector<double> gate(targets);
    std::vector<uint32_t> input(targets, config.bos());
    for (size_t position = 0; position < kLevels; ++position) {
      decoder.Step(input, retrieved, logits.data(), gate.data());
      for (size_t t = 0; t < targets; ++t) {
        const auto row = want_logits.begin() + static_cast<ptrdiff_t>((t * kLevels + position) * vocabulary);
        ExpectNear({row, row + static_cast<ptrdiff_t>(vocabulary)}, logits.data() + t * vocabulary, vocabulary, kLogitBound,
                   std::string(table->target) + " logits of target " + std::to_string(t) + ", position " +
                       std::to_string(position));
        input[t] = static_cast<uint32_t>(tokens[t * kLevels + position]);
      }
    }
    for (size_t t = 0; t < targets; ++t) {
      EXPECT_NEAR(want_gate[t], gate[t] / (2.0 * config.decoder_layers), 1e-5) << table->target << " gate of target " << t;
    }
  }
}

TEST_P(GlassConformance, Beams) {
  const Case c = LoadCase(GetParam());
  const BucketTokens buckets = BucketsOf(*c.version.catalogue, c.history);
  for (const KernelTable* table : AllKernels()) {
    const ScopedKernels scope(*table);
    const Memory memory = c.version.network->Encode(c.short_tokens, c.tier.data(), nullptr);
    for (const SearchMode mode : {SearchMode::kFree, SearchMode::kLevel}) {
      std::array<std::vector<Beam>, kLevels> steps;
      SearchOptions options;
      options.beam = static_cast<size_t>(c.version.config.beam);
      options.mode = mode;
      options.steps = &steps;
      Search(*c.version.network, memory, buckets, options);
      for (size_t step = 0; step < kLevels; ++step) {
        const std::string prefix = mode == SearchMode::kFree ? "step" : "level_step";
        const std::string at = prefix + std::to_string(step + 1);
        const std::vector<int64_t> tokens = Read<int64_t>(c.file, "out." + at + "_tokens");
        const std::vector<double> scores = Read<double>(c.file, "out64." + at + "_scores");
        ASSERT_EQ(steps[step].size(), scores.size()) << table->target << " " << at;
        for (size_t w = 0; w < scores.size(); ++w) {
          for (size_t p = 0; p <= step; ++p) {
            EXPECT_EQ(tokens[w * (step + 1) + p], steps[step][w].tokens[p]) << table->target << " " << at << " beam " << w;
          }
          EXPECT_NEAR(scores[w], steps[step][w].score, kScoreBound) << table->target << " " << at << " beam " << w;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GlassConformance, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name = info.param.substr(0, info.param.size() - std::string(".safetensors").size());
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

TEST(GlassRelativeBucket, EqualsThePublicFunction) {
  const SafetensorsFile file = Open("relative_buckets.safetensors");
  const std::vector<int64_t> distance = Read<int64_t>(file, "distance"), bucket = Read<int64_t>(file, "bucket");
  ASSERT_FALSE(distance.empty());
  for (size_t i = 0; i < distance.size(); ++i) {
    EXPECT_EQ(bucket[i], RelativeBucket(static_cast<int>(distance[i]), 32, 128)) << "distance " << distance[i];
  }
}

}  // namespace
}  // namespace backstory::glass
