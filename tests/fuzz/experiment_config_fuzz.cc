// Arbitrary bytes as an experiment configuration: parsed or refused, written and read back as the same, linted against
// itself and against one that runs, and if nothing is wrong with it, served.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "serving/engine/experiments/assigner.h"
#include "serving/engine/experiments/plan.h"
#include "serving/rpc/experiment_config_text.h"
#include "tests/serving/experiments/test_config.h"

namespace {

using backstory::ConfigProblem;
using backstory::ExperimentConfig;
using backstory::rpc::ExperimentConfigText;

void Require(bool truth) {
  if (!truth) std::abort();
}

// One that runs, so that a change to it is checked as well.
const backstory::ExperimentAssigner& Active() {
  static const backstory::ExperimentAssigner* const active = [] {
    auto* assigner = new backstory::ExperimentAssigner(&backstory::TestRegistry());
    Require(assigner->Apply(backstory::BaseConfig()).ok());
    return assigner;
  }();
  return *active;
}

void CheckRoundTrip(const ExperimentConfigText& parsed) {
  const auto again = backstory::rpc::ParseExperimentConfig(backstory::rpc::FormatExperimentConfig(parsed.config), "again");
  // Escapes may make the written form longer than a configuration may be.
  if (!again.ok()) return Require(again.status().message().find("bytes, at most") != absl::string_view::npos);
  ExperimentConfig config = again->config;
  config.version = parsed.config.version;  // of the text: settings that were out of order are in order now
  Require(config == parsed.config);
}

void Serve(const ExperimentConfig& config) {
  const auto plan = backstory::ExperimentPlan::Compile(config, backstory::TestRegistry());
  Require(plan.ok());
  for (const char* user : {"", "ann", "tester-1"}) {
    const backstory::Units units{user, "phone-1", ""};
    const auto assignment = (*plan)->Assign("shop", "home", units, {});
    Require(assignment.config_version == config.version);
    Require(!(*plan)->Explain("shop", "home", units, {}).empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto parsed = backstory::rpc::ParseExperimentConfig(text, "fuzz");
  if (!parsed.ok()) {
    Require(parsed.status().code() == absl::StatusCode::kInvalidArgument);
    Require(parsed.status().message().substr(0, 5) == "fuzz:");
    return 0;
  }
  if (parsed->problems.empty()) CheckRoundTrip(*parsed);
  for (const ConfigProblem& problem : parsed->problems) Require(Located(*parsed, problem).starts_with("fuzz:"));
  for (const ConfigProblem& problem : Active().Validate(parsed->config)) {
    Require(Located(*parsed, problem).starts_with("fuzz:"));
  }
  if (LintConfig(parsed->config, backstory::TestRegistry()).empty()) Serve(parsed->config);
  return 0;
}
