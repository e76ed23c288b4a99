#include "serving/rpc/build_info.h"

namespace backstory {

const std::string_view kBuildVersion = BACKSTORY_VERSION;
const std::string_view kBuildType = BACKSTORY_BUILD_TYPE;
const std::string_view kBuildCompiler = BACKSTORY_COMPILER;

}  // namespace backstory
