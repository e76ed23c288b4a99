// Versions, labels and calibrations change under load (R7): nothing fails, and every answer is one version's and one
// calibration's, bit for bit. Bad calibrations are refused and the old one stays.
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "backstory/v1/admin.grpc.pb.h"
#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000, kMinute = 60'000'000, kNow = kStart + 400'000 * kMinute;
constexpr int kUsers = 4;
const std::vector<uint64_t> kItems{1, 2, 3, 4, 5, 6, 7, 8};

std::string User(int i) { return "swap-" + std::to_string(i); }

// What an answer consists of, and what it claims to come from.
struct Answer {
  std::vector<float> logits, probabilities;
  bool operator==(const Answer&) const = default;
};
using Source = std::pair<std::string, std::string>;        // version, calibration
using Answers = std::map<std::pair<int, Source>, Answer>;  // by user and source

Answer AnswerOf(const v1::RankResponse& response) {
  const auto& score = response.scores(0);
  return {{score.raw_logit().begin(), score.raw_logit().end()}, {score.calibrated().begin(), score.calibrated().end()}};
}

Source SourceOf(const v1::RankResponse& response) {
  return {response.version(), response.config_version().substr(0, response.config_version().find('/'))};
}

class Swap : public testing::Test {
 protected:
  // Two versions of one model that share nothing but their shape; calibration 1 of each is the logistic function.
  void SetUp() override {
    const std::filesystem::path model = scratch_.path() / "models" / "grab-tiny";
    for (const char* version : {"1", "2"}) {
      std::string output;
      const ExitState end = RunBinary({"model", "init-random", "grab-tiny", "--seed", std::string("4") + version,
                                       "--out", (model / version).string()},
                                      &output);
      ASSERT_EQ(end.code, 0) << output;
      std::ofstream(scratch_.path() / "platt") << "entries { task: \"click\" a: 0.5 b: -0.25 }\n";
      ASSERT_EQ(
          RunBinary({"model", "calibrate", (model / version).string(), (scratch_.path() / "platt").string()}, &output)
              .code,
          0)
          << output;
    }
    server_ = std::make_unique<ServerProcess>(ServerProcess::Options{.store = scratch_.path() / "store",
                                                                     .models = scratch_.path() / "models",
                                                                     .arguments = {"--create-store"},
                                                                     .environment = {}});
    Start();
    SystemClient client(server_->Connect());
    for (int u = 0; u < kUsers; ++u) {
      std::vector<v1::Event> events;
      for (uint64_t i = 0; i < 60; ++i) {
        events.push_back(Exposure(1 + i, kStart + int64_t(i) * kMinute, 1 + (i * 7 + uint64_t(u)) % 40));
      }
      ASSERT_TRUE(client.Append(User(u), events).first.ok());
    }
  }

  void Start() {
    ASSERT_TRUE(server_->Start()) << server_->log();
    models_ = v1::Models::NewStub(server_->ConnectAdmin());
  }

  grpc::Status Load(const std::string& version) {
    v1::LoadModelRequest request;
    request.set_model("grab-tiny");
    request.set_version(version);
    v1::LoadModelResponse response;
    return models_->Load(SystemClient::Context(60).get(), request, &response);
  }
  grpc::Status Unload(const std::string& version) {
    v1::UnloadModelRequest request;
    request.set_model("grab-tiny");
    request.set_version(version);
    v1::UnloadModelResponse response;
    return models_->Unload(SystemClient::Context().get(), request, &response);
  }
  grpc::Status Label(const std::string& version) {
    v1::SetLabelRequest request;
    request.set_model("grab-tiny");
    request.set_label("stable");
    request.set_version(version);
    v1::SetLabelResponse response;
    return models_->SetLabel(SystemClient::Context().get(), request, &response);
  }
  grpc::Status Calibrate(const std::string& version, uint32_t calibration, uint32_t* previous = nullptr) {
    v1::SetCalibrationRequest request;
    request.set_model("grab-tiny");
    request.set_version(version);
    request.set_calibration(calibration);
    v1::SetCalibrationResponse response;
    const grpc::Status status = models_->SetCalibration(SystemClient::Context().get(), request, &response);
    if (previous != nullptr) *previous = response.previous_calibration();
    return status;
  }
  v1::RankResponse Rank(const std::string& user, const std::string& version) {
    v1::RankRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_units()->mutable_user()->set_user(user);
    request.mutable_model()->set_version(version);
    request.set_now_us(kNow);
    for (const uint64_t item : kItems) request.mutable_candidates()->add_item_ids(item);
    v1::RankResponse response;
    SystemClient client(server_->Connect());
    const grpc::Status status = client.ranking().Rank(SystemClient::Context().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // What each user gets from each source, asked for by name.
  Answers Reference() {
    Answers expected;
    for (const char* version : {"1", "2"}) {
      for (const uint32_t calibration : {1u, 2u}) {
        EXPECT_TRUE(Calibrate(version, calibration).ok());
        for (int u = 0; u < kUsers; ++u) {
          const v1::RankResponse response = Rank(User(u), version);
          const Source source{version, "calibration-" + std::to_string(calibration)};
          EXPECT_EQ(SourceOf(response), source);
          expected[{u, source}] = AnswerOf(response);
        }
      }
    }
    for (int u = 0; u < kUsers; ++u) {
      const Answer &one = expected[{u, {"1", "calibration-1"}}], &other = expected[{u, {"1", "calibration-2"}}];
      EXPECT_EQ(one.logits, other.logits) << "a calibration leaves the logits alone";
      EXPECT_NE(one.probabilities, other.probabilities);
      EXPECT_NE(one.logits, (expected[{u, {"2", "calibration-1"}}].logits));
    }
    return expected;
  }

  ScratchDir scratch_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<v1::Models::Stub> models_;
};

TEST_F(Swap, UnderLoadNothingFailsAndNoAnswerIsMixed) {
  const int rounds = std::getenv("BACKSTORY_SWAPS") == nullptr ? 20 : std::atoi(std::getenv("BACKSTORY_SWAPS"));
  ASSERT_TRUE(Load("1").ok());
  const Answers expected = Reference();

  std::atomic<bool> stop{false};
  std::atomic<uint64_t> answered{0}, failed{0}, mixed{0};
  std::mutex mutex;
  std::set<Source> seen;      // guarded by mutex
  std::string first_problem;  // guarded by mutex
  std::vector<std::thread> callers;
  for (int c = 0; c < kUsers; ++c) {
    callers.emplace_back([&, c] {
      SystemClient client(server_->Connect());
      while (!stop) {
        const auto [status, response] = client.Rank(User(c), kNow, kItems);
        ++answered;
        const bool ok = status.ok();
        const bool whole = ok && expected.contains({c, SourceOf(response)}) &&
                           expected.at({c, SourceOf(response)}) == AnswerOf(response);
        if (!ok) ++failed;
        if (ok && !whole) ++mixed;
        std::lock_guard lock(mutex);
        if (ok) seen.insert(SourceOf(response));
        if (!whole && first_problem.empty()) {
          first_problem = ok ? response.version() + " " + response.config_version() : status.error_message();
        }
      }
    });
  }
  // Every step waits for some answers, so that all of it happens under load.
  const auto await = [&](uint64_t more) {
    const uint64_t until = answered + more;
    while (answered < until) std::this_thread::yield();
  };
  for (int round = 0; round < rounds; ++round) {
    const std::string to = round % 2 == 0 ? "1" : "2", from = round % 2 == 0 ? "2" : "1";
    EXPECT_TRUE(Label(to).ok());
    await(20);
    EXPECT_TRUE(Calibrate(to, 1 + static_cast<uint32_t>(round / 2) % 2).ok());
    await(20);
    if (round % 4 == 1) {  // rolled back, and forward again
      EXPECT_TRUE(Label(from).ok());
      await(10);
      EXPECT_TRUE(Label(to).ok());
    }
    EXPECT_TRUE(Unload(from).ok());  // requests in flight keep it
    await(10);
    EXPECT_TRUE(Load(from).ok());
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failed, 0u) << first_problem;
  EXPECT_EQ(mixed, 0u) << first_problem;
  EXPECT_EQ(seen.size(), 4u) << "both versions answered under both calibrations";
  std::printf("%d swaps: %llu answers, %llu failed, %llu mixed\n", rounds, static_cast<unsigned long long>(answered),
              static_cast<unsigned long long>(failed), static_cast<unsigned long long>(mixed));
}

// A release is no stampede: the users of the version before find their states ready.
TEST_F(Swap, ALabelMovesToAWarmVersion) {
  for (int u = 0; u < kUsers; ++u) EXPECT_EQ(Rank(User(u), "2").cache().source(), "rebuild");
  ASSERT_TRUE(Load("1").ok());
  v1::SetLabelRequest request;
  request.set_model("grab-tiny");
  request.set_label("stable");
  request.set_version("1");
  v1::SetLabelResponse response;
  ASSERT_TRUE(models_->SetLabel(SystemClient::Context(100).get(), request, &response).ok());
  EXPECT_EQ(response.previous_version(), "2");
  EXPECT_EQ(response.moved(), "warm");
  EXPECT_EQ(response.warm_share(), 1) << "of four users alike, 0.9 of the use is all of them";
  SystemClient client(server_->Connect());
  for (int u = 0; u < kUsers; ++u) {
    const auto [status, reply] = client.Rank(User(u), kNow, kItems);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(reply.version(), "1");
    EXPECT_EQ(reply.cache().source(), "hit");
  }
  request.set_version("2");
  request.set_at_once(true);
  ASSERT_TRUE(models_->SetLabel(SystemClient::Context().get(), request, &response).ok());
  EXPECT_EQ(response.moved(), "at_once");
  EXPECT_EQ(Rank(User(0), "2").cache().source(), "hit") << "its states are still there";
}

TEST_F(Swap, ABadCalibrationIsRefusedAndTheOldOneStays) {
  uint32_t previous = 0;
  EXPECT_EQ(SourceOf(Rank(User(0), "2")), Source("2", "calibration-2")) << "the newest is used at first";
  const v1::RankResponse before = Rank(User(0), "2");
  const std::filesystem::path folder = scratch_.path() / "models" / "grab-tiny" / "2" / "calibration";
  const auto refused = [&](uint32_t calibration, grpc::StatusCode code, const std::string& says) {
    const grpc::Status status = Calibrate("2", calibration);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_NE(status.error_message().find(says), std::string::npos) << status.error_message();
    const v1::RankResponse now = Rank(User(0), "2");
    EXPECT_EQ(SourceOf(now), SourceOf(before));
    EXPECT_EQ(AnswerOf(now), AnswerOf(before));
  };
  refused(0, grpc::StatusCode::INVALID_ARGUMENT, "calibration must be >= 1");
  refused(77, grpc::StatusCode::NOT_FOUND, "calibration/77.textproto");
  const auto put = [&](const std::string& text) { std::ofstream(folder / "3.textproto") << text; };
  put("version: 3 entries { task: \"click\" a: -1 }");
  refused(3, grpc::StatusCode::INVALID_ARGUMENT,
          "3.textproto: entry of scene \"\", task \"click\": a: -1 is not finite and > 0");
  put("version: 3 entries { task: \"buy\" }");
  refused(3, grpc::StatusCode::INVALID_ARGUMENT, "the model has no such task");
  put("version: 4 entries { task: \"click\" }");
  refused(3, grpc::StatusCode::INVALID_ARGUMENT, "version: 4, the file name says 3");
  put("version: 3 entries { task: \"click\" aa: 1 }");
  refused(3, grpc::StatusCode::INVALID_ARGUMENT, "aa");
  put("version: 3 entries { task: \"click\" } digest: \"0123456789abcdef\"");
  refused(3, grpc::StatusCode::DATA_LOSS, "digest: does not match");
  std::filesystem::remove(folder / "3.textproto");

  // Going back works, is idempotent, and survives a restart although a newer file is there. Cached states are kept.
  ASSERT_TRUE(Calibrate("2", 1, &previous).ok());
  EXPECT_EQ(previous, 2u);
  ASSERT_TRUE(Calibrate("2", 1, &previous).ok());
  EXPECT_EQ(previous, 1u);
  const v1::RankResponse back = Rank(User(0), "2");
  EXPECT_EQ(SourceOf(back), Source("2", "calibration-1"));
  EXPECT_EQ(AnswerOf(back).logits, AnswerOf(before).logits);
  EXPECT_NE(AnswerOf(back).probabilities, AnswerOf(before).probabilities);
  EXPECT_EQ(back.cache().source(), "hit");
  server_->Signal(SIGTERM);
  ASSERT_EQ(server_->Wait().code, 0) << server_->log();
  Start();
  EXPECT_EQ(SourceOf(Rank(User(0), "2")), Source("2", "calibration-1"));
  v1::ListModelsResponse list;
  ASSERT_TRUE(models_->List(SystemClient::Context().get(), v1::ListModelsRequest(), &list).ok());
  for (const auto& version : list.versions()) {
    EXPECT_EQ(version.calibration(), version.version() == "2" ? 1u : 0u) << "version 1 is not loaded";
  }
}

TEST_F(Swap, TheAdminCommandSetsACalibration) {
  std::string output;
  const std::string admin = server_->admin_address();
  EXPECT_EQ(RunBinary({"admin", "calibration", "--server", admin, "--model", "grab-tiny", "--version-id", "2",
                       "--calibration", "1"},
                      &output)
                .code,
            0)
      << output;
  EXPECT_NE(output.find("\"previous_calibration\":2"), std::string::npos) << output;
  EXPECT_EQ(SourceOf(Rank(User(0), "2")), Source("2", "calibration-1"));
  output.clear();
  EXPECT_NE(RunBinary({"admin", "calibration", "--server", admin, "--model", "grab-tiny", "--version-id", "2",
                       "--calibration", "9"},
                      &output)
                .code,
            0);
  EXPECT_NE(output.find("calibration/9.textproto"), std::string::npos) << output;
}

}  // namespace
}  // namespace backstory
