// A whole server in the test's process: gRPC on free loopback ports, a real RocksDB store in a directory of its own, and a
// model whose scoring the test can watch and hold.
#ifndef BACKSTORY_TESTS_SERVING_RPC_FIXTURE_H_
#define BACKSTORY_TESTS_SERVING_RPC_FIXTURE_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "backstory/v1/admin.grpc.pb.h"
#include "backstory/v1/catalog.grpc.pb.h"
#include "backstory/v1/history.grpc.pb.h"
#include "backstory/v1/ranking.grpc.pb.h"
#include "serving/engine/engine.h"
#include "serving/engine/experiments/exposure_log.h"
#include "serving/rpc/experiment_control.h"
#include "serving/rpc/server.h"
#include "store/rocksdb_history_store.h"
#include "tests/models/temp_dir.h"
#include "tests/serving/engine/fakes.h"

namespace backstory::testing {

inline constexpr int64_t kRpcNow = int64_t{1'700'000'000} * 1'000'000;

// Scoring waits while closed. Opening is final unless closed again.
class ScoreGate {
 public:
  void Close() {
    std::lock_guard lock(mutex_);
    open_ = false;
  }
  void Open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    --waiting_;
  }
  // Until somebody is being scored.
  void AwaitWaiting(int count = 1) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int waiting_ = 0;
};

class RpcServer {
 public:
  struct Options {
    rpc::ServerConfig config;                       // store and models are filled in
    std::map<std::string, std::string> parameters;  // of the engine
    std::vector<NamespaceQuota> quotas;
    std::string experiments;                        // text of a configuration; empty = none
    bool serving = true;
    bool metrics_endpoint = false;                  // costs two seconds at the end
  };

  RpcServer() : RpcServer(Options{}) {}
  explicit RpcServer(Options options) {
    config = options.config;
    config.mutable_store()->set_directory(dir.path("store"));
    config.mutable_store()->set_create_if_missing(true);
    config.mutable_models()->set_directory(dir.path("models"));
    config.mutable_listen()->set_port(0);
    config.mutable_metrics()->set_disabled(!options.metrics_endpoint);
    config.mutable_log()->set_level("error");
    rpc::FillDefaults(&config);
    const auto problems = rpc::ConfigProblems(config);
    EXPECT_TRUE(problems.empty()) << problems.front();
    if (!options.experiments.empty()) OpenExperiments(options.experiments);
    OpenEngine(options);
    auto opened = rpc::Log::Open({config.log().level(), dir.path("log"), ""});
    EXPECT_TRUE(opened.ok()) << opened.status();
    log = *std::move(opened);
    auto started = rpc::Server::Start(config, engine.get(), SystemClock(), &metrics, log.get(), control.get(),
                                      exposures.get());
    EXPECT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
    server->SetServing(options.serving);
  }
  ~RpcServer() { gate.Open(); }

  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }
  std::string admin_address() const { return "127.0.0.1:" + std::to_string(server->admin_port()); }

  static std::shared_ptr<grpc::Channel> Connect(
      const std::string& address,
      std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials()) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    return grpc::CreateCustomChannel(address, credentials, arguments);
  }

  TempDir dir;
  rpc::ServerConfig config;
  ScoreGate gate;
  std::shared_ptr<FakeModel> model;
  PrometheusMetrics metrics;
  Store store;
  std::unique_ptr<LogDirectory> exposure_directory;  // with experiments only, as the next three
  std::shared_ptr<ExposureLog> exposures;
  std::shared_ptr<ExperimentAssigner> assigner;
  std::unique_ptr<rpc::ExperimentControl> control;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<rpc::Log> log;
  std::unique_ptr<rpc::Server> server;  // destroyed first

 private:
  // The file is looked at only when the server starts; Apply writes it.
  void OpenExperiments(const std::string& text) {
    WriteAll(dir.path("experiments.textproto"), text);
    auto directory = OpenLogDirectory(dir.path("exposures"));
    EXPECT_TRUE(directory.ok()) << directory.status();
    exposure_directory = *std::move(directory);
    ExposureLogOptions log_options;
    log_options.key = "key";
    auto opened = ExposureLog::Open(log_options, exposure_directory.get(), SystemClock(), &metrics);
    EXPECT_TRUE(opened.ok()) << opened.status();
    exposures = *std::move(opened);
    assigner = std::make_shared<ExperimentAssigner>();
    auto controlled = rpc::ExperimentControl::Open({dir.path("experiments.textproto"), std::chrono::hours(1), nullptr},
                                                   assigner, &metrics);
    EXPECT_TRUE(controlled.ok()) << controlled.status();
    control = *std::move(controlled);
  }

  void OpenEngine(const Options& options) {
    StoreOptions store_options;
    store_options.directory = config.store().directory();
    for (const auto& range : config.store().slots()) {
      store_options.slots.push_back({static_cast<int>(range.first()), static_cast<int>(range.last()), range.owner()});
    }
    auto opened = OpenStore(store_options);
    EXPECT_TRUE(opened.ok()) << opened.status();
    store = *std::move(opened);
    model = std::make_shared<FakeModel>(FakeConfig());
    model->on_score = [this](auto) { gate.Pass(); };
    EngineOptions engine_options;
    engine_options.parameters = options.parameters;
    engine_options.parameters.emplace("threads", "2");
    engine_options.quotas = options.quotas;
    engine_options.load_at_start = false;
    engine_options.assigner = assigner;
    engine_options.exposure_sink = exposures;
    ModelLoader loader = [this](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
      if (source.model != "fake") return absl::NotFoundError("model \"" + source.model + "\" is not known");
      if (source.version == "damaged") return absl::DataLossError("weights-00001-of-00001.safetensors: damaged");
      return Served(model, source.version);
    };
    auto created = Engine::Create(std::move(engine_options), store.history.get(), store.catalog.get(), loader,
                                  SystemClock(), &metrics);
    EXPECT_TRUE(created.ok()) << created.status();
    engine = *std::move(created);
    EXPECT_TRUE(engine->models().Load("fake", "1").ok());
    EXPECT_TRUE(engine->models().SetLabel("fake", "stable", "1").ok());
  }
};

inline std::unique_ptr<grpc::ClientContext> Deadline(int ms = 20'000) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(ms));
  return context;
}

inline v1::RankRequest RankFor(const std::string& user, std::initializer_list<uint64_t> items = {1, 2, 3}) {
  v1::RankRequest request;
  request.mutable_units()->mutable_user()->set_user(user);
  request.set_now_us(kRpcNow);
  for (uint64_t item : items) request.mutable_candidates()->add_item_ids(item);
  return request;
}

inline v1::Event WireExposure(uint64_t id, uint64_t item, int64_t time_us = kRpcNow - 1'000'000) {
  v1::Event event;
  event.set_kind(v1::EVENT_KIND_EXPOSURE);
  event.set_event_id(id);
  event.set_time_us(time_us);
  event.set_item_id(item);
  return event;
}

}  // namespace backstory::testing

#endif  // BACKSTORY_TESTS_SERVING_RPC_FIXTURE_H_
