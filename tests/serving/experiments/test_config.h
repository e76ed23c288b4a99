// A configuration that uses everything, and a registry with a parameter of every type, for the tests of this folder.
#ifndef BACKSTORY_TESTS_SERVING_EXPERIMENTS_TEST_CONFIG_H_
#define BACKSTORY_TESTS_SERVING_EXPERIMENTS_TEST_CONFIG_H_

#include <string>
#include <vector>

#include "serving/engine/experiments/config.h"
#include "serving/engine/parameters.h"

namespace backstory {

inline const ParameterRegistry& TestRegistry() {
  static const ParameterRegistry registry([] {
    std::vector<ParameterSpec> specs = {
        {"rows", ParameterScope::kRequest, int64_t{100}, 0, 1000, 0, ""},
        {"blend", ParameterScope::kRequest, 0.5, 0, 1, 0, ""},
        {"fancy", ParameterScope::kRequest, false, 0, 0, 0, ""},
        {"model_version", ParameterScope::kRequest, std::string(), 0, 0, 16, ""},
        {"state_rows", ParameterScope::kState, int64_t{4096}, 1, 65536, 0, ""},
        {"threads", ParameterScope::kProcess, int64_t{1}, 1, 64, 0, ""},
    };
    for (int i = 0; i < 10; ++i) {
      specs.push_back({"knob_" + std::to_string(i), ParameterScope::kRequest, int64_t{0}, 0, 1000, 0, ""});
    }
    return specs;
  }());
  return registry;
}

// Domain "main" (90 %): layer "length" owns rows and blend (experiments "longer" and "blended"), layer "model" owns
// model_version and state_rows (experiment "swap", by device). Domain "quiet" (5 %): layer "alone" owns rows (experiment
// "deep"). 2 % are held out. tester-1 is forced into longer/treatment.
inline ExperimentConfig BaseConfig() {
  ExperimentConfig config;
  config.version = "v1";
  config.holdout = {"holdout-1", UnitKind::kUser, {{0, 200}}};
  config.domain_salt = "domains-1";
  ExperimentSpec longer{"longer", ExperimentState::kRunning, "longer-1", "scene == 'home'", {{0, 4000}}, 2000,
                        {{"control", 5000, {}}, {"treatment", 5000, {{"rows", "800"}}}}};
  ExperimentSpec blended{"blended", ExperimentState::kRunning, "", "", {{4000, 1000}, {9000, 1000}}, 1500,
                         {{"low", 2000, {{"blend", "0.1"}}}, {"mid", 3000, {{"blend", "0.5"}}}, {"high", 5000, {{"blend", "0.9"}}}}};
  ExperimentSpec swap{"swap", ExperimentState::kRunning, "", "features.tier in ['gold', 'silver'] or not has(features.tier)",
                      {{0, 10000}}, 10000,
                      {{"old", 9000, {{"model_version", "7"}}}, {"new", 1000, {{"model_version", "8"}, {"state_rows", "8192"}}}}};
  ExperimentSpec deep{"deep", ExperimentState::kDraft, "", "", {{0, 10000}}, 0,
                      {{"shallow", 5000, {{"rows", "10"}}}, {"deep", 5000, {{"rows", "1000"}}}}};
  config.domains.push_back(
      {"main",
       {{0, 9000}},
       {{"length", "length-1", UnitKind::kUser, {"rows", "blend"}, {{"rows", "200"}}, {longer, blended}},
        {"model", "", UnitKind::kDevice, {"model_version", "state_rows"}, {}, {swap}}}});
  config.domains.push_back({"quiet", {{9000, 500}}, {{"alone", "", UnitKind::kUser, {"rows"}, {}, {deep}}}});
  config.overrides.push_back({UnitKind::kUser, "tester-1", "longer", "treatment"});
  return config;
}

// `layers` layers of one fully ramped two-armed experiment each, knob_<i> = 1 or 2.
inline ExperimentConfig Layers(int layers) {
  ExperimentConfig config;
  config.version = "layers";
  DomainConfig domain{"all", {{0, 10000}}, {}};
  for (int i = 0; i < layers; ++i) {
    const std::string n = std::to_string(i), knob = "knob_" + n;
    ExperimentSpec experiment{"e" + n, ExperimentState::kRunning, "", "", {{0, 10000}}, 10000,
                              {{"a", 5000, {{knob, "1"}}}, {"b", 5000, {{knob, "2"}}}}};
    domain.layers.push_back({"l" + n, "", UnitKind::kUser, {knob}, {}, {experiment}});
  }
  config.domains.push_back(domain);
  return config;
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SERVING_EXPERIMENTS_TEST_CONFIG_H_
