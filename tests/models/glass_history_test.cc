// The history side of GLASS: incremental = recounted, whatever leaves whichever window; and the catalogue's refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "models/glass/catalogue.h"
#include "models/glass/history.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Counted anew from the whole list: the slow twin.
std::vector<float> SlowTiers(const Catalogue& catalogue, std::span<const uint32_t> long_part) {
  const Config& c = catalogue.config();
  std::vector<float> counts(static_cast<size_t>(c.levels[0]) * c.bins());
  for (const uint32_t row : long_part) {
    for (size_t code = 0; code < catalogue.bins(row).size(); ++code) {
      if (catalogue.bins(row)[code] != TierTable::kNoBin) counts[code * c.bins() + catalogue.bins(row)[code]] += 1;
    }
  }
  for (float& count : counts) {
    count = static_cast<float>(static_cast<double>(count) / static_cast<double>(std::max<size_t>(1, long_part.size())));
  }
  return counts;
}

std::vector<uint32_t> SlowBucket(const Catalogue& catalogue, std::span<const uint32_t> long_part, uint16_t code) {
  const Config& c = catalogue.config();
  const auto newest = [&](uint16_t of, size_t most) {
    std::vector<uint32_t> rows;
    for (const uint32_t row : long_part) {
      if (catalogue.sid(row)[0] == of) rows.push_back(row);
    }
    if (rows.size() > most) rows.erase(rows.begin(), rows.end() - static_cast<ptrdiff_t>(most));
    return rows;
  };
  std::vector<uint32_t> rows = newest(code, static_cast<size_t>(c.retrieved_items));
  if (rows.size() >= static_cast<size_t>(c.neighbour_below)) return rows;
  for (const uint16_t other : catalogue.neighbours(code)) {
    const std::vector<uint32_t> more = newest(other, static_cast<size_t>(c.retrieved_items) - rows.size());
    rows.insert(rows.begin(), more.begin(), more.end());
  }
  return rows;
}

class GlassHistory : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(GlassHistory, IncrementalEqualsRecounted) {
  Config config = SmallConfig();
  config.long_items = std::get<0>(GetParam());
  config.neighbours = std::get<1>(GetParam());
  config.short_items = 5;
  config.retrieved_items = 4;
  config.neighbour_below = 3;
  const auto catalogue = RandomCatalogue(config, 40, 7);
  std::mt19937 random(11);
  History history(catalogue.get());
  std::vector<uint32_t> all;
  for (int i = 0; i < 300; ++i) {
    all.push_back(static_cast<uint32_t>(random() % catalogue->size()));
    history.Append(all.back());
    const size_t cut = all.size() - std::min<size_t>(all.size(), 5);
    size_t begin = 0;
    if (config.long_items > 0 && cut > static_cast<size_t>(config.long_items)) begin = cut - static_cast<size_t>(config.long_items);
    const std::span<const uint32_t> long_part(all.data() + begin, cut - begin);
    ASSERT_EQ(history.long_size(), long_part.size());
    std::vector<float> tiers(static_cast<size_t>(config.levels[0]) * config.bins());
    history.TierFeatures(tiers.data());
    ASSERT_EQ(tiers, SlowTiers(*catalogue, long_part)) << "after " << i + 1;
    for (uint16_t code = 0; code < config.levels[0]; ++code) {
      std::vector<uint32_t> rows;
      for (const Behaviour& behaviour : history.Bucket(code)) rows.push_back(behaviour.row);
      ASSERT_EQ(rows, SlowBucket(*catalogue, long_part, code)) << "code " << code << " after " << i + 1;
    }
    ASSERT_EQ(history.ShortTokens().size(), 3 * (all.size() - cut));
  }
  History again(catalogue.get());
  for (const uint32_t row : all) again.Append(row);
  EXPECT_TRUE(again == history);
  again.Append(0);
  EXPECT_FALSE(again == history);
}

INSTANTIATE_TEST_SUITE_P(WindowsAndNeighbours, GlassHistory, testing::Combine(testing::Values(0, 1, 30), testing::Values(0, 2)));

TEST(GlassHistoryMemory, OfAnUncappedHistoryIsBounded) {
  Config config = SmallConfig();
  const auto catalogue = RandomCatalogue(config, 40, 7);
  History history(catalogue.get());
  for (uint32_t i = 0; i < 2'000; ++i) history.Append(i % 40);
  const size_t before = history.bytes();
  for (uint32_t i = 0; i < 100'000; ++i) history.Append(i % 40);
  EXPECT_EQ(history.bytes(), before);
}

TEST(GlassTierTable, EdgesAreHalfOpenAndTheLastIsClosed) {
  Config config = SmallConfig();
  config.levels = {2, 2, 2};
  config.embedding_width = 1;
  config.tier_edges = {-1, 0, 0.5, 1};
  const std::vector<float> prototypes{1, -1};
  const TierTable table(config, prototypes);
  const auto bins = [&](float value) {
    std::vector<int> out(2);
    uint8_t got[2];
    table.Bins(&value, got);
    return std::vector<int>{got[0], got[1]};
  };
  EXPECT_THAT(bins(1.0f), ElementsAre(2, 0));
  EXPECT_THAT(bins(0.5f), ElementsAre(2, 0));
  EXPECT_THAT(bins(0.0f), ElementsAre(1, 1));
  EXPECT_THAT(bins(1.5f), ElementsAre(TierTable::kNoBin, TierTable::kNoBin));
}

TEST(GlassCatalogue, RefusalsNameItemAndField) {
  const Config config = SmallConfig();
  const size_t width = static_cast<size_t>(config.embedding_width);
  std::vector<uint64_t> ids{7, 8};
  std::vector<Sid> sids{{0, 1, 2}, {1, 1, 1}};
  std::vector<float> embeddings(2 * width, 0.5f);
  const auto message = [&] { return std::string(Catalogue::Create(config, {ids, sids, embeddings, {}, {}}).status().message()); };
  EXPECT_EQ(message(), "");
  sids[1][2] = static_cast<uint16_t>(config.levels[2]);
  EXPECT_THAT(message(), testing::AllOf(HasSubstr("item 8"), HasSubstr("sid"), HasSubstr("level 2"),
                                        HasSubstr(std::to_string(config.levels[2]))));
  sids[1][2] = 0;
  embeddings[width + 3] = NAN;
  EXPECT_THAT(message(), testing::AllOf(HasSubstr("item 8"), HasSubstr("embedding[3]")));
  embeddings.pop_back();
  EXPECT_THAT(message(), testing::AllOf(HasSubstr("embedding"), HasSubstr("width")));
  embeddings.assign(2 * width, 0.5f);
  ids[1] = 7;
  EXPECT_THAT(message(), testing::AllOf(HasSubstr("item 7"), HasSubstr("twice")));
  ids.clear();
  EXPECT_THAT(message(), HasSubstr("no items"));
}

TEST(GlassConfig, BothSidesOfTheLimits) {
  Config config;
  EXPECT_TRUE(Validate(config).ok()) << Validate(config);
  config.vocabulary = 384;
  EXPECT_THAT(std::string(Validate(config).message()), testing::AllOf(HasSubstr("vocabulary"), HasSubstr("384")));
  config.vocabulary = 385;
  EXPECT_TRUE(Validate(config).ok());
  config.levels[1] = 1;
  EXPECT_THAT(std::string(Validate(config).message()), HasSubstr("levels"));
  config.levels[1] = 128;
  config.tier_edges = {0, 0};
  EXPECT_THAT(std::string(Validate(config).message()), HasSubstr("tier_edges"));
  config.tier_edges = {};
  EXPECT_TRUE(Validate(config).ok());
  config.beam = 1025;
  EXPECT_THAT(std::string(Validate(config).message()), testing::AllOf(HasSubstr("beam"), HasSubstr("1..1024")));
}

}  // namespace
}  // namespace backstory::glass
