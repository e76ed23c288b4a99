#include "serving/cli/ranking_quality.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace backstory {
namespace {

double PairwiseAuc(const std::vector<ScoredLabel>& scored) {
  double wins = 0, pairs = 0;
  for (const auto& a : scored) {
    for (const auto& b : scored) {
      if (!a.positive || b.positive) continue;
      wins += a.p > b.p ? 1 : a.p == b.p ? 0.5 : 0;
      pairs += 1;
    }
  }
  return pairs > 0 ? wins / pairs : std::nan("");
}

TEST(RankingQuality, AucEqualsCountingEveryPairWithTies) {
  constexpr unsigned kSeed = 7;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 50; ++round) {
    std::vector<ScoredLabel> scored(2 + random() % 60);
    for (auto& s : scored) s = {random() % 4, static_cast<double>(1 + random() % 9) / 10, random() % 3 == 0};
    const double expected = PairwiseAuc(scored);
    const double actual = Auc(scored);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(actual)) << "seed " << kSeed << " round " << round;
    } else {
      EXPECT_NEAR(actual, expected, 1e-12) << "seed " << kSeed << " round " << round;
    }
  }
}

TEST(RankingQuality, GaucWeighsGroupsBySizeAndSkipsOneClassGroups) {
  // Group 1 (size 2) is perfect, group 2 (size 4) is fully wrong, group 3 has one class only.
  const std::vector<ScoredLabel> scored = {{1, 0.9, true},  {1, 0.1, false}, {2, 0.1, true}, {2, 0.2, true},
                                           {2, 0.8, false}, {2, 0.9, false}, {3, 0.5, true}};
  const RankingQuality q = Quality(scored);
  EXPECT_EQ(q.gauc_groups, 2u);
  EXPECT_NEAR(q.gauc, 2.0 / 6, 1e-12);
}

TEST(RankingQuality, LogLossAndCalibrationOfAKnownCase) {
  const std::vector<ScoredLabel> scored = {{1, 0.8, true}, {1, 0.4, false}};
  const RankingQuality q = Quality(scored);
  EXPECT_NEAR(q.log_loss, -(std::log(0.8) + std::log(0.6)) / 2, 1e-12);
  EXPECT_NEAR(q.pcoc, 1.2, 1e-12);
}

TEST(RankingQuality, OneClassHasNoAuc) {
  const std::vector<ScoredLabel> scored = {{1, 0.8, true}, {1, 0.4, true}};
  EXPECT_TRUE(std::isnan(Quality(scored).auc));
  EXPECT_TRUE(std::isnan(Quality({}).pcoc));
}

}  // namespace
}  // namespace backstory
