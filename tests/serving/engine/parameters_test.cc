#include "serving/engine/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace backstory {
namespace {

using ::testing::HasSubstr;

TEST(ParametersTest, EverySpecHasALegalDefaultAndADescription) {
  const ParameterRegistry& registry = ParameterRegistry::Builtin();
  ASSERT_FALSE(registry.specs().empty());
  for (const ParameterSpec& spec : registry.specs()) {
    EXPECT_EQ(spec.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos) << spec.name;
    EXPECT_GE(spec.description.size(), 20u) << spec.name;
    const auto parsed = registry.Parse(spec.name, ToText(spec.default_value));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, spec.default_value) << spec.name;
  }
}

// docs/reference/parameters.md has one row per parameter, with its scope and default.
TEST(ParametersTest, TheReferencePageAgrees) {
  const char* source = std::getenv("BACKSTORY_SOURCE_DIR");
  std::ifstream file(std::string(source == nullptr ? "." : source) + "/docs/reference/parameters.md");
  ASSERT_TRUE(file) << "docs/reference/parameters.md";
  std::stringstream page;
  page << file.rdbuf();
  size_t rows = 0;
  for (std::string line; std::getline(page, line);) rows += line.starts_with("| `") ? 1 : 0;
  EXPECT_EQ(rows, ParameterRegistry::Builtin().specs().size());
  for (const ParameterSpec& spec : ParameterRegistry::Builtin().specs()) {
    const std::string text = ToText(spec.default_value);
    EXPECT_THAT(page.str(), HasSubstr("| `" + spec.name + "` | " + std::string(ScopeName(spec.scope)) + " | " +
                                      (text.empty() ? "empty" : text) + " | "));
    EXPECT_THAT(page.str(), HasSubstr("| " + spec.description + " |"));
  }
}

TEST(ParametersTest, BothSidesOfEveryNumericBound) {
  const ParameterRegistry& registry = ParameterRegistry::Builtin();
  for (const ParameterSpec& spec : registry.specs()) {
    if (!std::holds_alternative<int64_t>(spec.default_value)) continue;
    const auto low = static_cast<int64_t>(spec.min), high = static_cast<int64_t>(spec.max);
    EXPECT_TRUE(registry.Parse(spec.name, std::to_string(low)).ok()) << spec.name;
    EXPECT_TRUE(registry.Parse(spec.name, std::to_string(high)).ok()) << spec.name;
    for (const int64_t beyond : {low - 1, high + 1}) {
      const auto parsed = registry.Parse(spec.name, std::to_string(beyond));
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << spec.name;
      EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(spec.name));
      EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(std::to_string(high)));
    }
  }
}

TEST(ParametersTest, WrongTextNamesParameterAndType) {
  const ParameterRegistry& registry = ParameterRegistry::Builtin();
  for (const char* text : {"", "x", "1x", "1.5", " 1", "99999999999999999999", "nan"}) {
    EXPECT_THAT(std::string(registry.Parse("history_rows", text).status().message()),
                HasSubstr("parameter history_rows"))
        << text;
  }
  for (const char* text : {"", "nan", "inf", "1.1", "-0.1"}) {
    EXPECT_FALSE(registry.Parse("degrade_queue_fill", text).ok()) << text;
  }
  EXPECT_FALSE(registry.Parse("concurrency_adaptive", "yes").ok());
  EXPECT_TRUE(registry.Parse("model_version", std::string(64, 'a')).ok());
  EXPECT_FALSE(registry.Parse("model_version", std::string(65, 'a')).ok());
  EXPECT_TRUE(registry.Parse("precision", "bf16").ok());
  for (const char* text : {"", "fp16", "BF16", "bf16 "}) {
    EXPECT_THAT(std::string(registry.Parse("precision", text).status().message()),
                HasSubstr(std::string("parameter precision: \"") + text + "\" is not f32 or bf16"));
  }
}

TEST(ParametersTest, AnUnknownNameIsNotFoundWithTheNearestOne) {
  const absl::Status status = ParameterSet().Set("histroy_rows", "1", ParameterSource::kServer);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("did you mean history_rows?"));
  EXPECT_EQ(ParameterSet().Set(std::string(100000, 'x'), "1", ParameterSource::kServer).code(),
            absl::StatusCode::kNotFound);
}

TEST(ParametersTest, ScopesSayWhoMaySet) {
  struct {
    const char* name;
    ParameterSource source;
    bool allowed;
  } const cases[] = {
      {"history_rows", ParameterSource::kRequest, true},
      {"history_rows", ParameterSource::kExperiment, true},
      {"history_rows", ParameterSource::kServer, true},
      {"state_events_max", ParameterSource::kRequest, false},
      {"state_events_max", ParameterSource::kExperiment, true},
      {"state_events_max", ParameterSource::kServer, true},
      {"threads", ParameterSource::kRequest, false},
      {"threads", ParameterSource::kExperiment, false},
      {"threads", ParameterSource::kServer, true},
  };
  for (const auto& c : cases) {
    const absl::Status status = ParameterSet().Set(c.name, c.name == std::string("threads") ? "4" : "5000", c.source);
    EXPECT_EQ(status.ok(), c.allowed) << c.name << " by " << SourceName(c.source) << ": " << status;
  }
}

TEST(ParametersTest, StrongerSourcesWinWhateverTheOrder) {
  ParameterSet set;
  ASSERT_TRUE(set.Set("history_rows", "30", ParameterSource::kRequest).ok());
  ASSERT_TRUE(set.Set("history_rows", "20", ParameterSource::kExperiment).ok());
  ASSERT_TRUE(set.Set("history_rows", "10", ParameterSource::kServer).ok());
  EXPECT_EQ(set.Int("history_rows"), 30);
  EXPECT_EQ(set.Source("history_rows"), ParameterSource::kRequest);
}

TEST(ParametersTest, DegradingOnlyLowers) {
  ParameterSet set;
  ASSERT_TRUE(set.Set("history_rows", "100", ParameterSource::kRequest).ok());
  set.Lower("history_rows", 512);
  EXPECT_EQ(set.Int("history_rows"), 100);
  EXPECT_EQ(set.Source("history_rows"), ParameterSource::kRequest);
  set.Lower("history_rows", 50);
  EXPECT_EQ(set.Int("history_rows"), 50);
  EXPECT_EQ(set.Source("history_rows"), ParameterSource::kDegrade);
}

TEST(ParametersTest, TheStateHashSeesStateParametersAndNothingElse) {
  ParameterSet a, b;
  ASSERT_TRUE(b.Set("history_rows", "5", ParameterSource::kServer).ok());
  EXPECT_EQ(a.StateHash(), b.StateHash());
  ASSERT_TRUE(b.Set("state_events_max", "4096", ParameterSource::kServer).ok());
  EXPECT_NE(a.StateHash(), b.StateHash());
  ASSERT_TRUE(a.Set("state_events_max", "4096", ParameterSource::kExperiment).ok());
  EXPECT_EQ(a.StateHash(), b.StateHash());
}

TEST(ParametersTest, ReportsWhatARequestCouldFeel) {
  ParameterSet set;
  ASSERT_TRUE(set.Set("history_rows", "7", ParameterSource::kExperiment).ok());
  const std::vector<EffectiveParameter> report = set.Report();
  EXPECT_THAT(report, ::testing::Contains(EffectiveParameter{"history_rows", "7", "experiment"}));
  for (const EffectiveParameter& parameter : report) EXPECT_NE(parameter.name, "threads");
  EXPECT_EQ(set.ReportAll().size(), ParameterRegistry::Builtin().specs().size());
}

}  // namespace
}  // namespace backstory
