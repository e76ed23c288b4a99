// A server's life: not ready, ready, deadlines, cancellation, shedding, metrics, drain under load (R9, R10).
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <regex>
#include <thread>

#include "serving/rpc/metrics_endpoint.h"
#include "tests/serving/rpc/fixture.h"

namespace backstory::testing {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

// grpc.health.v1 by hand: HealthCheckRequest{1: service}, HealthCheckResponse{1: status}; 1 SERVING, 2 NOT_SERVING.
class HealthWatch {
 public:
  HealthWatch(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) : stub_(channel) {
    const std::string bytes = std::string("\x0a") + static_cast<char>(service.size()) + service;
    context_ = Deadline();
    call_ = stub_.PrepareCall(context_.get(), "/grpc.health.v1.Health/Watch", &queue_);
    call_->StartCall(Tag());
    Next();
    grpc::Slice slice(bytes);
    call_->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), Tag());
    Next();
  }
  ~HealthWatch() {
    context_->TryCancel();
    grpc::Status status;
    call_->Finish(&status, Tag());
    Next();
  }
  // The next status the server sends, -1 at the end of the stream.
  int NextStatus() {
    grpc::ByteBuffer bytes;
    call_->Read(&bytes, Tag());
    if (!Next()) return -1;
    std::vector<grpc::Slice> slices;
    (void)bytes.Dump(&slices);
    std::string text;
    for (const auto& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return text.size() >= 2 ? text[1] : 0;
  }

 private:
  void* Tag() { return this; }
  bool Next() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

constexpr int kServing = 1, kNotServing = 2;

double MetricValue(const std::string& scrape, const std::string& series) {
  const size_t at = scrape.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(scrape.substr(at + series.size() + 2));
}

std::string Scrape(RpcServer& server) { return rpc::MetricsEndpoint(&server.metrics, nullptr).Scrape(); }

TEST(Health, SaysNotServingUntilReadyAndFirstThingInADrain) {
  RpcServer::Options options;
  options.serving = false;
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  HealthWatch all(channel, ""), ranking(channel, "backstory.v1.Ranking"), history(channel, "backstory.v1.History");
  for (HealthWatch* watch : {&all, &ranking, &history}) EXPECT_EQ(watch->NextStatus(), kNotServing);
  server.server->SetServing(true);
  for (HealthWatch* watch : {&all, &ranking, &history}) EXPECT_EQ(watch->NextStatus(), kServing);

  // A request in flight keeps the drain waiting; health has changed before it ends.
  server.gate.Close();
  std::thread ranker([&] {
    v1::RankResponse response;
    const auto status = v1::Ranking::NewStub(channel)->Rank(Deadline().get(), RankFor("u"), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  });
  server.gate.AwaitWaiting();
  auto drain = std::async(std::launch::async, [&] { return server.server->Drain(); });
  for (HealthWatch* watch : {&all, &ranking, &history}) EXPECT_EQ(watch->NextStatus(), kNotServing);
  EXPECT_EQ(drain.wait_for(std::chrono::milliseconds(0)), std::future_status::timeout);
  server.gate.Open();
  ranker.join();
  EXPECT_TRUE(drain.get().ok());
}

TEST(Drain, AcceptedRequestsAreAnsweredNewOnesAreToldToRetry) {
  RpcServer server;
  std::atomic<int> ok{0}, told{0}, unseen{0}, other{0}, without_pushback{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      auto channel = RpcServer::Connect(server.address());
      auto stub = v1::Ranking::NewStub(channel);
      while (!stop) {
        auto context = Deadline();
        v1::RankResponse response;
        const auto status = stub->Rank(context.get(), RankFor("user" + std::to_string(t)), &response);
        if (status.ok()) {
          ++ok;
          continue;
        }
        // UNAVAILABLE and CANCELLED in other words are gRPC's own: the connection was closed, or was closing, under a
        // call that no handler ever saw. Below, the server's counts show that each call that one did see got its
        // answer.
        if (status.error_message() == "the server is draining") {
          ++told;
          if (context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms") == 0) ++without_pushback;
        } else {
          const bool by_grpc =
              status.error_code() == StatusCode::UNAVAILABLE || status.error_code() == StatusCode::CANCELLED;
          ++(by_grpc ? unseen : other);
        }
        return;
      }
    });
  }
  while (ok < 50) std::this_thread::yield();
  const absl::Status drained = server.server->Drain();
  EXPECT_TRUE(drained.ok()) << drained;
  stop = true;
  for (auto& client : clients) client.join();
  EXPECT_EQ(other, 0);
  EXPECT_EQ(without_pushback, 0);
  EXPECT_EQ(told + unseen, 4) << "each client ended with one refusal";
  // Every call that a handler saw was either let in and answered OK, or told to come back, and its client heard exactly
  // that: what neither side counts as one of the two was never accepted.
  const std::string scrape = Scrape(server);
  const std::string method = "{grpc_method=\"backstory.v1.Ranking/Rank\"";
  const auto ended = [&](const std::string& code) {
    return std::max(0.0, MetricValue(scrape, "grpc_server_call_duration_seconds_count" + method + ",grpc_status=\"" +
                                                 code + "\"}"));
  };
  EXPECT_EQ(ended("OK"), ok);
  EXPECT_EQ(ended("UNAVAILABLE"), told);
  EXPECT_EQ(MetricValue(scrape, "grpc_server_call_started_total" + method + "}"), ok + told) << "no other end";
  EXPECT_EQ(MetricValue(scrape, "backstory_rpc_in_flight_calls" + method + "}"), 0);
}

TEST(Drain, NamesWhatIsLeftWhenTheGraceIsOver) {
  RpcServer::Options options;
  options.config.mutable_limits()->set_drain_grace_s(1);
  RpcServer server(options);
  server.gate.Close();
  std::thread ranker([&] {
    v1::RankResponse response;
    auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
    EXPECT_FALSE(stub->Rank(Deadline().get(), RankFor("u"), &response).ok());
  });
  server.gate.AwaitWaiting();
  auto drain = std::async(std::launch::async, [&] { return server.server->Drain(); });
  ranker.join();  // its connection is closed after the grace
  server.gate.Open();
  const absl::Status status = drain.get();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 calls"));
}

// Work whose deadline passes in the queue is dropped without being scored.
TEST(Deadlines, ExpiredInTheQueueCostsNoCompute) {
  RpcServer::Options options;
  options.parameters = {{"threads", "1"}, {"batch_users", "1"}};
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();
  std::thread first([&] {
    v1::RankResponse response;
    EXPECT_TRUE(v1::Ranking::NewStub(channel)->Rank(Deadline().get(), RankFor("holds"), &response).ok());
  });
  server.gate.AwaitWaiting();
  const int scored = server.model->scores;
  v1::RankResponse response;
  const auto status = v1::Ranking::NewStub(channel)->Rank(Deadline(50).get(), RankFor("late"), &response);
  EXPECT_EQ(status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  server.gate.Open();
  first.join();
  EXPECT_TRUE(server.server->Drain().ok());
  EXPECT_EQ(server.model->scores, scored);
}

TEST(Deadlines, TheServersDefaultEndsACallWithoutOne) {
  RpcServer::Options options;
  options.config.mutable_limits()->set_default_deadline_ms(50);
  options.parameters = {{"threads", "1"}, {"batch_users", "1"}};
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();
  std::thread first([&] {
    v1::RankResponse response;
    v1::Ranking::NewStub(channel)->Rank(Deadline().get(), RankFor("holds"), &response);
  });
  server.gate.AwaitWaiting();
  std::thread second([&] {
    grpc::ClientContext none;
    v1::RankResponse response;
    const auto status = v1::Ranking::NewStub(channel)->Rank(&none, RankFor("waits"), &response);
    EXPECT_EQ(status.error_code(), StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  });
  // Until the second one waits in the queue, and then until its 50 ms are over.
  while (server.engine->Stats().queued < 1) std::this_thread::yield();
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(60);
  while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
  server.gate.Open();
  first.join();
  second.join();
}

TEST(Cancellation, FreesThePlaceInTheQueue) {
  RpcServer::Options options;
  options.parameters = {{"threads", "1"}, {"batch_users", "1"}};
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();
  std::thread first([&] {
    v1::RankResponse response;
    EXPECT_TRUE(v1::Ranking::NewStub(channel)->Rank(Deadline().get(), RankFor("holds"), &response).ok());
  });
  server.gate.AwaitWaiting();
  auto context = Deadline();
  std::thread second([&] {
    v1::RankResponse response;
    const auto status = v1::Ranking::NewStub(channel)->Rank(context.get(), RankFor("leaves"), &response);
    EXPECT_EQ(status.error_code(), StatusCode::CANCELLED);
  });
  while (server.engine->Stats().queued < 1) std::this_thread::yield();
  context->TryCancel();
  second.join();
  while (server.engine->Stats().queued > 0) std::this_thread::yield();  // while scoring is still held
  server.gate.Open();
  first.join();
}

TEST(Shedding, AFullQueueAnswersUnavailableWithPushback) {
  RpcServer::Options options;
  options.parameters = {
      {"threads", "1"}, {"batch_users", "1"}, {"queue_requests", "1"}, {"concurrency_adaptive", "false"}};
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();
  std::vector<std::thread> clients;
  std::atomic<int> shed{0}, ok{0};
  for (int i = 0; i < 8; ++i) {
    if (i == 1) server.gate.AwaitWaiting();  // one is being scored; one of the rest has a place to wait, six have not
    clients.emplace_back([&, i] {
      auto context = Deadline();
      v1::RankResponse response;
      const auto status =
          v1::Ranking::NewStub(channel)->Rank(context.get(), RankFor("u" + std::to_string(i)), &response);
      if (status.ok()) {
        ++ok;
        return;
      }
      EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
      EXPECT_EQ(context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
      ++shed;
    });
  }
  while (shed < 6) std::this_thread::yield();
  server.gate.Open();
  for (auto& client : clients) client.join();
  EXPECT_EQ(ok, 2);
  EXPECT_EQ(shed, 6);
}

TEST(Quotas, OneNamespaceIsLimitedTheOtherIsNot) {
  RpcServer::Options options;
  options.quotas = {{"small", 0.001, 2}};
  RpcServer server(options);
  auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
  int refused = 0;
  for (int i = 0; i < 5; ++i) {
    v1::RankRequest request = RankFor("u");
    v1::RankResponse response;
    EXPECT_TRUE(stub->Rank(Deadline().get(), request, &response).ok());
    request.set_namespace_("small");
    const auto status = stub->Rank(Deadline().get(), request, &response);
    if (status.ok()) continue;
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(status.error_message(), HasSubstr("small"));
    ++refused;
  }
  EXPECT_EQ(refused, 3);
}

TEST(Metrics, EndpointServesTheDocumentedNames) {
  RpcServer::Options options;
  options.metrics_endpoint = true;
  RpcServer server(options);
  auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
  v1::RankResponse response;
  ASSERT_TRUE(stub->Rank(Deadline().get(), RankFor("secret-user-id"), &response).ok());
  v1::RankRequest bad = RankFor("secret-user-id");
  bad.set_now_us(-1);
  EXPECT_FALSE(stub->Rank(Deadline().get(), bad, &response).ok());
  EXPECT_GT(server.server->metrics_port(), 0);
  const std::string scrape = Scrape(server);
  for (const char* name :
       {"grpc_server_call_started_total{grpc_method=\"backstory.v1.Ranking/Rank\"} 2",
        "grpc_server_call_duration_seconds_count{grpc_method=\"backstory.v1.Ranking/Rank\",grpc_status=\"OK\"} 1",
        "grpc_server_call_duration_seconds_count{grpc_method=\"backstory.v1.Ranking/"
        "Rank\",grpc_status=\"INVALID_ARGUMENT\"} 1",
        "backstory_ready 1", "backstory_build_info{", "process_resident_memory_bytes ", "process_open_fds ",
        "grpc_server_call_rcvd_total_message_size_bytes_count{grpc_method=\"backstory.v1.Ranking/Rank\"} 2",
        "backstory_rpc_in_flight_calls{grpc_method=\"backstory.v1.Ranking/Rank\"} 0"}) {
    EXPECT_THAT(scrape, HasSubstr(std::string("\n") + name)) << name;
  }
  EXPECT_THAT(scrape, ::testing::Not(HasSubstr("secret-user-id")));
}

// gRPC's own word for it names neither field nor setting, and no metric would count it.
TEST(Limits, AnAnswerTooLargeNamesWhatToLowerAndIsCounted) {
  RpcServer::Options options;
  options.metrics_endpoint = true;
  options.config.mutable_limits()->set_max_message_bytes(65'536);
  RpcServer server(options);
  auto stub = v1::History::NewStub(RpcServer::Connect(server.address()));
  for (uint64_t part = 0; part < 4; ++part) {
    v1::AppendRequest append;
    append.mutable_user()->set_user("u");
    for (uint64_t i = 1; i <= 1000; ++i) {
      auto* event = append.add_events();
      event->set_event_id(part * 1000 + i);
      event->set_time_us(static_cast<int64_t>(part * 1000 + i));
      event->set_kind(v1::EVENT_KIND_EXPOSURE);
      event->set_item_id(i);
    }
    v1::AppendResponse appended;
    const auto status = stub->Append(Deadline().get(), append, &appended);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  v1::GetHistoryRequest get;
  get.mutable_user()->set_user("u");
  get.set_newest(4000);
  v1::GetHistoryResponse history;
  const auto status = stub->Get(Deadline().get(), get, &history);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("limits.max_message_bytes is 65536: lower newest"));
  EXPECT_THAT(Scrape(server),
              HasSubstr("grpc_server_call_duration_seconds_count{grpc_method=\"backstory.v1.History/Get\","
                        "grpc_status=\"INVALID_ARGUMENT\"} 1"));
  get.set_newest(100);
  EXPECT_TRUE(stub->Get(Deadline().get(), get, &history).ok());
  EXPECT_EQ(history.events_size(), 100);
}

TEST(Start, ASecondServerOnTheSamePortSaysSo) {
  RpcServer server;
  rpc::ServerConfig config = server.config;
  config.mutable_listen()->set_port(static_cast<uint32_t>(server.server->port()));
  const auto second = rpc::Server::Start(config, server.engine.get(), SystemClock(), &server.metrics, server.log.get());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(server.server->port())));
}

}  // namespace
}  // namespace backstory::testing
