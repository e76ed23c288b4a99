#include "serving/engine/experiments/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace backstory {
namespace {

TEST(Statistics, ChiSquareEqualsPublishedQuantiles) {
  // Upper-tail quantiles of the usual tables.
  EXPECT_NEAR(ChiSquareSurvival(3.841458820694124, 1), 0.05, 1e-12);
  EXPECT_NEAR(ChiSquareSurvival(6.634896601021213, 1), 0.01, 1e-12);
  EXPECT_NEAR(ChiSquareSurvival(10.827566170662733, 1), 0.001, 1e-12);
  EXPECT_NEAR(ChiSquareSurvival(5.991464547107979, 2), 0.05, 1e-12);
  EXPECT_NEAR(ChiSquareSurvival(18.307038053275146, 10), 0.05, 1e-12);
  EXPECT_NEAR(ChiSquareSurvival(124.3421134, 100), 0.05, 1e-9);
  EXPECT_NEAR(ChiSquareSurvival(2, 2), std::exp(-1), 1e-14) << "two degrees of freedom: exactly exp(-x / 2)";
  EXPECT_EQ(ChiSquareSurvival(0, 5), 1);
  EXPECT_NEAR(ChiSquareSurvival(9999, 9999), 0.4981, 1e-4) << "the median is near degrees - 2 / 3";
}

TEST(Statistics, NormalQuantileInvertsTheTail) {
  EXPECT_NEAR(NormalQuantile(0.975), 1.959963984540054, 1e-12);
  EXPECT_NEAR(NormalQuantile(0.95), 1.644853626951473, 1e-12);
  EXPECT_NEAR(NormalQuantile(0.5), 0, 1e-12);
  for (const double p : {1e-12, 1e-6, 0.001, 0.2, 0.4999, 0.6, 0.99, 1 - 1e-9}) {
    EXPECT_NEAR(0.5 * std::erfc(-NormalQuantile(p) / std::sqrt(2.0)) / p, 1, 1e-9) << p;
  }
  EXPECT_NEAR(TwoSidedP(1.959963984540054), 0.05, 1e-12);
  EXPECT_NEAR(TwoSidedP(-1.959963984540054), 0.05, 1e-12);
}

TEST(Statistics, MomentsEqualTheDefinition) {
  Moments moments;
  for (const double v : {1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 4}) moments.Add(v);
  EXPECT_DOUBLE_EQ(moments.mean(), 1e9 + 2.5);
  EXPECT_NEAR(moments.variance(), 5.0 / 3, 1e-9) << "no cancellation";
}

TEST(Statistics, RatioVarianceIsThatBetweenUnits) {
  // If every unit has one impression, a ratio is a mean.
  Moments mean;
  RatioMoments ratio;
  for (const int click : {1, 0, 0, 1, 1, 0, 0, 0}) mean.Add(click), ratio.Add(click, 1);
  EXPECT_DOUBLE_EQ(ratio.ratio(), mean.mean());
  EXPECT_NEAR(ratio.variance(), mean.mean_variance(), 1e-15);
  // Units of many, correlated impressions: simulate the variance.
  std::mt19937_64 random(3);
  const auto draw = [&](RatioMoments* into, Moments* naive) {
    for (int unit = 0; unit < 400; ++unit) {
      const int n = 1 + static_cast<int>(random() % 20);
      const double rate = std::uniform_real_distribution<double>(0, 0.4)(random);
      int clicks = 0;
      for (int i = 0; i < n; ++i) clicks += std::bernoulli_distribution(rate)(random);
      into->Add(clicks, n);
      for (int i = 0; i < n; ++i) naive->Add(i < clicks);
    }
  };
  Moments ratios;
  double told = 0, naive_told = 0;
  for (int round = 0; round < 1000; ++round) {
    RatioMoments one;
    Moments naive;
    draw(&one, &naive);
    ratios.Add(one.ratio());
    told += one.variance() / 1000;
    naive_told += naive.mean_variance() / 1000;
  }
  EXPECT_NEAR(told / ratios.variance(), 1, 0.15);
  EXPECT_LT(naive_told / ratios.variance(), 0.7) << "counting impressions one by one is too sure";
}

TEST(Statistics, FixedIntervalsCoverAtTheirLevel) {
  std::mt19937_64 random(11);
  std::normal_distribution<double> noise(0, 1);
  int covered = 0;
  constexpr int kRuns = 2000;
  for (int run = 0; run < kRuns; ++run) {
    Moments a, b;
    for (int n = 0; n < 200; ++n) a.Add(noise(random)), b.Add(noise(random) + 0.3);
    const Difference d = DifferenceOf(a, b, 0.05);
    covered += d.low <= 0.3 && 0.3 <= d.high;
    EXPECT_EQ(d.p < 0.05, d.low > 0 || d.high < 0);
  }
  EXPECT_NEAR(covered, kRuns * 0.95, 3 * std::sqrt(kRuns * 0.95 * 0.05));
}

struct Peeking {
  int fixed = 0, sequential = 0, runs = 0;
};

Peeking Peek(double effect, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> noise(0, 1);
  Peeking result;
  for (; result.runs < 1000; ++result.runs) {
    Moments a, b;
    bool fixed = false, sequential = false;
    for (int look = 0; look < 50; ++look) {
      for (int n = 0; n < 100; ++n) a.Add(noise(random)), b.Add(noise(random) + effect);
      fixed |= DifferenceOf(a, b, 0.05).p < 0.05;
      const Difference d = AlwaysValid(EstimateOf(a), EstimateOf(b), 0.05);
      sequential |= d.p < 0.05;
      EXPECT_EQ(d.p < 0.05, d.low > 0 || d.high < 0);
    }
    result.fixed += fixed, result.sequential += sequential;
  }
  return result;
}

TEST(Statistics, PeekingIsSafeWithTheSequentialTestOnly) {
  const Peeking none = Peek(0, 41);
  EXPECT_LE(none.sequential, none.runs * 0.05) << "at most 5 % ever fire, however often one looks";
  EXPECT_GE(none.fixed, none.runs * 0.2) << "the fixed test, looked at 50 times, fires far above its level";
  const Peeking effect = Peek(0.1, 42);
  EXPECT_GE(effect.sequential, effect.runs * 0.9) << "and a real effect is still found";
}

TEST(Statistics, AlwaysValidIsWiderButNotByMuch) {
  for (const int64_t units : {1000, 5000, 50'000}) {
    const Estimate a{0.1, 1.0 / static_cast<double>(units), units / 2}, b{0.2, 1.0 / static_cast<double>(units), units / 2};
    const Difference fixed = DifferenceOf(a, b, 0.05), always = AlwaysValid(a, b, 0.05);
    const double times = (always.high - always.low) / (fixed.high - fixed.low);
    EXPECT_GT(times, 1.3) << units;
    EXPECT_LT(times, 1.95) << units;
    EXPECT_GE(always.p, fixed.p);
  }
  EXPECT_EQ(AlwaysValid({}, {}, 0.05).p, 1);
  EXPECT_TRUE(std::isinf(AlwaysValid({}, {}, 0.05).high));
}

TEST(SampleRatio, NeedsBothASmallPAndALargeDeviation) {
  EXPECT_FALSE(CheckSampleRatio({0, 0}, {5000, 5000}).mismatch);
  EXPECT_FALSE(CheckSampleRatio({50'100, 49'900}, {5000, 5000}).mismatch) << "p = 0.53";
  const SampleRatio red = CheckSampleRatio({51'000, 49'000}, {5000, 5000});
  EXPECT_NEAR(red.statistic, 40, 1e-9);
  EXPECT_NEAR(red.deviation, 0.01, 1e-12);
  EXPECT_TRUE(red.mismatch);
  const SampleRatio huge = CheckSampleRatio({500'500'000, 499'500'000}, {5000, 5000});
  EXPECT_LT(huge.p, 0.001);
  EXPECT_FALSE(huge.mismatch) << "0.05 % off is nothing, whatever its p";
  EXPECT_FALSE(CheckSampleRatio({10, 20}, {5000, 5000}).mismatch) << "33 % off, but of 30 units";
  EXPECT_TRUE(CheckSampleRatio({9000, 600}, {9000, 1000}).mismatch) << "uneven weights";
  EXPECT_FALSE(CheckSampleRatio({9000, 1010}, {9000, 1000}).mismatch);
}

}  // namespace
}  // namespace backstory
