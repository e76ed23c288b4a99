// The promises of randomisation, on a million units. Every id is fixed, so that a run is the same on every machine; the
// thresholds are those a run over other ids would meet as well.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/plan.h"
#include "serving/engine/experiments/statistics.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

constexpr int kUnits = 1'000'000;

std::shared_ptr<const ExperimentPlan> Compile(const ExperimentConfig& config) {
  auto plan = ExperimentPlan::Compile(config, TestRegistry());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *plan;
}

std::string Unit(int n) { return absl::StrCat("unit-", n); }

// arm index of (layer 0, layer 1) for every unit; -1: none.
std::vector<std::pair<int, int>> ArmsOf(const ExperimentPlan& plan) {
  std::vector<std::pair<int, int>> arms(kUnits, {-1, -1});
  Units units;
  for (int n = 0; n < kUnits; ++n) {
    units.user = Unit(n);
    for (const LayerAssignment& layer : plan.Assign("default", "", units, {}).layers) {
      const Exposure& exposure = layer.exposures.at(0);
      (exposure.layer == "l0" ? arms[n].first : arms[n].second) = exposure.arm[0] - 'a';
    }
  }
  return arms;
}

ExperimentConfig TwoLayers() {
  ExperimentConfig config = Layers(2);
  config.domains[0].layers[0].experiments[0].arms = {{"a", 5000, {}}, {"b", 3000, {}}, {"c", 2000, {}}};
  return config;
}

// R23: no sample ratio mismatch, and layers are independent of each other.
TEST(Properties, ArmsHaveTheirSharesAndLayersAreIndependent) {
  const auto plan = Compile(TwoLayers());
  std::vector<double> first(3), second(2), both(6);
  for (const auto& [a, b] : ArmsOf(*plan)) {
    ASSERT_GE(a, 0);
    ASSERT_GE(b, 0);
    ++first[a], ++second[b], ++both[a * 2 + b];
  }
  EXPECT_GT(ChiSquareP(first, {0.5, 0.3, 0.2}), 0.001);
  EXPECT_GT(ChiSquareP(second, {0.5, 0.5}), 0.001);
  double statistic = 0;
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 2; ++b) {
      const double expected = first[a] * second[b] / kUnits;
      statistic += (both[a * 2 + b] - expected) * (both[a * 2 + b] - expected) / expected;
    }
  }
  EXPECT_GT(ChiSquareSurvival(statistic, 2), 0.001) << "contingency table of the two layers, 2 degrees of freedom";
}

TEST(Properties, BucketsAreUniformForIdsOfEveryShape) {
  for (const int shape : {0, 1, 2, 3}) {
    std::vector<double> counts(kBuckets);
    std::mt19937_64 random(17);
    const uint64_t seed = BucketSeed(absl::StrCat("shape-", shape));
    for (int n = 0; n < kUnits; ++n) {
      const std::string id = shape == 0   ? absl::StrCat(n)
                             : shape == 1 ? absl::StrCat("user-", n)
                             : shape == 2 ? absl::StrCat(absl::Hex(random(), absl::kZeroPad16), absl::Hex(random(), absl::kZeroPad16))
                                          : absl::StrCat(uint64_t{1} << 60, "/", n * 64);
      ++counts[BucketOf(seed, id)];
    }
    EXPECT_GT(ChiSquareP(counts, std::vector<double>(kBuckets, 1.0 / kBuckets)), 0.001) << "shape " << shape;
  }
}

// Must-have 3: a ramp from 1 % to 100 % only adds units; nobody who was in an arm leaves it.
TEST(Properties, RampsOnlyAddUnitsAndMoveNobody) {
  ExperimentConfig config = TwoLayers();
  std::vector<std::pair<int, int>> before;
  int exposed_before = 0;
  for (const int64_t ramp : {100, 500, 1000, 2500, 5000, 10000}) {
    for (LayerConfig& layer : config.domains[0].layers) layer.experiments[0].ramp = ramp;
    const auto arms = ArmsOf(*Compile(config));
    int exposed = 0;
    for (int n = 0; n < kUnits; ++n) {
      exposed += arms[n].first >= 0 ? 1 : 0;
      if (before.empty()) continue;
      if (before[n].first >= 0) {
        ASSERT_EQ(arms[n].first, before[n].first) << Unit(n) << " at ramp " << ramp;
      }
      if (before[n].second >= 0) {
        ASSERT_EQ(arms[n].second, before[n].second) << Unit(n) << " at ramp " << ramp;
      }
    }
    // Within 5 standard deviations of its share.
    const double share = static_cast<double>(ramp) / kBuckets;
    EXPECT_NEAR(exposed, share * kUnits, 5 * std::sqrt(share * (1 - share) * kUnits) + 0.5);
    EXPECT_GT(exposed, exposed_before);
    exposed_before = exposed;
    before = arms;
  }
}

// The arms of a ramp step are split as the weights say, not only those of the whole experiment.
TEST(Properties, EveryRampStepHasTheSharesOfTheArms) {
  ExperimentConfig config = TwoLayers();
  for (const int64_t ramp : {100, 2000}) {
    config.domains[0].layers[0].experiments[0].ramp = ramp;
    std::vector<double> counts(3);
    for (const auto& [a, b] : ArmsOf(*Compile(config))) {
      if (a >= 0) ++counts[a];
    }
    EXPECT_GT(ChiSquareP(counts, {0.5, 0.3, 0.2}), 0.001) << "ramp " << ramp;
  }
}

// R23: 2,000 A/A experiments, each with its own salt, over 10,000 users whose outcome has nothing to do with the arm: a
// test at the 5 % level fires in 5 +- 1 % of them.
TEST(Properties, AaExperimentsFireAtTheirLevel) {
  constexpr int kRuns = 2000, kUsers = 10'000;
  std::mt19937_64 random(5);
  std::vector<std::string> users;
  std::vector<double> outcome;
  std::normal_distribution<double> taste(0.1, 0.05);
  for (int n = 0; n < kUsers; ++n) {
    users.push_back(Unit(n));
    outcome.push_back(taste(random));
  }
  int fired = 0;
  for (int run = 0; run < kRuns; ++run) {
    const uint64_t seed = BucketSeed(absl::StrCat("aa-", run));
    Moments a, b;
    for (int n = 0; n < kUsers; ++n) (BucketOf(seed, users[n]) < 5000 ? a : b).Add(outcome[n]);
    fired += DifferenceOf(a, b, 0.05).p < 0.05 ? 1 : 0;
  }
  EXPECT_GE(fired, kRuns * 0.04);
  EXPECT_LE(fired, kRuns * 0.06);
}

}  // namespace
}  // namespace backstory
