#include "serving/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "serving/rpc/call.h"
#include "serving/rpc/experiments_service.h"
#include "serving/rpc/metrics_endpoint.h"

namespace backstory::rpc {
namespace {

constexpr std::chrono::milliseconds kShutdownFlush{500};  // replies already handed to gRPC leave within this

// Methods that do not exist: counted as "other", answered with the method's name.
class UnknownMethods final : public grpc::CallbackGenericService {
 public:
  explicit UnknownMethods(const ServiceContext* service) : service_(service) {}

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    class Refuse final : public grpc::ServerGenericBidiReactor {
     public:
      Refuse(const ServiceContext* service, grpc::GenericCallbackServerContext* context)
          : scope_(service, Method::kOther, context, 0) {
        Finish(scope_.End(absl::UnimplementedError(absl::StrCat("there is no method ", context->method())), 0));
      }
      void OnDone() override { delete this; }

     private:
      CallScope scope_;
    };
    return new Refuse(service_, context);
  }

 private:
  const ServiceContext* const service_;
};

// TLS 1.2+ (gRPC's minimum), certificates watched on disk; client certificates are demanded when a CA is given.
std::shared_ptr<grpc::ServerCredentials> Credentials(const ServerConfig& config) {
  if (!config.has_tls()) return grpc::InsecureServerCredentials();
  const auto& tls = config.tls();
  const bool mutual = !tls.client_ca_file().empty();
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key_file(), tls.certificate_file(), tls.client_ca_file(), tls.refresh_interval_s());
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_identity_key_cert_pairs();
  if (mutual) options.watch_root_certs();
  options.set_cert_request_type(mutual ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                       : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.set_check_call_host(false);
  return grpc::experimental::TlsServerCredentials(options);
}

void SetLimits(const ServerConfig& config, grpc::ServerBuilder* builder) {
  const auto& limits = config.limits();
  builder->SetMaxReceiveMessageSize(static_cast<int>(limits.max_message_bytes()));
  builder->SetMaxSendMessageSize(static_cast<int>(limits.max_message_bytes()));
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(limits.max_metadata_bytes()));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(limits.max_concurrent_streams()));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(limits.max_connection_age_s()) * 1000);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, static_cast<int>(limits.max_deadline_ms()));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, static_cast<int>(limits.max_connection_idle_s()) * 1000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(limits.keepalive_s()) * 1000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server on our port must fail, not share it
  grpc::ResourceQuota quota("backstory");
  quota.Resize(limits.max_memory_bytes());
  builder->SetResourceQuota(quota);
}

std::string Address(const std::string& host, uint32_t port) {
  const bool v6 = host.find(':') != std::string::npos && host.front() != '[';
  return absl::StrCat(v6 ? "[" : "", host, v6 ? "]" : "", ":", port);
}

// Gauges that are read when somebody looks, not counted as things happen.
std::function<void()> ScrapeHook(Engine* engine, PrometheusMetrics* metrics) {
  Gauge* users = metrics->GetGauge("backstory_cache_users", "Users with a cached state");
  Gauge* running = metrics->GetGauge("backstory_rank_running", "Requests being scored");
  Gauge* store_users = metrics->GetGauge("backstory_store_users", "Users with a history");
  Gauge* store_events = metrics->GetGauge("backstory_store_events", "Live events");
  Gauge* store_bytes = metrics->GetGauge("backstory_store_disk_bytes", "Bytes of the store on disk");
  Gauge* writable =
      metrics->GetGauge("backstory_store_writable", "0 while the store refuses writes (disk full, damage)");
  return [=] {
    const EngineStats stats = engine->Stats();
    users->Set(static_cast<double>(stats.cached_users));
    running->Set(static_cast<double>(stats.running));
    writable->Set(engine->store().WriteHealth().ok() ? 1 : 0);
    const auto store = engine->store().GetStats();
    if (!store.ok()) return;
    store_users->Set(static_cast<double>(store->users));
    store_events->Set(static_cast<double>(store->events));
    store_bytes->Set(static_cast<double>(store->disk_bytes));
  };
}

}  // namespace

struct Server::Impl {
  ServerConfig config;
  Engine* engine = nullptr;
  Log* log = nullptr;
  std::unique_ptr<Handlers> handlers;
  std::unique_ptr<RpcMetrics> metrics;
  RoleTable roles;
  std::unique_ptr<Executor> blocking;
  Gate gate;
  ServiceContext service;
  std::unique_ptr<MetricsEndpoint> endpoint;
  std::unique_ptr<UnknownMethods> unknown_methods;
  std::vector<std::unique_ptr<grpc::Service>> services;
  std::unique_ptr<grpc::Server> data, admin;
  int port = 0, admin_port = 0, metrics_port = 0;
  bool closed = false;

  absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(const std::string& host, uint32_t wanted, bool is_admin,
                                                       std::vector<std::unique_ptr<grpc::Service>> own, int* bound);
  void NameServices();
  void SetServing(bool serving);
  void TurnAway();
  void Close(std::chrono::milliseconds flush);
};

absl::StatusOr<std::unique_ptr<grpc::Server>> Server::Impl::Listen(const std::string& host, uint32_t wanted,
                                                                   bool is_admin,
                                                                   std::vector<std::unique_ptr<grpc::Service>> own,
                                                                   int* bound) {
  grpc::ServerBuilder builder;
  const std::string address = Address(host, wanted);
  builder.AddListeningPort(address, Credentials(config), bound);
  SetLimits(config, &builder);
  if (!is_admin) builder.RegisterCallbackGenericService(unknown_methods.get());
  for (auto& each : own) {
    builder.RegisterService(each.get());
    services.push_back(std::move(each));
  }
  auto server = builder.BuildAndStart();
  if (server == nullptr || *bound == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, " (is another server using it?)"));
  }
  return server;
}

void Server::Impl::NameServices() {
  for (const char* name :
       {"backstory.v1.Ranking", "backstory.v1.Retrieval", "backstory.v1.History", "backstory.v1.Catalog"}) {
    data->GetHealthCheckService()->SetServingStatus(name, false);
  }
  if (admin == nullptr) return;
  for (const char* name : {"backstory.v1.Models", "backstory.v1.Store", "backstory.v1.Experiments"}) {
    admin->GetHealthCheckService()->SetServingStatus(name, false);
  }
}

// One call for all names: a watcher hears of each change once.
void Server::Impl::SetServing(bool serving) {
  for (grpc::Server* server : {data.get(), admin.get()}) {
    if (server != nullptr) server->GetHealthCheckService()->SetServingStatus(serving);
  }
  metrics->SetReady(serving);
}

// Calls on their way to us are told UNAVAILABLE with a pushback as long as they keep coming (at most a second): closing
// the connection under them would reach their clients as CANCELLED.
void Server::Impl::TurnAway() {
  constexpr int kRoundsMax = 10;
  for (int round = 0; round < kRoundsMax; ++round) {
    const int64_t before = gate.refused();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    if (gate.refused() == before) return;
  }
}

void Server::Impl::Close(std::chrono::milliseconds flush) {
  if (std::exchange(closed, true)) return;
  for (grpc::Server* server : {data.get(), admin.get()}) {
    if (server != nullptr) server->Shutdown(std::chrono::system_clock::now() + flush);
  }
  for (grpc::Server* server : {data.get(), admin.get()}) {
    if (server != nullptr) server->Wait();
  }
  if (endpoint != nullptr) endpoint->Stop();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& config, Engine* engine, Clock* clock,
                                                      PrometheusMetrics* metrics, Log* log,
                                                      ExperimentControl* experiments, const ExposureLog* exposures) {
  static std::once_flag once;
  std::call_once(once, [] { grpc::EnableDefaultHealthCheckService(true); });
  if (config.reflection()) grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->engine = engine;
  impl->log = log;
  impl->handlers = std::make_unique<Handlers>(engine, clock, Handlers::Options{config.store().checkpoint_dir()});
  impl->metrics = std::make_unique<RpcMetrics>(metrics);
  impl->roles = RoleTable::LoopbackOnly();
  if (!config.admin().roles_file().empty()) {
    auto roles = RoleTable::Load(config.admin().roles_file());
    if (!roles.ok()) return roles.status();
    impl->roles = *std::move(roles);
  }
  constexpr size_t kBlockingQueue = 4'096;
  impl->blocking = std::make_unique<Executor>(config.limits().blocking_threads(), kBlockingQueue);
  const auto& limits = config.limits();
  impl->service = {
      impl->handlers.get(),
      clock,
      impl->metrics.get(),
      log,
      &impl->roles,
      {std::chrono::milliseconds(limits.default_deadline_ms()), std::chrono::milliseconds(limits.max_deadline_ms())},
      limits.max_message_bytes(),
      impl->blocking.get(),
      &impl->gate};
  impl->unknown_methods = std::make_unique<UnknownMethods>(&impl->service);

  std::vector<std::unique_ptr<grpc::Service>> own;
  own.push_back(MakeRankingService(&impl->service));
  own.push_back(MakeRetrievalService(&impl->service));
  own.push_back(MakeHistoryService(&impl->service));
  own.push_back(MakeCatalogService(&impl->service));
  auto data = impl->Listen(config.listen().host(), config.listen().port(), false, std::move(own), &impl->port);
  if (!data.ok()) return data.status();
  impl->data = *std::move(data);
  if (!config.admin().disabled()) {
    own.clear();
    own.push_back(MakeModelsService(&impl->service));
    own.push_back(MakeStoreService(&impl->service));
    if (experiments != nullptr) own.push_back(MakeExperimentsService(&impl->service, experiments, exposures));
    auto admin = impl->Listen(config.admin().host(), config.admin().port(), true, std::move(own), &impl->admin_port);
    if (!admin.ok()) return admin.status();
    impl->admin = *std::move(admin);
  }
  impl->NameServices();
  impl->SetServing(false);
  if (!config.metrics().disabled()) {
    impl->endpoint = std::make_unique<MetricsEndpoint>(metrics, ScrapeHook(engine, metrics));
    auto port = impl->endpoint->Listen(config.metrics().host(), static_cast<int>(config.metrics().port()));
    if (!port.ok()) return port.status();
    impl->metrics_port = *port;
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { impl_->Close(std::chrono::milliseconds(0)); }

int Server::port() const { return impl_->port; }
int Server::admin_port() const { return impl_->admin_port; }
int Server::metrics_port() const { return impl_->metrics_port; }

void Server::SetServing(bool serving) { impl_->SetServing(serving); }

absl::Status Server::Drain() {
  impl_->SetServing(false);
  impl_->log->Write(LogLevel::kInfo, "draining", {{"in_flight", impl_->gate.inside()}});
  const std::chrono::milliseconds grace(static_cast<int64_t>(impl_->config.limits().drain_grace_s()) * 1000);
  const bool empty = impl_->gate.Drain(grace);
  absl::Status status = impl_->engine->Drain(std::chrono::microseconds(kShutdownFlush).count());
  if (!empty) {
    status = absl::DeadlineExceededError(
        absl::StrCat(impl_->gate.inside(),
                     " calls were still running after drain_grace_s = ", impl_->config.limits().drain_grace_s()));
  }
  impl_->TurnAway();
  impl_->Close(kShutdownFlush);
  impl_->log->Write(status.ok() ? LogLevel::kInfo : LogLevel::kError, "drained", {{"status", status.ToString()}});
  return status;
}

}  // namespace backstory::rpc
