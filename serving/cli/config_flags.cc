#include "serving/cli/config_flags.h"

#include <charconv>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// "0-8191" or "8192-16383=other"
absl::Status AddSlots(const std::string& text, rpc::ServerConfig* config) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat("--slots must be FIRST-LAST or FIRST-LAST=OWNER, is ", text));
  };
  uint32_t first = 0, last = 0;
  const char* end = text.data() + text.size();
  auto [dash, error] = std::from_chars(text.data(), end, first);
  if (error != std::errc() || dash == end || *dash != '-') return bad();
  auto [rest, error2] = std::from_chars(dash + 1, end, last);
  if (error2 != std::errc() || (rest != end && *rest != '=')) return bad();
  auto* range = config->mutable_store()->add_slots();
  range->set_first(first);
  range->set_last(last);
  if (rest != end) range->set_owner(std::string(rest + 1, end));
  return absl::OkStatus();
}

void SetText(const std::string& flag, std::string* field) {
  if (!flag.empty()) *field = flag;
}

}  // namespace

void ConfigFlags::AddTo(CLI::App* command) {
  command->add_option("--config", config_file,
                      "Text-format file of backstory.config.v1.ServerConfig; flags win over it");
  command->add_option("--store", store, "Directory of the store");
  command->add_flag("--create-store", create_store, "Make a new store if the directory is absent or empty");
  command->add_option("--models", models, "Model repository: <dir>/<model>/<version>/");
  command->add_option("--default-model", default_model, "Model of requests that name none");
  command->add_option("--host", host, "Address to listen on [127.0.0.1]");
  command->add_option("--port", port, "Port [7070]; 0 = any free one");
  command->add_option("--admin-host", admin_host, "Address of the admin port [127.0.0.1]");
  command->add_option("--admin-port", admin_port, "Admin port [0 = any free one]");
  command->add_option("--admin-roles", admin_roles, "Roles file: who may call what");
  command->add_option("--metrics-host", metrics_host, "Address of the Prometheus endpoint [127.0.0.1]");
  command->add_option("--metrics-port", metrics_port, "Prometheus port [0 = any free one]");
  command->add_option("--tls-cert", tls_cert, "PEM certificate chain; watched, replaced without a restart");
  command->add_option("--tls-key", tls_key, "PEM key");
  command->add_option("--tls-client-ca", tls_client_ca, "PEM CA; set: client certificates are required");
  command->add_option("--slots", slots, "Slots served here, FIRST-LAST, or those of another, FIRST-LAST=OWNER");
  command->add_option("--checkpoint-dir", checkpoint_dir, "Where the admin method Store.Checkpoint may write");
  command->add_option("--drain-grace-s", drain_grace_s, "How long a drain waits for accepted calls [20]");
  command->add_option("--device", device, "What scores: auto, cpu or cuda:N [auto]; the parameter device");
  command->add_option("-p,--parameter", parameters, "Launch value of a parameter, name=value; may be repeated");
  command->add_option("--experiments", experiments, "Experiment configuration; watched, replaced without a restart");
  command->add_option("--exposure-log", exposure_log, "Directory of the exposure log");
  command->add_option("--unit-key-file", unit_key_file, "Key of the unit hashes in the exposure log (first line)");
  command->add_flag("--reflection", reflection, "Offer gRPC reflection");
  command->add_option("--log-level", log_level, "debug, info, warning, error [info]");
  command->add_option("--log-file", log_file, "Log file [standard error]");
}

absl::Status ConfigFlags::Build(rpc::ServerConfig* config) const {
  if (!config_file.empty()) {
    if (auto s = rpc::ReadServerConfig(config_file, config); !s.ok()) return s;
  }
  SetText(store, config->mutable_store()->mutable_directory());
  SetText(checkpoint_dir, config->mutable_store()->mutable_checkpoint_dir());
  if (create_store) config->mutable_store()->set_create_if_missing(true);
  SetText(models, config->mutable_models()->mutable_directory());
  SetText(default_model, config->mutable_models()->mutable_default_model());
  SetText(host, config->mutable_listen()->mutable_host());
  SetText(admin_host, config->mutable_admin()->mutable_host());
  SetText(admin_roles, config->mutable_admin()->mutable_roles_file());
  SetText(metrics_host, config->mutable_metrics()->mutable_host());
  SetText(log_level, config->mutable_log()->mutable_level());
  SetText(log_file, config->mutable_log()->mutable_file());
  if (!experiments.empty()) config->mutable_experiments()->set_file(experiments);
  if (!exposure_log.empty()) config->mutable_experiments()->set_exposure_dir(exposure_log);
  if (!unit_key_file.empty()) config->mutable_experiments()->set_unit_key_file(unit_key_file);
  if (port) config->mutable_listen()->set_port(*port);
  if (admin_port) config->mutable_admin()->set_port(*admin_port);
  if (metrics_port) config->mutable_metrics()->set_port(*metrics_port);
  if (drain_grace_s) config->mutable_limits()->set_drain_grace_s(*drain_grace_s);
  if (!tls_cert.empty()) config->mutable_tls()->set_certificate_file(tls_cert);
  if (!tls_key.empty()) config->mutable_tls()->set_key_file(tls_key);
  if (!tls_client_ca.empty()) config->mutable_tls()->set_client_ca_file(tls_client_ca);
  if (reflection) config->set_reflection(true);
  for (const std::string& text : slots) {
    if (auto s = AddSlots(text, config); !s.ok()) return s;
  }
  for (const std::string& text : parameters) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("--parameter must be name=value, is ", text));
    }
    (*config->mutable_parameters())[text.substr(0, equals)] = text.substr(equals + 1);
  }
  if (!device.empty()) (*config->mutable_parameters())["device"] = device;
  rpc::FillDefaults(config);
  return absl::OkStatus();
}

}  // namespace backstory
