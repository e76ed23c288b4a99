#include "serving/cli/machine.h"

#include <fstream>
#include <thread>

#include "serving/rpc/build_info.h"

namespace backstory {

std::string MachineLine() {
  std::string model = "unknown CPU";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) model = line.substr(colon + 2);
    break;
  }
  return model + ", " + std::to_string(std::thread::hardware_concurrency()) + " cores, backstory " +
         std::string(kBuildVersion) + " " + std::string(kBuildType);
}

}  // namespace backstory
