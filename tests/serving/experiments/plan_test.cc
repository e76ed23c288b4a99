#include "serving/engine/experiments/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/bucket.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::shared_ptr<const ExperimentPlan> Compile(const ExperimentConfig& config) {
  auto plan = ExperimentPlan::Compile(config, TestRegistry());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : nullptr;
}

std::vector<Exposure> Exposures(const Assignment& assignment, bool with_holdout = false) {
  std::vector<Exposure> all;
  for (const LayerAssignment& layer : assignment.layers) {
    for (const Exposure& exposure : layer.exposures) {
      if (with_holdout || exposure.layer != kHoldoutName) all.push_back(exposure);
    }
  }
  return all;
}

std::map<std::string, std::string> Parameters(const Assignment& assignment) {
  std::map<std::string, std::string> all;
  for (const LayerAssignment& layer : assignment.layers) all.insert(layer.parameters.begin(), layer.parameters.end());
  return all;
}

// The id "u<n>" whose hashes satisfy `want`.
std::string UserWhere(const std::function<bool(const std::string&)>& want) {
  for (int n = 0; n < 1'000'000; ++n) {
    const std::string user = absl::StrCat("u", n);
    if (want(user)) return user;
  }
  ADD_FAILURE() << "no such user";
  return "";
}

int Bucket(const std::string& salt, const std::string& id) { return BucketOf(BucketSeed(salt), id); }
bool General(const std::string& user) { return Bucket("holdout-1", user) >= 200 && Bucket("domains-1", user) < 9000; }

TEST(Plan, ABucketThatNobodyReservedGetsLaunchValues) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere([](const std::string& u) {
    return General(u) && Bucket("length-1", u) >= 5000 && Bucket("length-1", u) < 9000;
  });
  const Assignment assignment = plan->Assign("default", "home", {user, "", ""}, {});
  EXPECT_THAT(Exposures(assignment), IsEmpty());
  EXPECT_THAT(Parameters(assignment), ElementsAre(std::pair("rows", "200")));
  EXPECT_EQ(assignment.config_version, "v1");
}

TEST(Plan, AnArmSetsItsParametersOverLaunchValues) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere([](const std::string& u) {
    return General(u) && Bucket("length-1", u) < 2000 && Bucket("longer-1", u) >= 5000;
  });
  const Assignment assignment = plan->Assign("default", "home", {user, "", ""}, {});
  EXPECT_THAT(Exposures(assignment), ElementsAre(Exposure{"length", "longer", "treatment", "user", "targeted"}));
  EXPECT_THAT(Parameters(assignment), ElementsAre(std::pair("rows", "800")));
  EXPECT_THAT(Exposures(plan->Assign("default", "cart", {user, "", ""}, {})), IsEmpty()) << "targeting says home";
}

TEST(Plan, LayersOfADomainDecideIndependentlyAndByTheirOwnUnit) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere([](const std::string& u) {
    return General(u) && Bucket("length-1", u) < 2000 && Bucket("longer-1", u) < 5000;
  });
  const std::string device = UserWhere([](const std::string& d) { return Bucket("experiment/swap", d) >= 9000; });
  const Assignment both = plan->Assign("default", "home", {user, device, ""}, {});
  EXPECT_THAT(Exposures(both), ElementsAre(Exposure{"length", "longer", "control", "user", "targeted"},
                                           Exposure{"model", "swap", "new", "device", "targeted"}));
  EXPECT_EQ(Parameters(both).at("model_version"), "8");
  EXPECT_EQ(Parameters(both).at("state_rows"), "8192");
  const FeatureMap bronze = {{"tier", {"bronze", 0, false}}};
  EXPECT_EQ(Exposures(plan->Assign("default", "home", {user, device, ""}, bronze)).size(), 1u);
}

TEST(Plan, ARampTakesBucketsInTheOrderOfItsRanges) {
  const auto plan = Compile(BaseConfig());  // blended: 4000-4999, then 9000-9499 of 9000-9999
  const auto exposed = [&](int lo, int hi) {
    const std::string user = UserWhere([&](const std::string& u) {
      return General(u) && Bucket("length-1", u) >= lo && Bucket("length-1", u) < hi;
    });
    return !Exposures(plan->Assign("default", "cart", {user, "", ""}, {})).empty();
  };
  EXPECT_TRUE(exposed(4000, 4100));
  EXPECT_TRUE(exposed(9000, 9100));
  EXPECT_TRUE(exposed(9450, 9500));
  EXPECT_FALSE(exposed(9500, 9550));
}

TEST(Plan, DomainsAreDisjointShares) {
  const auto plan = Compile(BaseConfig());
  const std::string quiet = UserWhere([](const std::string& u) { return Bucket("domains-1", u) >= 9000 && Bucket("domains-1", u) < 9500; });
  const std::string outside = UserWhere([](const std::string& u) { return Bucket("domains-1", u) >= 9500; });
  EXPECT_THAT(Parameters(plan->Assign("default", "home", {quiet, "d", ""}, {})), IsEmpty()) << "deep is a DRAFT";
  EXPECT_THAT(Parameters(plan->Assign("default", "home", {outside, "d", ""}, {})), IsEmpty());
}

// Must-have 4: the holdout is above all layers.
TEST(Plan, HeldOutUnitsSeeNoExperimentAndNoLaunchValue) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere([](const std::string& u) {
    return Bucket("holdout-1", u) < 200 && Bucket("domains-1", u) < 9000 && Bucket("length-1", u) < 2000;
  });
  const Assignment assignment = plan->Assign("default", "home", {user, "device", ""}, {});
  EXPECT_THAT(Parameters(assignment), IsEmpty());
  EXPECT_THAT(Exposures(assignment, true), ElementsAre(Exposure{"holdout", "holdout", "held_out", "user", "holdout"}));
  const std::string general = UserWhere(General);
  EXPECT_THAT(Exposures(plan->Assign("default", "x", {general, "", ""}, {}), true).front(),
              (Exposure{"holdout", "holdout", "general", "user", "holdout"}));
}

// Must-have 4: overrides beat buckets and are logged as such.
TEST(Plan, AnOverrideBeatsBucketsTargetingRampDomainAndHoldoutButNotAKill) {
  ExperimentConfig config = BaseConfig();
  const Exposure forced{"length", "longer", "treatment", "user", "override"};
  const std::string held = UserWhere([](const std::string& u) { return Bucket("holdout-1", u) < 200; });
  const std::string elsewhere = UserWhere([](const std::string& u) { return Bucket("domains-1", u) >= 9500; });
  const std::string beyond = UserWhere([](const std::string& u) { return General(u) && Bucket("length-1", u) == 9999; });
  for (const std::string& id : {held, elsewhere, beyond}) config.overrides.push_back({UnitKind::kUser, id, "longer", "treatment"});
  for (const ExperimentState state : {ExperimentState::kRunning, ExperimentState::kDraft}) {
    config.domains[0].layers[0].experiments[0].state = state;
    const auto plan = Compile(config);
    for (const std::string& id : {held, elsewhere, beyond}) {
      const Assignment assignment = plan->Assign("default", "cart", {id, "", ""}, {});
      EXPECT_THAT(Exposures(assignment), ElementsAre(forced)) << id;
      EXPECT_EQ(Parameters(assignment).at("rows"), "800");
      EXPECT_EQ(Exposures(assignment, true).front().reason, "override") << "nor does it count in the holdout's analysis";
    }
  }
  config.domains[0].layers[0].experiments[0].state = ExperimentState::kKilled;
  EXPECT_THAT(Exposures(Compile(config)->Assign("default", "home", {beyond, "", ""}, {})), IsEmpty());
}

TEST(Plan, KillSwitchesGiveLaunchValues) {
  ExperimentConfig config = BaseConfig();
  const std::string user = UserWhere([](const std::string& u) {
    return General(u) && Bucket("length-1", u) < 2000 && Bucket("longer-1", u) >= 5000;
  });
  const Units units{user, "some-device", ""};
  config.domains[0].layers[0].experiments[0].state = ExperimentState::kKilled;
  Assignment assignment = Compile(config)->Assign("default", "home", units, {});
  EXPECT_THAT(Exposures(assignment), ElementsAre(testing::Field(&Exposure::layer, "model")));
  EXPECT_EQ(Parameters(assignment).at("rows"), "200");
  config = BaseConfig();
  config.kill_all = true;
  assignment = Compile(config)->Assign("default", "home", units, {});
  EXPECT_THAT(Exposures(assignment, true), IsEmpty());
  EXPECT_THAT(Parameters(assignment), ElementsAre(std::pair("rows", "200")));
}

TEST(Plan, ExperimentsOfALayerExcludeEachOther) {
  ExperimentConfig config = BaseConfig();
  config.domains[0].layers[0].experiments[0].targeting = "";
  config.domains[0].layers[0].experiments[0].ramp = 4000;
  const auto plan = Compile(config);
  std::set<std::string> seen;
  for (int n = 0; n < 20'000; ++n) {
    const auto exposures = Exposures(plan->Assign("default", "home", {absl::StrCat("u", n), "", ""}, {}));
    ASSERT_LE(exposures.size(), 1u);
    if (exposures.empty()) continue;
    seen.insert(exposures[0].experiment);
    EXPECT_EQ(exposures[0].reason, "assigned") << "both are for everybody";
  }
  EXPECT_EQ(seen, (std::set<std::string>{"longer", "blended"}));
}

TEST(Plan, AMissingUnitSkipsTheLayer) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere(General);
  for (const Exposure& exposure : Exposures(plan->Assign("default", "home", {user, "", ""}, {}))) {
    EXPECT_NE(exposure.layer, "model");
  }
  EXPECT_THAT(plan->Explain("default", "home", {user, "", ""}, {}).back(),
              "layer model: the request has no device id -> launch values: no parameters");
}

// Must-have 7.
TEST(Plan, ExplainTellsThePath) {
  const auto plan = Compile(BaseConfig());
  const std::string user = UserWhere([](const std::string& u) {
    return General(u) && Bucket("length-1", u) < 2000 && Bucket("longer-1", u) >= 5000;
  });
  const auto b = [&](const char* salt) { return std::to_string(Bucket(salt, user)); };
  const auto lines = plan->Explain("default", "home", {user, "", ""}, {});
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0], "holdout: user bucket " + b("holdout-1") + " -> not held out (held out: 0-199)");
  EXPECT_EQ(lines[1], "domain: user bucket " + b("domains-1") + " -> main");
  EXPECT_EQ(lines[2], "layer length: user bucket " + b("length-1") +
                          " -> experiment longer -> targeting scene == 'home' matches -> arm bucket " + b("longer-1") +
                          " -> arm treatment -> rows=800");
  const auto cart = plan->Explain("default", "cart", {user, "", ""}, {});
  EXPECT_THAT(cart[2], HasSubstr("targeting scene == 'home' does not match -> launch values: rows=200"));
  EXPECT_THAT(plan->Explain("default", "home", {"tester-1", "", ""}, {})[2],
              "layer length: override -> experiment longer -> arm treatment -> rows=800 (left out of analysis)");
}

// Must-have 7, the other half: what Explain says is what Assign does.
TEST(Plan, ExplainAgreesWithAssign) {
  const auto plan = Compile(BaseConfig());
  for (int n = 0; n < 3000; ++n) {
    const Units units{absl::StrCat("u", n), absl::StrCat("d", n), ""};
    std::string told;
    for (const std::string& line : plan->Explain("default", "home", units, {})) told += line + "\n";
    for (const Exposure& exposure : Exposures(plan->Assign("default", "home", units, {}))) {
      EXPECT_THAT(told, HasSubstr("experiment " + exposure.experiment + " -> ")) << units.user;
      EXPECT_THAT(told, HasSubstr("-> arm " + exposure.arm + " -> ")) << units.user;
    }
  }
}

}  // namespace
}  // namespace backstory
