#include "serving/engine/experiments/assigner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

using testing::HasSubstr;

TEST(ExperimentAssigner, IsLaunchDefaultsUntilApplied) {
  ExperimentAssigner assigner(&TestRegistry());
  const Assignment assignment = assigner.Assign("default", "home", {"ann", "", ""}, {});
  EXPECT_TRUE(assignment.layers.empty());
  EXPECT_EQ(assignment.config_version, "launch");
  EXPECT_EQ(assigner.plan(), nullptr);
}

TEST(ExperimentAssigner, AppliesOnlyOverTheExpectedVersion) {
  ExperimentAssigner assigner(&TestRegistry());
  EXPECT_EQ(assigner.Apply(BaseConfig(), "v0").code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(assigner.Apply(BaseConfig()).ok());
  const auto first = assigner.plan();
  ASSERT_TRUE(assigner.Apply(BaseConfig()).ok());
  EXPECT_EQ(assigner.plan(), first) << "the same content again does nothing";
  ExperimentConfig next = BaseConfig();
  next.version = "v2";
  next.kill_all = true;
  const absl::Status stale = assigner.Apply(next, "v9");
  EXPECT_EQ(stale.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(stale.message()), HasSubstr("v1 is"));
  EXPECT_EQ(assigner.plan(), first);
  ASSERT_TRUE(assigner.Apply(next, "v1").ok());
  EXPECT_EQ(assigner.plan()->config().version, "v2");
}

TEST(ExperimentAssigner, RefusesAChangeThatMovesUnitsAndKeepsTheLastGoodOne) {
  ExperimentAssigner assigner(&TestRegistry());
  ASSERT_TRUE(assigner.Apply(BaseConfig()).ok());
  const auto good = assigner.plan();
  ExperimentConfig next = BaseConfig();
  next.domains[0].layers[0].experiments[0].ramp = 10;
  next.domains[0].layers[0].experiments[1].arms[0].parameters["blend"] = "2";
  const absl::Status status = assigner.Apply(next);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("experiment[0].ramp: shrunk from 2000 to 10"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("experiment[1].arm[0].parameters[\"blend\"]: "));
  EXPECT_EQ(assigner.plan(), good);
  EXPECT_EQ(assigner.Validate(next).size(), 3u);  // the value, the ramp, and the arms of a running experiment
}

// Must-have 6: a request sees one configuration whole, whatever is swapped while it runs.
TEST(ExperimentAssigner, SwapsAtomicallyWhileRequestsRun) {
  ExperimentAssigner assigner(&TestRegistry());
  ASSERT_TRUE(assigner.Apply(Layers(10)).ok());
  ExperimentConfig killed = Layers(10);
  killed.version = "killed";
  killed.kill_all = true;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0}, served{0};
  std::thread reader([&] {
    for (int n = 0; !stop || n < 1000; ++n) {
      const Assignment assignment = assigner.Assign("default", "", {absl::StrCat("u", n), "", ""}, {});
      const size_t expected = assignment.config_version == "killed" ? 0 : 10;
      if (assignment.layers.size() != expected) ++wrong;
      ++served;
    }
  });
  for (int round = 0; round < 200; ++round) {
    ASSERT_TRUE(assigner.Apply(round % 2 == 0 ? killed : Layers(10)).ok());
  }
  stop = true;
  reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GE(served, 1000);
}

}  // namespace
}  // namespace backstory
