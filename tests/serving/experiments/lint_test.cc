#include "serving/engine/experiments/lint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "serving/engine/experiments/assigner.h"
#include "tests/serving/experiments/invalid_configs.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(LintConfig, AcceptsWhatIsRight) {
  EXPECT_THAT(LintConfig(BaseConfig(), TestRegistry()), IsEmpty());
  EXPECT_THAT(LintConfig(Layers(10), TestRegistry()), IsEmpty());
  EXPECT_THAT(LintConfig(ExperimentConfig(), TestRegistry()), IsEmpty());
}

// R24: each of 200 invalid configurations is refused with path and reason, and the good one keeps serving.
TEST(LintConfig, RefusesEveryInvalidConfigurationWithItsPathAndReason) {
  ExperimentAssigner assigner(&TestRegistry());
  ASSERT_TRUE(assigner.Apply(BaseConfig()).ok());
  const auto good = assigner.plan();
  const std::vector<InvalidConfig> cases = InvalidConfigs::All();
  EXPECT_GE(cases.size(), 200u);
  for (const InvalidConfig& invalid : cases) {
    EXPECT_THAT(LintConfig(invalid.config, TestRegistry()),
                Contains(AllOf(Field(&ConfigProblem::path, invalid.path), Field(&ConfigProblem::reason, HasSubstr(invalid.reason)))))
        << invalid.name;
    EXPECT_EQ(assigner.Apply(invalid.config).code(), absl::StatusCode::kInvalidArgument) << invalid.name;
    EXPECT_EQ(assigner.plan(), good) << invalid.name;
    EXPECT_FALSE(ExperimentPlan::Compile(invalid.config, TestRegistry()).ok()) << invalid.name;
  }
}

TEST(LintConfig, ReportsEveryProblemInFileOrder) {
  ExperimentConfig config = BaseConfig();
  config.hash_version = 9;
  config.domains[0].layers[0].experiments[0].ramp = 5000;
  config.domains[0].layers[0].experiments[0].arms[1].parameters["rows"] = "x";
  config.domains[1].name = "main";
  std::vector<std::string> paths;
  for (const ConfigProblem& problem : LintConfig(config, TestRegistry())) paths.push_back(problem.path);
  EXPECT_THAT(paths, ElementsAre("hash_version", "domain[0].layer[0].experiment[0].ramp",
                                 "domain[0].layer[0].experiment[0].arm[1].parameters[\"rows\"]", "domain[1].name"));
}

TEST(LintConfig, OneParameterMayHaveAnOwnerInEachDomain) {
  // Domains are disjoint, so a request never meets both: BaseConfig owns rows in "main" and in "quiet".
  EXPECT_EQ(BaseConfig().domains[0].layers[0].parameters[0], BaseConfig().domains[1].layers[0].parameters[0]);
  EXPECT_THAT(LintConfig(BaseConfig(), TestRegistry()), IsEmpty());
}

struct Change {
  const char* name;
  void (*change)(ExperimentConfig&);
  const char* path;
  const char* reason;
};

ExperimentSpec& Longer(ExperimentConfig& c) { return c.domains[0].layers[0].experiments[0]; }

TEST(LintChange, RefusesWhatMovesExposedUnits) {
  const Change kChanges[] = {
      {"gone", [](auto& c) { c.overrides.clear(), c.domains[0].layers[0].experiments.erase(c.domains[0].layers[0].experiments.begin()); },
       "", "experiment longer is RUNNING and is gone: make it KILLED first"},
      {"draft", [](auto& c) { Longer(c).state = ExperimentState::kDraft; }, "domain[0].layer[0].experiment[0].state", "was RUNNING and cannot be a DRAFT again"},
      {"shrunk", [](auto& c) { Longer(c).ramp = 1999; }, "domain[0].layer[0].experiment[0].ramp", "shrunk from 2000 to 1999"},
      {"moved", [](auto& c) { Longer(c).buckets = {{1, 3999}}; }, "domain[0].layer[0].experiment[0].buckets", "buckets moved under experiment longer: 1 exposed"},
      {"reordered", [](auto& c) { Longer(c).buckets = {{2000, 2000}, {0, 2000}}; }, "domain[0].layer[0].experiment[0].buckets", "2000 exposed ones"},
      {"salt", [](auto& c) { Longer(c).salt = "other"; }, "domain[0].layer[0].experiment[0].salt", "salt changed under experiment longer"},
      {"targeting", [](auto& c) { Longer(c).targeting = ""; }, "domain[0].layer[0].experiment[0].targeting", "targeting changed"},
      {"weights", [](auto& c) { Longer(c).arms[0].weight = 4000, Longer(c).arms[1].weight = 6000; }, "domain[0].layer[0].experiment[0].arm", "weights"},
      {"values", [](auto& c) { Longer(c).arms[1].parameters["rows"] = "801"; }, "domain[0].layer[0].experiment[0].arm", "changed under experiment longer"},
      {"layer salt", [](auto& c) { c.domains[0].layers[0].salt = "length-2"; }, "domain[0].layer[0].salt", "salt of the layer changed"},
      {"layer unit", [](auto& c) { c.domains[0].layers[0].unit = UnitKind::kDevice; }, "domain[0].layer[0].unit", "unit of the layer changed"},
      {"layer renamed", [](auto& c) { c.domains[0].layers[0].name = "other"; }, "domain[0].layer[0].experiment[0]", "moved from layer length of domain main to layer other"},
      {"domain shrunk", [](auto& c) { c.domains[0].buckets = {{0, 8999}}; }, "domain[0].buckets", "1 left the domain"},
      {"domain salt", [](auto& c) { c.domain_salt = "domains-2"; }, "domain_salt", "domain salt changed"},
      {"domain unit", [](auto& c) { c.domain_unit = UnitKind::kDevice; }, "domain_unit", "unit of the domains changed"},
      {"hash version", [](auto& c) { c.hash_version = 2; }, "hash_version", "hash version changed"},
      {"holdout grown", [](auto& c) { c.holdout.buckets = {{0, 300}}; }, "holdout", "holdout changed"},
      {"holdout shrunk", [](auto& c) { c.holdout.buckets = {{0, 100}}; }, "holdout", "holdout changed"},
      {"holdout salt", [](auto& c) { c.holdout.salt = "again"; }, "holdout", "holdout changed"},
      {"holdout unit", [](auto& c) { c.holdout.unit = UnitKind::kSession; }, "holdout", "holdout changed"},
  };
  for (const Change& change : kChanges) {
    ExperimentConfig next = BaseConfig();
    change.change(next);
    EXPECT_THAT(LintChange(BaseConfig(), next),
                Contains(AllOf(Field(&ConfigProblem::path, change.path), Field(&ConfigProblem::reason, HasSubstr(change.reason)))))
        << change.name;
    // A killed experiment may run on, so the same holds for it.
    ExperimentConfig killed = BaseConfig();
    Longer(killed).state = ExperimentState::kKilled;
    if (std::string(change.name) != "gone" && std::string(change.name) != "draft") {
      EXPECT_FALSE(LintChange(killed, next).empty()) << change.name;
    }
  }
}

// Both lists are made of every configuration: the change of an absurd one is answered too, and at once.
TEST(LintChange, EndsOnRangesThatLintConfigRefuses) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
  for (const BucketRange range : {BucketRange{0, kMost}, {kMost, 1}, {kMost, kMost}, {-1, kMost}, {kLeast, kLeast}, {1, kLeast}}) {
    ExperimentConfig next = BaseConfig();
    next.holdout.buckets = next.domains[0].buckets = Longer(next).buckets = {range};
    Longer(next).ramp = kMost;
    EXPECT_FALSE(LintConfig(next, TestRegistry()).empty());
    EXPECT_THAT(LintChange(BaseConfig(), next), Contains(Field(&ConfigProblem::path, "holdout")));
  }
}

TEST(LintChange, AllowsWhatMovesNobody) {
  const std::pair<const char*, void (*)(ExperimentConfig&)> kChanges[] = {
      {"nothing", [](auto&) {}},
      {"version", [](auto& c) { c.version = "v2"; }},
      {"ramp", [](auto& c) { Longer(c).ramp = 4000; }},
      {"more buckets behind", [](auto& c) { Longer(c).buckets.push_back({5000, 1000}); }},
      {"fewer buckets beyond the ramp", [](auto& c) { Longer(c).buckets = {{0, 2500}}; }},
      {"ranges cut otherwise", [](auto& c) { Longer(c).buckets = {{0, 1000}, {1000, 3000}}; }},
      {"kill", [](auto& c) { Longer(c).state = ExperimentState::kKilled; }},
      {"kill all", [](auto& c) { c.kill_all = true; }},
      {"draft", [](auto& c) { c.domains[1].layers[0].experiments.clear(); }},
      {"draft changed", [](auto& c) { c.domains[1].layers[0].experiments[0].arms[0].weight = 1, c.domains[1].layers[0].salt = "new"; }},
      {"launch", [](auto& c) { c.domains[0].layers[0].launch["blend"] = "0.7"; }},
      {"domain grown", [](auto& c) { c.domains[0].buckets.push_back({9500, 500}); }},
      {"layer order", [](auto& c) { std::swap(c.domains[0].layers[0], c.domains[0].layers[1]); }},
      {"overrides", [](auto& c) { c.overrides.clear(); }},
      {"salt spelled out", [](auto& c) { c.domains[0].layers[0].experiments[1].salt = "experiment/blended"; }},
  };
  for (const auto& [name, change] : kChanges) {
    ExperimentConfig next = BaseConfig();
    change(next);
    EXPECT_THAT(LintChange(BaseConfig(), next), IsEmpty()) << name;
  }
  ExperimentConfig killed = BaseConfig(), gone = BaseConfig();
  Longer(killed).state = ExperimentState::kKilled;
  gone.domains[0].layers[0].experiments.erase(gone.domains[0].layers[0].experiments.begin());
  EXPECT_THAT(LintChange(killed, gone), IsEmpty()) << "killed, then removed";
  EXPECT_THAT(LintChange(killed, BaseConfig()), IsEmpty()) << "and it may run on";
  EXPECT_THAT(LintChange(ExperimentConfig(), BaseConfig()), IsEmpty()) << "the first configuration";
}

}  // namespace
}  // namespace backstory
