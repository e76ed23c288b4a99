// The server's configuration: text file, defaults, and every problem in it. The schema is config/v1/server.proto.
#ifndef BACKSTORY_SERVING_RPC_SERVER_CONFIG_H_
#define BACKSTORY_SERVING_RPC_SERVER_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "backstory/config/v1/server.pb.h"

namespace backstory::rpc {

using ServerConfig = config::v1::ServerConfig;

// INVALID_ARGUMENT "path:line:column: reason" for anything that is not exactly the schema; NOT_FOUND if unreadable.
absl::Status ReadServerConfig(const std::string& path, ServerConfig* config);

// Puts the documented default wherever nothing is set, so that what is printed is what runs.
void FillDefaults(ServerConfig* config);

// Every problem of a filled configuration, each naming the field and the limit; empty = it can run. Looks at values and
// at whether files it names can be read, not into store or models.
std::vector<std::string> ConfigProblems(const ServerConfig& config);

// The configuration as text, secrets left out.
std::string ConfigText(const ServerConfig& config);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_SERVER_CONFIG_H_
