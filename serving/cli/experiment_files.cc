#include "serving/cli/experiment_files.h"

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "serving/cli/exit_codes.h"
#include "serving/engine/experiments/lint.h"
#include "serving/rpc/experiment_config_text.h"

namespace backstory {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) FailCommand(kExitFailed, absl::StrCat("cannot read ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

struct Checked {
  rpc::ExperimentConfigText text;
  std::vector<std::string> problems;
};

Checked Check(const std::string& file, const std::string& active) {
  Checked checked;
  auto parsed = rpc::ParseExperimentConfig(ReadText(file), file);
  if (!parsed.ok()) {
    checked.problems.emplace_back(parsed.status().message());
    return checked;
  }
  checked.text = *std::move(parsed);
  std::vector<ConfigProblem> problems = checked.text.problems;
  for (auto& problem : LintConfig(checked.text.config, ParameterRegistry::Builtin())) problems.push_back(std::move(problem));
  if (!active.empty()) {
    const auto old = rpc::ParseExperimentConfig(ReadText(active), active);
    if (!old.ok()) FailCommand(kExitConfig, std::string(old.status().message()));
    for (auto& problem : LintChange(old->config, checked.text.config)) problems.push_back(std::move(problem));
  }
  for (const ConfigProblem& problem : problems) checked.problems.push_back(rpc::Located(checked.text, problem));
  return checked;
}

}  // namespace

std::vector<std::string> ExperimentProblems(const std::string& file, const std::string& active) {
  return Check(file, active).problems;
}

std::shared_ptr<const ExperimentPlan> LoadExperimentPlan(const std::string& file) {
  Checked checked = Check(file, "");
  for (const std::string& problem : checked.problems) std::cerr << problem << "\n";
  if (!checked.problems.empty()) FailCommand(kExitConfig, absl::StrCat(file, " is not valid"));
  auto plan = ExperimentPlan::Compile(std::move(checked.text.config), ParameterRegistry::Builtin());
  CheckOk(plan.status());
  return *plan;
}

const ExperimentSpec& FindExperiment(const ExperimentPlan& plan, const std::string& name) {
  for (const DomainConfig& domain : plan.config().domains) {
    for (const LayerConfig& layer : domain.layers) {
      for (const ExperimentSpec& experiment : layer.experiments) {
        if (experiment.name == name) return experiment;
      }
    }
  }
  FailCommand(kExitUsage, absl::StrCat("the configuration has no experiment \"", name, "\""));
}

std::string ReadKeyFile(const std::string& path) {
  if (path.empty()) return "";
  std::istringstream text(ReadText(path));
  std::string key;
  std::getline(text, key);
  if (key.empty()) FailCommand(kExitUsage, absl::StrCat("--key-file ", path, ": its first line is empty"));
  return key;
}

FeatureMap ParseFeatures(const std::vector<std::string>& texts) {
  FeatureMap features;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos) FailCommand(kExitUsage, "--feature " + text + ": want name=value");
    FeatureValue value;
    value.text = text.substr(equals + 1);
    value.is_number = absl::SimpleAtod(value.text, &value.number) && std::isfinite(value.number);
    if (value.is_number) value.text.clear();
    features[text.substr(0, equals)] = value;
  }
  return features;
}

void PrintReadReport(const std::string& what, const ReadReport& report) {
  for (const std::string& problem : report.problems) std::cerr << problem << "\n";
  std::cerr << what << ": " << report.lines << " lines";
  if (report.bad > 0) std::cerr << ", " << report.bad << " bad";
  if (report.torn > 0) std::cerr << ", " << report.torn << " torn";
  if (report.dropped > 0) std::cerr << ", the server dropped " << report.dropped;
  std::cerr << "\n";
}

}  // namespace backstory
