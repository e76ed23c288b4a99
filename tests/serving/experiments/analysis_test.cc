#include "serving/engine/experiments/analysis.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiment.h"

namespace backstory {
namespace {

LoggedExposure Exposed(const std::string& unit, const std::string& arm, int64_t time_us,
                       const std::string& reason = kReasonAssigned) {
  return {time_us, "l", "e", arm, "user", unit, reason, "v"};
}
Outcome Shown(const std::string& unit, int64_t time_us, double label) { return {time_us, "user", unit, label, 0, false}; }
Outcome Predicted(const std::string& unit, int64_t time_us, double label, double predicted) {
  return {time_us, "user", unit, label, predicted, true};
}
ExperimentAnalysis Ab() { return ExperimentAnalysis("e", {{"a", 5000}, {"b", 5000}}); }

TEST(Analysis, JoinsOutcomesToUnitsFromTheirFirstExposureOn) {
  ExperimentAnalysis analysis = Ab();
  ASSERT_TRUE(analysis.AddExposure(Exposed("x", "a", 100)).ok());
  ASSERT_TRUE(analysis.AddExposure(Exposed("x", "a", 50)).ok());
  ASSERT_TRUE(analysis.AddExposure(Exposed("y", "b", 80)).ok());
  ASSERT_TRUE(analysis.AddExposure({1, "l", "other", "z", "user", "x", kReasonAssigned, "v"}).ok());
  analysis.AddOutcome(Shown("x", 49, 1));  // pre-period: before the experiment's first exposure
  analysis.AddOutcome(Predicted("x", 50, 1, 0.5));
  analysis.AddOutcome(Predicted("x", 60, 0, 0.25));
  analysis.AddOutcome(Shown("y", 79, 1));  // the experiment runs, y is not exposed yet
  analysis.AddOutcome(Shown("y", 80, 1));
  analysis.AddOutcome(Shown("nobody", 90, 1));
  analysis.AddOutcome({90, "device", "x", 1, 0, false});  // another unit
  const ExperimentResult result = analysis.Result({});
  EXPECT_EQ(result.exposures, 3u);
  EXPECT_EQ(result.first_us, 50);
  EXPECT_EQ(result.last_us, 100);
  EXPECT_EQ(result.outcomes, 6u);
  EXPECT_EQ(result.outcomes_without_exposure, 1u);
  EXPECT_TRUE(result.has_pre_period);
  EXPECT_DOUBLE_EQ(result.arms[0].rate.ratio(), 0.5);
  EXPECT_DOUBLE_EQ(result.arms[0].calibration.ratio(), 0.75);
  EXPECT_DOUBLE_EQ(result.arms[0].before.ratio(), 1);
  EXPECT_DOUBLE_EQ(result.arms[1].rate.denominator(), 1);
}

TEST(Analysis, ForcedUnitsAndUnitsInTwoArmsCountNowhere) {
  ExperimentAnalysis analysis = Ab();
  for (const auto& exposure :
       {Exposed("forced", "a", 1), Exposed("forced", "a", 2, kReasonOverride), Exposed("forced", "b", 3),
        Exposed("both", "a", 1), Exposed("both", "b", 2), Exposed("both", "b", 3), Exposed("fine", "b", 1)}) {
    ASSERT_TRUE(analysis.AddExposure(exposure).ok());
  }
  const ExperimentResult result = analysis.Result({});
  EXPECT_EQ(result.units_overridden, 1);
  EXPECT_EQ(result.units_in_two_arms, 1);
  EXPECT_EQ(result.arms[0].units, 0);
  EXPECT_EQ(result.arms[1].units, 1);
}

TEST(Analysis, AnArmTheConfigurationLacksIsAnError) {
  ExperimentAnalysis analysis = Ab();
  const absl::Status status = analysis.AddExposure(Exposed("x", "c", 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "the log has arm \"c\" of experiment e, the configuration has not");
}

// A whole experiment with a known truth: 4,000 users, base rates of their own, treatment adds 0.03.
TEST(Analysis, FindsTheEffectThatIsThere) {
  std::mt19937_64 random(77);
  ExperimentAnalysis analysis = Ab();
  std::vector<Outcome> outcomes;
  for (int n = 0; n < 4000; ++n) {
    const std::string unit = absl::StrCat("u", n);
    const bool treated = random() % 2 == 1;
    ASSERT_TRUE(analysis.AddExposure(Exposed(unit, treated ? "b" : "a", 1000 + n)).ok());
    const double base = std::uniform_real_distribution<double>(0.05, 0.15)(random);
    for (int i = 0; i < 20; ++i) {
      outcomes.push_back(Shown(unit, 10 + i, std::bernoulli_distribution(base)(random)));
      const double rate = base + (treated ? 0.03 : 0);
      outcomes.push_back(Predicted(unit, 6000 + i, std::bernoulli_distribution(rate)(random), treated ? 2 * rate : rate));
    }
  }
  for (const Outcome& outcome : outcomes) analysis.AddOutcome(outcome);
  const ExperimentResult result = analysis.Result({});
  const ArmResult& b = result.arms[1];
  EXPECT_FALSE(result.ratio.mismatch);
  EXPECT_LT(b.fixed.low, 0.03);
  EXPECT_GT(b.fixed.high, 0.03);
  EXPECT_GT(b.fixed.low, 0) << "and it is told apart from nothing";
  EXPECT_LT(b.always.low, b.fixed.low);
  EXPECT_GT(b.always.high, b.fixed.high);
  EXPECT_LT(b.always.p, 0.05);
  EXPECT_GT(b.aa.p, 0.01) << "no difference before";
  EXPECT_NEAR(result.arms[0].calibration.ratio(), 1, 0.05);
  EXPECT_NEAR(b.calibration.ratio(), 2, 0.1) << "the treatment's predictions are twice too high";
  const double aa = AaRerandomise(analysis.UnitTotals(), 1000, 0.05);
  EXPECT_GT(aa, 0.03);
  EXPECT_LT(aa, 0.07);
}

TEST(Analysis, ALopsidedSplitIsAMismatch) {
  ExperimentAnalysis analysis = Ab();
  for (int n = 0; n < 2000; ++n) {
    ASSERT_TRUE(analysis.AddExposure(Exposed(absl::StrCat("u", n), n % 20 < 9 ? "a" : "b", 1)).ok());
  }
  EXPECT_TRUE(analysis.Result({}).ratio.mismatch);
}

}  // namespace
}  // namespace backstory
