#include "serving/cli/check_command.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "models/glass/loader.h"
#include "models/grab/loader.h"
#include "serving/cli/config_flags.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/serving_stack.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;

struct Options {
  ConfigFlags flags;
  bool json = false;
};

struct Problem {
  std::string where, what;
  int exit_code;
};

constexpr char kExamples[] = R"(Examples:
  backstory check --config server.textproto
  backstory check --store /data/store --models models/zoo --json
Looks at the configuration, every model version (checksums, shapes, goldens) and the store's integrity record, and changes
nothing. Prints every problem; exit code 0, 3 (configuration) or 4 (data).)";

void CheckModels(const std::string& root, std::vector<Problem>* problems, std::vector<std::string>* good) {
  std::error_code error;
  if (!fs::is_directory(root, error)) {
    problems->push_back({"models.directory", absl::StrCat("is not a directory: ", root), kExitConfig});
    return;
  }
  std::vector<fs::path> versions;
  for (const auto& model : fs::directory_iterator(root, error)) {
    if (!model.is_directory()) continue;
    for (const auto& version : fs::directory_iterator(model.path(), error)) {
      if (version.is_directory() && version.path().filename().string()[0] != '.') versions.push_back(version.path());
    }
  }
  std::sort(versions.begin(), versions.end());
  for (const fs::path& version : versions) {
    const std::string name = version.parent_path().filename().string();
    const absl::Status status = glass::IsGlassVersion(version.string())
                                    ? glass::LoadGlassVersion(version.string(), {.expected_name = name}).status()
                                    : grab::LoadGrabVersion(version.string(), {.expected_name = name}).status();
    if (status.ok()) {
      good->push_back(version.string());
    } else {
      problems->push_back({version.string(), std::string(status.message()), kExitDamaged});
    }
  }
}

void CheckStore(const rpc::ServerConfig& config, std::vector<Problem>* problems) {
  StoreOptions options = StoreOptionsOf(config);
  std::error_code error;
  if (options.create_if_missing && (!fs::exists(options.directory, error) || fs::is_empty(options.directory, error))) {
    return;
  }
  options.create_if_missing = false;
  options.read_only = true;
  auto store = OpenStore(options);
  if (!store.ok()) {
    const bool damaged = store.status().code() == absl::StatusCode::kDataLoss;
    problems->push_back({"store " + options.directory, std::string(store.status().message()),
                         damaged ? kExitDamaged : kExitConfig});
  }
}

void Check(const Options& options) {
  rpc::ServerConfig config;
  std::vector<Problem> problems;
  std::vector<std::string> good;
  if (auto s = options.flags.Build(&config); !s.ok()) {
    problems.push_back({"configuration", std::string(s.message()), kExitConfig});
    rpc::FillDefaults(&config);
  }
  for (std::string& text : rpc::ConfigProblems(config)) problems.push_back({"configuration", std::move(text), kExitConfig});
  if (!config.models().directory().empty()) CheckModels(config.models().directory(), &problems, &good);
  if (!config.store().directory().empty()) CheckStore(config, &problems);
  int exit_code = kExitOk;
  for (const Problem& problem : problems) exit_code = std::max(exit_code, problem.exit_code);
  if (options.json) {
    nlohmann::ordered_json out;
    out["ok"] = problems.empty();
    out["problems"] = nlohmann::ordered_json::array();
    for (const Problem& problem : problems) out["problems"].push_back({{"where", problem.where}, {"what", problem.what}});
    out["versions"] = good;
    std::cout << out.dump() << "\n";
  } else {
    for (const std::string& version : good) std::cout << "ok       " << version << "\n";
    for (const Problem& problem : problems) std::cout << "problem  " << problem.where << ": " << problem.what << "\n";
    std::cout << problems.size() << " problems\n";
  }
  if (exit_code != kExitOk) throw CLI::RuntimeError(exit_code);
}

}  // namespace

void AddCheckCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("check", "Find every problem a server would meet, without serving");
  command->footer(kExamples);
  options->flags.AddTo(command);
  command->add_flag("--json", options->json, "Print as JSON");
  command->callback([options] { Check(*options); });
}

}  // namespace backstory
