// The golden vectors of tests/conformance/experiments, which golden.py computes on its own.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/plan.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {
namespace {

nlohmann::json Load(const std::string& name) {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  std::ifstream file((root == nullptr ? std::string(".") : root) + ("/tests/conformance/experiments/" + name));
  EXPECT_TRUE(file.good()) << name;
  return nlohmann::json::parse(file);
}

TEST(Golden, Buckets) {
  const nlohmann::json golden = Load("buckets.json");
  ASSERT_EQ(golden.at("hash_version").get<int64_t>(), kHashVersion);
  ASSERT_GE(golden.at("vectors").size(), 300u);
  for (const auto& v : golden.at("vectors")) {
    const uint64_t seed = BucketSeed(v.at("salt").get<std::string>());
    EXPECT_EQ(seed, std::stoull(v.at("seed").get<std::string>(), nullptr, 16)) << v;
    EXPECT_EQ(BucketOf(seed, v.at("unit").get<std::string>()), v.at("bucket").get<int>()) << v;
  }
}

TEST(Golden, Arms) {
  const nlohmann::json golden = Load("arms.json");
  LayerConfig layer;
  layer.name = golden.at("layer").at("name");
  layer.salt = golden.at("layer").at("salt");
  for (const auto& e : golden.at("layer").at("experiments")) {
    ExperimentSpec experiment{e.at("name"), ExperimentState::kRunning, e.at("salt"), "", {}, e.at("ramp"), {}};
    for (const auto& range : e.at("buckets")) experiment.buckets.push_back({range.at(0), range.at(1)});
    for (const auto& arm : e.at("arms")) experiment.arms.push_back({arm.at(0), arm.at(1), {}});
    layer.experiments.push_back(experiment);
  }
  ExperimentConfig config;
  config.domains.push_back({"all", {{0, kBuckets}}, {layer}});
  const auto plan = ExperimentPlan::Compile(config, TestRegistry());
  ASSERT_TRUE(plan.ok()) << plan.status();
  int in_arms = 0;
  for (const auto& v : golden.at("vectors")) {
    const Assignment assignment = (*plan)->Assign("default", "", {v.at("unit"), "", ""}, {});
    if (v.at("experiment").is_null()) {
      EXPECT_TRUE(assignment.layers.empty()) << v;
      continue;
    }
    ++in_arms;
    ASSERT_EQ(assignment.layers.size(), 1u) << v;
    EXPECT_EQ(assignment.layers[0].get().exposures.at(0).experiment, v.at("experiment").get<std::string>()) << v;
    EXPECT_EQ(assignment.layers[0].get().exposures.at(0).arm, v.at("arm").get<std::string>()) << v;
  }
  EXPECT_GT(in_arms, 200);
}

}  // namespace
}  // namespace backstory
