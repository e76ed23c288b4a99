// The public GLASS implementation's outputs (tests/conformance/glass) against the readable kernels and every target.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "models/glass/decoder.h"
#include "tests/models/glass_conformance_fixture.h"

namespace backstory::glass {
namespace {

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
  const std::vector<int64_t> tokens = Read<int64_t>(c.file, "in.target_tokens"),
                             codes = Read<int64_t>(c.file, "in.targets");
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
        ExpectNear({row, row + static_cast<ptrdiff_t>(vocabulary)}, logits.data() + t * vocabulary, vocabulary,
                   kLogitBound,
                   std::string(table->target) + " logits of target " + std::to_string(t) + ", position " +
                       std::to_string(position));
        input[t] = static_cast<uint32_t>(tokens[t * kLevels + position]);
      }
    }
    for (size_t t = 0; t < targets; ++t) {
      EXPECT_NEAR(want_gate[t], gate[t] / (2.0 * config.decoder_layers), 1e-5)
          << table->target << " gate of target " << t;
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
            EXPECT_EQ(tokens[w * (step + 1) + p], steps[step][w].tokens[p])
                << table->target << " " << at << " beam " << w;
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
