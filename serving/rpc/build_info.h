// What was built. Values come from CMake.
#ifndef BACKSTORY_SERVING_RPC_BUILD_INFO_H_
#define BACKSTORY_SERVING_RPC_BUILD_INFO_H_

#include <string_view>

namespace backstory {

extern const std::string_view kBuildVersion;   // "0.1.0"
extern const std::string_view kBuildType;      // "Release"
extern const std::string_view kBuildCompiler;  // "GNU 12.2.0"

}  // namespace backstory

#endif  // BACKSTORY_SERVING_RPC_BUILD_INFO_H_
