// The real server under load at about 70 % of what it can do (R24): a new configuration and the kill switch take effect
// without a restart and without a failed request, and 200 broken configurations never do. How long a change took is
// printed; what is asserted is that it takes effect and that nothing goes back.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "backstory/v1/experiments.grpc.pb.h"
#include "serving/cli/open_loop.h"
#include "serving/engine/experiments/plan.h"
#include "serving/rpc/experiment_config_text.h"
#include "tests/system/broken_configs.h"
#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000, kNow = kStart + 1'000'000'000'000;
constexpr int kUsers = 64;

std::string User(size_t i) { return "user-" + std::to_string(i % kUsers); }

constexpr char kRunning[] = R"(hash_version: 1
holdout { buckets { first: 0 count: 500 } }
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    parameter: "history_rows"
    experiment {
      name: "short-history"
      state: RUNNING
      buckets { first: 0 count: 10000 }
      ramp: 5000
      arm { name: "control" weight: 5000 }
      arm { name: "short" weight: 5000 parameters { name: "history_rows" value: "16" } }
    }
  }
}
)";

std::string Replaced(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

// What a user's replies must say under one configuration.
struct Given {
  std::vector<std::string> exposures;
  std::string rows = "1000000", source = "default";
  bool operator==(const Given&) const = default;
};

std::string Line(const std::string& layer, const std::string& experiment, const std::string& arm,
                 const std::string& unit, const std::string& reason) {
  return layer + "/" + experiment + "/" + arm + "/" + unit + "/" + reason;
}

Given GivenIn(const v1::RankResponse& response) {
  Given given;
  for (const auto& e : response.exposures()) {
    given.exposures.push_back(Line(e.layer(), e.experiment(), e.arm(), e.unit(), e.reason()));
  }
  for (const auto& p : response.parameters()) {
    if (p.name() == "history_rows") given.rows = p.value(), given.source = p.source();
  }
  return given;
}

// A configuration that was, is or will be active, and what it gives to every user.
struct Step {
  std::string text, version;
  std::vector<Given> given;
};

Step MakeStep(const std::string& text) {
  auto parsed = rpc::ParseExperimentConfig(text, "step");
  EXPECT_TRUE(parsed.ok() && parsed->problems.empty()) << parsed.status();
  Step step{text, parsed->config.version, {}};
  const auto plan = ExperimentPlan::Compile(parsed->config, ParameterRegistry::Builtin());
  EXPECT_TRUE(plan.ok()) << plan.status();
  for (int u = 0; u < kUsers; ++u) {
    Given given;
    const Assignment assignment = (*plan)->Assign(kSystemNamespace, "", {User(static_cast<size_t>(u)), "", ""}, {});
    for (const LayerAssignment& layer : assignment.layers) {
      for (const auto& e : layer.exposures)
        given.exposures.push_back(Line(e.layer, e.experiment, e.arm, e.unit, e.reason));
      if (layer.parameters.contains("history_rows"))
        given.rows = layer.parameters.at("history_rows"), given.source = "experiment";
    }
    step.given.push_back(given);
  }
  return step;
}

class Load {
 public:
  Load(const ServerProcess& server, const std::vector<Step>& steps) : steps_(steps) {
    for (int i = 0; i < 4; ++i) stubs_.push_back(v1::Ranking::NewStub(server.Connect()));
    for (int u = 0; u < kUsers; ++u) {
      v1::RankRequest& request = requests_.emplace_back();
      request.set_namespace_(kSystemNamespace);
      request.mutable_units()->mutable_user()->set_user(User(static_cast<size_t>(u)));
      request.set_now_us(kNow);
      for (uint64_t item = 1; item <= 100; ++item) request.mutable_candidates()->add_item_ids(item);
    }
  }
  ~Load() { Stop(); }

  // Answers a second that eight callers get, each waiting for its own.
  double Capacity() {
    std::atomic<uint64_t> answered{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> callers;
    for (size_t c = 0; c < 8; ++c) {
      callers.emplace_back([&, c] {
        for (size_t i = c; !stop; i += 8) {
          v1::RankResponse response;
          EXPECT_TRUE(
              stubs_[c % stubs_.size()]->Rank(SystemClient::Context().get(), requests_[i % kUsers], &response).ok());
          ++answered;
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // warm
    const uint64_t before = answered;
    const auto start = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::chrono::seconds(1));
    const double rate = static_cast<double>(answered - before) /
                        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    stop = true;
    for (std::thread& caller : callers) caller.join();
    return rate;
  }

  void Start(double rate) {
    thread_ = std::thread([this, rate] {
      for (uint64_t second = 1; !stop_; ++second) {
        RunOpenLoop(rate, 1, 0, second, 1'000'000, [this](size_t i, auto done) { Issue(i, std::move(done)); });
      }
    });
  }
  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

  // From now on no reply may come from a step before this one, for requests not sent yet.
  void Expect(size_t step) {
    size_t newest = newest_;
    while (newest < step && !newest_.compare_exchange_weak(newest, step)) {
    }
  }
  void Await(size_t step) const {
    while (newest_ < step) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // ctest's limit ends it
  }

  std::atomic<uint64_t> answered{0}, failed{0}, unknown_version{0}, wrong{0}, went_back{0};
  std::string first_problem() {
    std::lock_guard lock(mutex_);
    return problem_;
  }

 private:
  void Issue(size_t i, std::function<void(std::string)> done) {
    struct Call {
      std::unique_ptr<grpc::ClientContext> context = SystemClient::Context();
      v1::RankResponse response;
    };
    auto call = std::make_shared<Call>();
    const size_t floor = newest_, user = i % kUsers;
    stubs_[i % stubs_.size()]->async()->Rank(call->context.get(), &requests_[user], &call->response,
                                             [this, call, floor, user, done](const grpc::Status& status) {
                                               Check(status, call->response, floor, user);
                                               done(status.ok() ? "" : status.error_message());
                                             });
  }

  void Check(const grpc::Status& status, const v1::RankResponse& response, size_t floor, size_t user) {
    ++answered;
    if (!status.ok()) return Problem(&failed, status.error_message());
    const std::string version = response.config_version().substr(response.config_version().find('/') + 1);
    size_t step = 0;
    while (step < steps_.size() && steps_[step].version != version) ++step;
    if (step == steps_.size()) return Problem(&unknown_version, version);
    if (step < floor) return Problem(&went_back, version);
    if (GivenIn(response) != steps_[step].given[user]) return Problem(&wrong, response.ShortDebugString());
    Expect(step);
  }
  void Problem(std::atomic<uint64_t>* count, const std::string& what) {
    ++*count;
    std::lock_guard lock(mutex_);
    if (problem_.empty()) problem_ = what;
  }

  const std::vector<Step>& steps_;
  std::vector<std::unique_ptr<v1::Ranking::Stub>> stubs_;
  std::vector<v1::RankRequest> requests_;
  std::atomic<size_t> newest_{0};  // index of the newest step that a reply came from
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::string problem_;  // guarded by mutex_
  std::thread thread_;
};

void Replace(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file.string() + ".tmp") << text;
  std::filesystem::rename(file.string() + ".tmp", file);
}

size_t Count(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

void GiveHistories(const ServerProcess& server) {
  SystemClient client(server.Connect());
  for (size_t u = 0; u < kUsers; ++u) {
    std::vector<v1::Event> events;
    for (uint64_t i = 0; i < 200; ++i) events.push_back(Exposure(1 + i, kStart + int64_t(i) * 1'000'000, 1 + i % 90));
    ASSERT_TRUE(client.Append(User(u), events).first.ok());
  }
}

grpc::Status Apply(v1::Experiments::Stub* admin, const std::string& text) {
  v1::ApplyExperimentsRequest request;
  request.set_config_text(text);
  v1::ApplyExperimentsResponse response;
  return admin->Apply(SystemClient::Context().get(), request, &response);
}

// By the admin service, and some through the file. Returns how many.
size_t PushBroken(v1::Experiments::Stub* admin, const std::filesystem::path& file, const ServerProcess& server) {
  constexpr size_t kFiles = 3;
  const std::vector<std::string> broken = BrokenConfigs(kRunning);
  for (const std::string& text : broken) {
    const grpc::Status status = Apply(admin, text);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << text << "\n" << status.error_message();
    EXPECT_NE(status.error_message().find("config_text"), std::string::npos) << status.error_message();
  }
  for (size_t i = 0; i < kFiles; ++i) {  // told once each, and the last good one stays
    Replace(file, broken[i * broken.size() / kFiles]);
    while (Count(server.log(), "experiments refused, the last good ones stay") < i + 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  return broken.size() + kFiles;
}

TEST(Experiments, ChangesTakeEffectUnderLoadAndBrokenOnesNeverDo) {
  ScratchDir scratch;
  const std::filesystem::path file = scratch.path() / "experiments.textproto";
  const std::string ramped = Replaced(kRunning, "ramp: 5000", "ramp: 10000");
  const std::string killed = Replaced(ramped, "RUNNING", "KILLED");
  const std::vector<Step> steps{MakeStep(kRunning), MakeStep(ramped), MakeStep(killed),
                                MakeStep("kill_all: true\n" + killed)};
  EXPECT_NE(steps[0].given, steps[1].given);
  EXPECT_NE(steps[1].given, steps[2].given);
  Replace(file, kRunning);
  std::ofstream(scratch.path() / "key") << "a key of the test\n";
  // A busy machine may hold the server up for a while: it has room to let requests wait instead of shedding them, and
  // no pressure may shorten a history.
  ServerProcess server({.store = scratch.path() / "store",
                        .models = {},
                        .arguments = {"--create-store", "--experiments", file.string(), "--exposure-log",
                                      (scratch.path() / "exposures").string(), "--unit-key-file",
                                      (scratch.path() / "key").string(), "-p", "queue_requests=100000", "-p",
                                      "concurrency_adaptive=false", "-p", "concurrency_limit_max=100000"},
                        .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  GiveHistories(server);
  auto admin = v1::Experiments::NewStub(server.ConnectAdmin());

  Load load(server, steps);
  const double capacity = load.Capacity(), rate = std::min(0.7 * capacity, 2'000.0);
  load.Start(rate);
  load.Await(0);

  const size_t broken = PushBroken(admin.get(), file, server);
  ASSERT_GE(broken, 200u);
  v1::ExperimentsStatusResponse status;
  ASSERT_TRUE(admin->Status(SystemClient::Context().get(), {}, &status).ok());
  EXPECT_EQ(status.config_version(), steps[0].version);

  std::vector<double> took_ms;
  for (const size_t step : {1u, 2u}) {
    const auto start = std::chrono::steady_clock::now();
    Replace(file, steps[step].text);
    load.Await(step);
    took_ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  ASSERT_TRUE(Apply(admin.get(), steps[3].text).ok());
  load.Expect(3);  // from its reply on, every request that starts
  const uint64_t until = load.answered + 100;
  while (load.answered < until) std::this_thread::yield();
  load.Stop();

  EXPECT_EQ(load.failed, 0u) << load.first_problem();
  EXPECT_EQ(load.unknown_version, 0u) << "a broken configuration was active: " << load.first_problem();
  EXPECT_EQ(load.went_back, 0u) << load.first_problem();
  EXPECT_EQ(load.wrong, 0u) << "exposures or parameters of another configuration: " << load.first_problem();
  std::printf(
      "capacity %.0f/s, offered %.0f/s, %llu answers, %llu failed, %zu broken configurations refused; configuration "
      "change effective after %.0f ms, kill switch after %.0f ms (promised: 5,000)\n",
      capacity, rate, static_cast<unsigned long long>(load.answered), static_cast<unsigned long long>(load.failed),
      broken, took_ms[0], took_ms[1]);
  server.Signal(SIGTERM);
  const ExitState end = server.Wait();
  EXPECT_TRUE(end.exited && end.code == 0) << server.log();
}

}  // namespace
}  // namespace backstory
