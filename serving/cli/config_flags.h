// The server's configuration as flags over a file: shared by `serve` and `check`.
#ifndef BACKSTORY_SERVING_CLI_CONFIG_FLAGS_H_
#define BACKSTORY_SERVING_CLI_CONFIG_FLAGS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "serving/rpc/server_config.h"

namespace CLI {
class App;
}

namespace backstory {

struct ConfigFlags {
  std::string config_file;
  std::string store, models, host, admin_host, metrics_host, admin_roles, checkpoint_dir, default_model, log_level,
      log_file;
  std::string tls_cert, tls_key, tls_client_ca;
  std::string experiments, exposure_log, unit_key_file;
  std::optional<uint32_t> port, admin_port, metrics_port, drain_grace_s;
  std::string device;
  std::vector<std::string> parameters;  // name=value
  std::vector<std::string> slots;       // first-last[=owner]
  bool create_store = false, reflection = false;

  // `this` must outlive the parse.
  void AddTo(CLI::App* command);
  // File, then flags, then defaults.
  absl::Status Build(rpc::ServerConfig* config) const;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_CONFIG_FLAGS_H_
