#include "serving/rpc/experiment_config_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "serving/engine/experiments/assigner.h"
#include "tests/serving/experiments/invalid_configs.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory::rpc {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kText[] = R"(hash_version: 1
holdout {
  buckets { first: 0 count: 100 }
}
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    parameter: "rows"
    launch { name: "rows" value: "200" }
    experiment {
      name: "longer"
      state: RUNNING
      targeting: 'scene == "home"'
      buckets { first: 0 count: 5000 }
      ramp: 500
      arm { name: "control" weight: 5000 }
      arm {
        name: "treatment"
        weight: 5000
        parameters { name: "rows" value: "800" }
      }
    }
  }
}
)";

std::string Replace(std::string text, const std::string& what, const std::string& with) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), with);
}

std::vector<std::string> Problems(const std::string& text) {
  const auto parsed = ParseExperimentConfig(text, "e.textproto");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  if (!parsed.ok()) return {};
  std::vector<std::string> out;
  for (const ConfigProblem& problem : parsed->problems) out.push_back(Located(*parsed, problem));
  for (const ConfigProblem& problem : LintConfig(parsed->config, TestRegistry())) out.push_back(Located(*parsed, problem));
  return out;
}

TEST(ExperimentConfigText, ReadsEveryField) {
  EXPECT_THAT(Problems(kText), IsEmpty());
  const auto parsed = ParseExperimentConfig(kText, "e.textproto");
  const ExperimentSpec& experiment = parsed->config.domains.at(0).layers.at(0).experiments.at(0);
  EXPECT_EQ(experiment.state, ExperimentState::kRunning);
  EXPECT_EQ(experiment.targeting, "scene == \"home\"");
  EXPECT_EQ(experiment.ramp, 500);
  EXPECT_THAT(experiment.arms[1].parameters, ElementsAre(std::pair("rows", "800")));
  EXPECT_THAT(parsed->config.holdout.buckets, ElementsAre(BucketRange{0, 100}));
}

TEST(ExperimentConfigText, FormatsWhatItReads) {
  ExperimentConfig config = BaseConfig();
  config.kill_all = true;
  const auto again = ParseExperimentConfig(FormatExperimentConfig(config), "x");
  ASSERT_TRUE(again.ok()) << again.status();
  config.version = again->config.version;
  EXPECT_EQ(again->config, config);
}

TEST(ExperimentConfigText, TheVersionNamesTheContentAndNotTheLayout) {
  const std::string version = ParseExperimentConfig(kText, "a")->config.version;
  EXPECT_EQ(version.size(), 17u);
  EXPECT_EQ(ParseExperimentConfig("# a comment\n" + std::string(kText), "b")->config.version, version);
  EXPECT_NE(ParseExperimentConfig(Replace(kText, "ramp: 500", "ramp: 501"), "c")->config.version, version);
}

TEST(ExperimentConfigText, EveryProblemHasItsLine) {
  EXPECT_THAT(Problems(Replace(kText, "value: \"800\"", "value: \"8000\"")),
              ElementsAre("e.textproto:22: domain[0].layer[0].experiment[0].arm[1].parameters[\"rows\"]: parameter rows: "
                          "\"8000\" is not an integer within 0..1000"));
  EXPECT_THAT(Problems(Replace(kText, "scene ==", "scene =")),
              ElementsAre(HasSubstr("e.textproto:15: domain[0].layer[0].experiment[0].targeting: column 7")));
  EXPECT_THAT(Problems(Replace(kText, "ramp: 500", "ramp: 5001")), ElementsAre(HasSubstr("e.textproto:17: ")));
  EXPECT_THAT(Problems(Replace(kText, "hash_version: 1", "hash_version: 2")), ElementsAre(HasSubstr("e.textproto:1: ")));
  EXPECT_THAT(Problems(Replace(kText, "count: 100 ", "count: 0 ")), ElementsAre(HasSubstr("e.textproto:3: holdout.buckets[0]")));
  EXPECT_THAT(Problems(Replace(kText, "state: RUNNING", "state: 7")), ElementsAre(HasSubstr("e.textproto:14: ")));
  EXPECT_THAT(Problems(Replace(kText, "name: \"length\"", "name: \"length\" unit: 9")), ElementsAre(HasSubstr("].unit: 9 is no unit")));
  // What is missing is reported at what lacks it.
  EXPECT_THAT(Problems(Replace(kText, "buckets { first: 0 count: 5000 }", "")),
              Contains(HasSubstr("e.textproto:12: domain[0].layer[0].experiment[0].buckets")));
  EXPECT_THAT(Problems(Replace(kText, "value: \"200\" }", "value: \"200\" } launch { name: \"rows\" value: \"1\" }")),
              ElementsAre("e.textproto:11: domain[0].layer[0].launch[\"rows\"]: parameter rows is set twice"));
}

TEST(ExperimentConfigText, RefusesWhatTheFormatCannotHold) {
  const std::pair<std::string, std::string> kCases[] = {
      {Replace(kText, "ramp: 500", "rampe: 500"), "e.textproto:17:12: "},
      {Replace(kText, "ramp: 500", "ramp: many"), "e.textproto:17:13: "},
      {Replace(kText, "ramp: 500", "ramp: 1e30"), "e.textproto:17:13: "},
      {Replace(kText, "ramp: 500", "ramp: 500 ramp: 600"), "e.textproto:17:"},
      {Replace(kText, "state: RUNNING", "state: GOING"), "e.textproto:15:7: Unknown enumeration value"},
      {std::string(kText) + "}", "e.textproto:27:1: "},
      {Replace(kText, "count: 10000 }", "count: 10000"), "e.textproto:"},
      {std::string(1'100'000, '#'), "e.textproto:1: 1100000 bytes, at most 1048576"},
      {std::string("\xff\xfe\x00", 3), "e.textproto:1:"},
  };
  for (const auto& [text, error] : kCases) {
    const auto parsed = ParseExperimentConfig(text, "e.textproto");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << error;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(error));
  }
}

// R24 with lines: every invalid configuration, written as text, is refused with path, line and reason, and the line is
// within what is wrong.
TEST(ExperimentConfigText, InvalidConfigurationsAreRefusedWithTheirLine) {
  ExperimentAssigner assigner(&TestRegistry());
  const auto good = ParseExperimentConfig(FormatExperimentConfig(BaseConfig()), "good");
  ASSERT_TRUE(assigner.Apply(good->config).ok());
  for (const InvalidConfig& invalid : InvalidConfigs::All()) {
    const std::string text = FormatExperimentConfig(invalid.config);
    const auto parsed = ParseExperimentConfig(text, "bad");
    ASSERT_TRUE(parsed.ok()) << invalid.name << ": " << parsed.status();
    const std::vector<ConfigProblem> problems = LintConfig(parsed->config, TestRegistry());
    const auto found = std::ranges::find(problems, invalid.path, &ConfigProblem::path);
    ASSERT_NE(found, problems.end()) << invalid.name;
    const std::string located = Located(*parsed, *found);
    int line = 0;
    ASSERT_EQ(std::sscanf(located.c_str(), "bad:%d: ", &line), 1) << located;
    EXPECT_GE(line, 1) << located;
    EXPECT_LE(line, 1 + std::ranges::count(text, '\n')) << located;
    EXPECT_THAT(located, HasSubstr(invalid.path)) << invalid.name;
    EXPECT_FALSE(assigner.Apply(parsed->config).ok()) << invalid.name;
  }
  EXPECT_EQ(assigner.plan()->config(), good->config);
}

}  // namespace
}  // namespace backstory::rpc
