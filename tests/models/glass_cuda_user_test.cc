// What a card is told of a user, against the buckets it stands for.
#include <gtest/gtest.h>

#include <map>

#include "models/glass/cuda/user.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

TEST(GlassCudaUser, MembersAreTheDistinctTokensOfEachBucketWithTheirCounts) {
  for (const TokenLayout layout : {TokenLayout::kStrided, TokenLayout::kDense}) {
    Config config = SmallConfig();
    config.tokens = layout, config.neighbours = 1, config.neighbour_below = 3;
    const auto catalogue = RandomCatalogue(config, 60, 3);
    History history(catalogue.get());
    for (uint32_t i = 0; i < 90; ++i) history.Append(i * i % 60);
    const CudaUser user = MakeCudaUser(*catalogue, history);
    EXPECT_EQ(user.short_tokens, history.ShortTokens());
    ASSERT_EQ(user.begin.size(), static_cast<size_t>(config.levels[0]) + 1);
    const BucketTokens buckets = BucketsOf(*catalogue, history);
    size_t seen = 0;
    for (uint16_t code = 0; code < config.levels[0]; ++code) {
      std::map<uint32_t, uint32_t> counts;  // by token
      for (const uint32_t token : buckets(code)) counts[token] += token != 0;
      counts.erase(0);
      for (uint32_t i = user.begin[code]; i < user.begin[code + 1]; ++i) {
        const uint32_t place = user.members[i] >> CudaUser::kCountBits;
        const uint32_t level = place < 6 ? 0 : place < 15 ? 1 : 2;  // levels of 6, 9 and 11 codes
        const uint32_t token = config.offset(level) + place - (level == 0 ? 0 : level == 1 ? 6 : 15);
        EXPECT_EQ(counts[token], user.members[i] & ((1u << CudaUser::kCountBits) - 1)) << "token " << token;
        EXPECT_TRUE(i == user.begin[code] || user.members[i - 1] < user.members[i]);
        ++seen;
      }
      EXPECT_EQ(counts.size(), user.begin[code + 1] - user.begin[code]) << "code " << code;
    }
    EXPECT_GT(seen, 20u);
  }
}

TEST(GlassCudaUser, PadsAreNoMembersAndWithoutASearchThereAreNone) {
  Config config = SmallConfig();
  const CudaUser user = MakeCudaUser(config, {0, 0, 0}, {}, [](uint16_t code) {
    return code == 2 ? std::vector<uint32_t>{0, 0, 0} : std::vector<uint32_t>{};
  });
  EXPECT_TRUE(user.members.empty());
  EXPECT_EQ(user.begin, std::vector<uint32_t>(7, 0));
  config.retrieved_items = 0;
  EXPECT_TRUE(MakeCudaUser(config, {}, {}, nullptr).begin.empty());
}

}  // namespace
}  // namespace backstory::glass
