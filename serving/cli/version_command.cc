#include "serving/cli/version_command.h"

#include <grpcpp/grpcpp.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "CLI/CLI.hpp"
#include "hwy/targets.h"
#include "serving/rpc/build_info.h"

namespace backstory {
namespace {

// The vector targets this machine can run, best first, as Highway names them.
std::vector<std::string> CpuTargets() {
  std::vector<std::string> names;
  for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
    names.push_back(hwy::TargetName(rest & -rest));
  }
  return names;
}

void Version(bool json) {
  nlohmann::ordered_json out;
  out["version"] = std::string(kBuildVersion);
  out["build"] = std::string(kBuildType);
  out["compiler"] = std::string(kBuildCompiler);
  out["grpc"] = grpc::Version();
  out["cpu_targets"] = CpuTargets();
  if (json) {
    std::cout << out.dump() << "\n";
    return;
  }
  std::cout << "backstory " << kBuildVersion << " (" << kBuildType << ", " << kBuildCompiler << ", gRPC "
            << grpc::Version() << ")\ncpu targets:";
  for (const std::string& name : CpuTargets()) std::cout << " " << name;
  std::cout << "\n";
}

}  // namespace

void AddVersionCommand(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("version", "What was built, and what this machine's CPU offers");
  command->footer("Examples:\n  backstory version\n  backstory version --json");
  command->add_flag("--json", *json, "Print as JSON");
  command->callback([json] { Version(*json); });
}

}  // namespace backstory
