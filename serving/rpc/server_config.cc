#include "serving/rpc/server_config.h"

#include <google/protobuf/text_format.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "models/text_proto.h"
#include "serving/engine/parameters.h"
#include "serving/rpc/roles.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

template <typename Message, typename Value>
void Default(Message* message, Value (Message::*get)() const, void (Message::*set)(Value), Value value) {
  if ((message->*get)() == Value{}) (message->*set)(value);
}

void DefaultText(std::string* field, std::string_view value) {
  if (field->empty()) *field = std::string(value);
}

// Collects what is wrong.
class Problems {
 public:
  void Add(std::string_view field, std::string_view reason) {
    list_.push_back(absl::StrCat(absl::string_view(field.data(), field.size()), " ",
                                 absl::string_view(reason.data(), reason.size())));
  }
  void Range(std::string_view field, uint64_t value, uint64_t min, uint64_t max) {
    if (value < min || value > max) Add(field, absl::StrCat("must be ", min, "..", max, ", is ", value));
  }
  void Readable(std::string_view field, const std::string& path) {
    if (!path.empty() && !std::ifstream(path)) Add(field, absl::StrCat("cannot be read: ", path));
  }
  std::vector<std::string> Take() { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

void CheckLimits(const config::v1::Limits& limits, Problems* problems) {
  constexpr uint64_t kConnectionSecondsMax = std::numeric_limits<int>::max() / 1000;  // gRPC takes int milliseconds
  problems->Range("limits.max_message_bytes", limits.max_message_bytes(), 65'536, 1u << 30);
  problems->Range("limits.max_metadata_bytes", limits.max_metadata_bytes(), 1'024, 1u << 20);
  problems->Range("limits.max_concurrent_streams", limits.max_concurrent_streams(), 1, 100'000);
  problems->Range("limits.max_connection_age_s", limits.max_connection_age_s(), 1, kConnectionSecondsMax);
  problems->Range("limits.max_connection_idle_s", limits.max_connection_idle_s(), 1, kConnectionSecondsMax);
  problems->Range("limits.keepalive_s", limits.keepalive_s(), 1, 86'400);
  problems->Range("limits.default_deadline_ms", limits.default_deadline_ms(), 1, 3'600'000);
  problems->Range("limits.max_deadline_ms", limits.max_deadline_ms(), 1, 3'600'000);
  problems->Range("limits.drain_grace_s", limits.drain_grace_s(), 1, 3'600);
  problems->Range("limits.blocking_threads", limits.blocking_threads(), 1, 1'024);
  problems->Range("limits.max_memory_bytes", limits.max_memory_bytes(), 1u << 20, uint64_t{1} << 40);
  if (limits.default_deadline_ms() > limits.max_deadline_ms()) {
    problems->Add("limits.default_deadline_ms",
                  absl::StrCat("must be <= limits.max_deadline_ms (", limits.max_deadline_ms(), "), is ",
                               limits.default_deadline_ms()));
  }
}

void CheckStore(const config::v1::Store& store, Problems* problems) {
  if (store.directory().empty()) problems->Add("store.directory", "must be set (--store)");
  problems->Range("store.wal_flush_interval_ms", store.wal_flush_interval_ms(), 1, 10'000);
  problems->Range("store.background_threads", store.background_threads(), 1, 256);
  for (int i = 0; i < store.slots_size(); ++i) {
    const auto& range = store.slots(i);
    const std::string field = absl::StrCat("store.slots[", i, "]");
    problems->Range(field + ".first", range.first(), 0, kSlotCount - 1);
    problems->Range(field + ".last", range.last(), range.first(), kSlotCount - 1);
    for (int j = 0; j < i; ++j) {
      if (range.first() <= store.slots(j).last() && store.slots(j).first() <= range.last()) {
        problems->Add(field, absl::StrCat("overlaps store.slots[", j, "]"));
      }
    }
  }
}

void CheckTlsAndRoles(const ServerConfig& config, Problems* problems) {
  const auto& tls = config.tls();
  if (config.has_tls()) {
    if (tls.certificate_file().empty()) problems->Add("tls.certificate_file", "must be set when tls is");
    if (tls.key_file().empty()) problems->Add("tls.key_file", "must be set when tls is");
    problems->Range("tls.refresh_interval_s", tls.refresh_interval_s(), 1, 86'400);
    problems->Readable("tls.certificate_file", tls.certificate_file());
    problems->Readable("tls.key_file", tls.key_file());
    problems->Readable("tls.client_ca_file", tls.client_ca_file());
  }
  if (config.admin().roles_file().empty()) return;
  auto roles = RoleTable::Load(config.admin().roles_file());
  if (!roles.ok()) {
    problems->Add("admin.roles_file", std::string(roles.status().message()));
    return;
  }
  const auto loopback = [](const std::string& host) {
    return host == "127.0.0.1" || host == "::1" || host == "localhost";
  };
  if (roles->HasTokens() && !config.has_tls() &&
      !(loopback(config.admin().host()) && loopback(config.listen().host()))) {
    problems->Add("admin.roles_file",
                  "has bearer tokens, which must not travel in plaintext: set tls or listen on loopback");
  }
}

void CheckExperiments(const config::v1::ExperimentFiles& files, Problems* problems) {
  if (files.file().empty()) problems->Add("experiments.file", "must be set when experiments is");
  problems->Readable("experiments.file", files.file());
  if (files.exposure_dir().empty()) return;
  if (files.unit_key_file().empty()) problems->Add("experiments.unit_key_file", "must be set when exposure_dir is");
  problems->Readable("experiments.unit_key_file", files.unit_key_file());
}

void CheckQuotas(const ServerConfig& config, Problems* problems) {
  for (int i = 0; i < config.quotas_size(); ++i) {
    const auto& quota = config.quotas(i);
    const std::string field = absl::StrCat("quotas[", i, "]");
    if (auto ns = NamespaceFromWire(quota.namespace_()); !ns.ok()) {
      problems->Add(field + "." + std::string(ns.status().message()), "");
    }
    if (!std::isfinite(quota.requests_per_s()) || quota.requests_per_s() <= 0) {
      problems->Add(field + ".requests_per_s", "must be > 0");
    }
    if (!std::isfinite(quota.burst()) || quota.burst() < 0) problems->Add(field + ".burst", "must be >= 0");
    for (int j = 0; j < i; ++j) {
      if (config.quotas(j).namespace_() == quota.namespace_()) {
        problems->Add(field + ".namespace", absl::StrCat("\"", quota.namespace_(), "\" appears twice"));
      }
    }
  }
}

}  // namespace

absl::Status ReadServerConfig(const std::string& path, ServerConfig* config) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::stringstream text;
  text << file.rdbuf();
  return ParseTextProto(text.str(), path, config);
}

void FillDefaults(ServerConfig* config) {
  DefaultText(config->mutable_listen()->mutable_host(), "127.0.0.1");
  if (!config->listen().has_port()) config->mutable_listen()->set_port(7070);
  DefaultText(config->mutable_admin()->mutable_host(), "127.0.0.1");
  if (!config->admin().has_port()) config->mutable_admin()->set_port(0);
  DefaultText(config->mutable_metrics()->mutable_host(), "127.0.0.1");
  if (!config->metrics().has_port()) config->mutable_metrics()->set_port(0);
  if (config->has_tls() && config->tls().refresh_interval_s() == 0) config->mutable_tls()->set_refresh_interval_s(10);

  using config::v1::Limits;
  Limits* limits = config->mutable_limits();
  Default<Limits, uint32_t>(limits, &Limits::max_message_bytes, &Limits::set_max_message_bytes, 16u << 20);
  Default<Limits, uint32_t>(limits, &Limits::max_metadata_bytes, &Limits::set_max_metadata_bytes, 8'192);
  Default<Limits, uint32_t>(limits, &Limits::max_concurrent_streams, &Limits::set_max_concurrent_streams, 256);
  Default<Limits, uint32_t>(limits, &Limits::max_connection_age_s, &Limits::set_max_connection_age_s, 1'800);
  Default<Limits, uint32_t>(limits, &Limits::max_connection_idle_s, &Limits::set_max_connection_idle_s, 300);
  Default<Limits, uint32_t>(limits, &Limits::keepalive_s, &Limits::set_keepalive_s, 60);
  Default<Limits, uint32_t>(limits, &Limits::default_deadline_ms, &Limits::set_default_deadline_ms, 1'000);
  Default<Limits, uint32_t>(limits, &Limits::max_deadline_ms, &Limits::set_max_deadline_ms, 30'000);
  Default<Limits, uint32_t>(limits, &Limits::drain_grace_s, &Limits::set_drain_grace_s, 20);
  Default<Limits, uint32_t>(limits, &Limits::blocking_threads, &Limits::set_blocking_threads, 16);
  Default<Limits, uint64_t>(limits, &Limits::max_memory_bytes, &Limits::set_max_memory_bytes, uint64_t{512} << 20);

  using StoreConfig = config::v1::Store;
  StoreConfig* store = config->mutable_store();
  DefaultText(store->mutable_self(), "local");
  Default<StoreConfig, uint32_t>(store, &StoreConfig::wal_flush_interval_ms, &StoreConfig::set_wal_flush_interval_ms,
                                 100);
  Default<StoreConfig, uint64_t>(store, &StoreConfig::block_cache_bytes, &StoreConfig::set_block_cache_bytes,
                                 uint64_t{256} << 20);
  Default<StoreConfig, uint64_t>(store, &StoreConfig::writer_cache_bytes, &StoreConfig::set_writer_cache_bytes,
                                 uint64_t{256} << 20);
  Default<StoreConfig, uint32_t>(store, &StoreConfig::background_threads, &StoreConfig::set_background_threads, 2);
  for (auto& range : *store->mutable_slots()) DefaultText(range.mutable_owner(), store->self());
  if (config->has_request_log() && config->request_log().max_bytes() == 0) {
    config->mutable_request_log()->set_max_bytes(uint64_t{64} << 20);
  }
  DefaultText(config->mutable_log()->mutable_level(), "info");
}

std::vector<std::string> ConfigProblems(const ServerConfig& config) {
  Problems problems;
  CheckStore(config.store(), &problems);
  if (config.models().directory().empty()) problems.Add("models.directory", "must be set (--models)");
  problems.Range("listen.port", config.listen().port(), 0, 65'535);
  problems.Range("admin.port", config.admin().port(), 0, 65'535);
  problems.Range("metrics.port", config.metrics().port(), 0, 65'535);
  CheckTlsAndRoles(config, &problems);
  CheckLimits(config.limits(), &problems);
  CheckQuotas(config, &problems);
  if (config.has_experiments()) CheckExperiments(config.experiments(), &problems);
  if (config.has_shadow()) {
    if (config.shadow().version().empty()) problems.Add("shadow.version", "must name an immutable version");
    if (!(config.shadow().fraction() >= 0 && config.shadow().fraction() <= 1)) {
      problems.Add("shadow.fraction", "must be 0..1");
    }
  }
  ParameterSet parameters;
  for (const auto& [name, value] : config.parameters()) {
    if (auto s = parameters.Set(name, value, ParameterSource::kServer); !s.ok()) {
      problems.Add(absl::StrCat("parameters[\"", name, "\"]"), std::string(s.message()));
    }
  }
  const std::string& level = config.log().level();
  if (level != "debug" && level != "info" && level != "warning" && level != "error") {
    problems.Add("log.level", absl::StrCat("must be debug, info, warning or error, is \"", level, "\""));
  }
  return problems.Take();
}

std::string ConfigText(const ServerConfig& config) {
  ServerConfig shown = config;
  if (!shown.log().user_hash_key().empty()) shown.mutable_log()->set_user_hash_key("(set)");
  std::string text;
  google::protobuf::TextFormat::PrintToString(shown, &text);
  return text;
}

}  // namespace backstory::rpc
