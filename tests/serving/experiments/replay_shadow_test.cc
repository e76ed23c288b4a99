// Replay and shadow traffic, through a real engine over fakes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <future>

#include "serving/engine/experiments/replay.h"
#include "serving/engine/experiments/shadow.h"
#include "serving/engine/request_log.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::HasSubstr;

class KeptExposures : public ExposureSink {
 public:
  void Write(const ExposureRecord& record) override { written.push_back(record); }
  std::vector<ExposureRecord> written;
};

class ReplayTest : public ::testing::Test {
 protected:
  ReplayTest() : assigner_(std::make_shared<ReplayAssigner>()), sink_(std::make_shared<KeptExposures>()) {
    EngineOptions options;
    options.assigner = assigner_;
    options.exposure_sink = sink_;
    harness_ = std::make_unique<Harness>(
        std::map<std::string, std::shared_ptr<const ServedModel>>{
            {"1", Served(std::make_shared<FakeModel>(FakeConfig()), "1")},
            {"2", Served(std::make_shared<FakeModel>(FakeConfig()), "2")}},
        std::map<std::string, std::string>{}, 1, std::move(options));
    for (uint64_t n = 1; n <= 20; ++n) Append(Shown(n, kNow - static_cast<int64_t>(100 - n) * kSecond, n));
  }
  void Append(const Event& event) { harness_->Append("a", {event}); }

  RankReply Answer(const RankQuery& query) {
    std::promise<absl::StatusOr<RankReply>> promise;
    harness_->engine->Rank(query, [&](absl::StatusOr<RankReply> reply) { promise.set_value(std::move(reply)); });
    auto reply = promise.get_future().get();
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? *reply : RankReply{};
  }
  // What the request log keeps of a request that was answered now under these parameters.
  RecordedRequest Record(std::map<std::string, std::string> parameters = {}) {
    assigner_->Use(std::move(parameters));
    const RankQuery query = Query("a", {1, 2, 3}, kNow);
    auto recorded = RecordedFromJsonLine(ToJsonLine(query, Answer(query)));
    EXPECT_TRUE(recorded.ok()) << recorded.status();
    return *recorded;
  }
  ReplayResult Again(const RecordedRequest& recorded, const std::map<std::string, std::string>& changes = {}) {
    assigner_->Use({});
    auto result = Replay(harness_->engine.get(), assigner_.get(), recorded, changes);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ReplayResult{};
  }

  std::shared_ptr<ReplayAssigner> assigner_;
  std::shared_ptr<KeptExposures> sink_;
  std::unique_ptr<Harness> harness_;
};

TEST_F(ReplayTest, IsEqualBitForBit) {
  const ReplayResult result = Again(Record());
  EXPECT_EQ(result.outcome, ReplayOutcome::kEqual);
  EXPECT_EQ(result.largest_difference, 0);
}

TEST_F(ReplayTest, AppliesTheParametersThatWereInForce) {
  const RecordedRequest recorded = Record({{"history_rows", "3"}, {"state_events_max", "8192"}});
  EXPECT_EQ(recorded.parameters.at("history_rows"), "3");
  const ReplayResult result = Again(recorded);
  EXPECT_EQ(result.outcome, ReplayOutcome::kEqual);
  EXPECT_EQ(result.reply.rows_visible[0], 3u);
}

TEST_F(ReplayTest, AnotherArmGivesAnotherAnswerAndNoExposure) {
  const ReplayResult result = Again(Record(), {{"history_rows", "2"}});
  EXPECT_EQ(result.outcome, ReplayOutcome::kDifferent);
  EXPECT_GT(result.largest_difference, 0);
  EXPECT_EQ(result.reply.rows_visible[0], 2u);
  EXPECT_TRUE(sink_->written.empty());
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  EXPECT_EQ(Again(Record(), {{"model_version", "2"}}).reply.version, "2");
}

TEST_F(ReplayTest, HidesWhatCameLater) {
  const RecordedRequest recorded = Record();
  harness_->clock.Advance(kSecond);
  Append(Shown(99, kNow - 50 * kSecond, 7));  // late: before the request's time, stored after it
  const ReplayResult result = Again(recorded);
  EXPECT_EQ(result.outcome, ReplayOutcome::kEqualAsKnown);
}

TEST_F(ReplayTest, ACorrectedHistoryCannotBeCompared) {
  const RecordedRequest recorded = Record();
  Event gone = Shown(5, kNow - 95 * kSecond, 5);
  gone.revision = 1;
  gone.tombstone = true;
  Append(gone);
  EXPECT_EQ(Again(recorded).outcome, ReplayOutcome::kHistoryGone);
}

TEST_F(ReplayTest, AWrongScoreIsFound) {
  RecordedRequest recorded = Record();
  float& score = recorded.scores.begin()->second[1];
  score = std::nextafter(score, 2.0f);
  EXPECT_EQ(Again(recorded).outcome, ReplayOutcome::kDifferent) << "one bit";
}

TEST_F(ReplayTest, ALineWithoutItsAnswerIsRefused) {
  const auto parsed = RecordedFromJsonLine(R"({"user":"a","items":["1"],"now_us":5})");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("model"));
  EXPECT_FALSE(RecordedFromJsonLine("{").ok());
}

// Takes every request, answers when told to.
class ShadowTest : public ::testing::Test {
 protected:
  void Start(double fraction, bool load = true) {
    EngineOptions options;
    sink_ = std::make_shared<KeptExposures>();
    options.exposure_sink = sink_;
    harness_ = std::make_unique<Harness>(
        std::map<std::string, std::shared_ptr<const ServedModel>>{
            {"1", Served(std::make_shared<FakeModel>(FakeConfig()), "1")},
            {"2", Served(std::make_shared<FakeModel>(FakeConfig()), "2")}},
        std::map<std::string, std::string>{}, 2, std::move(options));
    if (load) {
      ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
    }
    harness_->Append("a", {Shown(1, kNow - kSecond, 1)});
    auto engine = MakeShadowingEngine(std::move(harness_->engine), {"fake", "2", fraction}, &harness_->metrics);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void Rank(RankQuery query) {
    std::promise<absl::StatusOr<RankReply>> promise;
    engine_->Rank(std::move(query), [&](absl::StatusOr<RankReply> reply) { promise.set_value(std::move(reply)); });
    const auto reply = promise.get_future().get();
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->version, "1") << "the caller gets the served version's answer";
  }
  double Value(const std::string& name) const { return harness_->metrics.Value(name); }

  std::shared_ptr<KeptExposures> sink_;
  std::unique_ptr<Harness> harness_;
  std::unique_ptr<Engine> engine_;
};

constexpr char kOk[] = "backstory_shadow_requests_total{result=\"ok\"}";
constexpr char kFailed[] = "backstory_shadow_requests_total{result=\"failed\"}";

TEST_F(ShadowTest, ScoresOnlineRequestsASecondTimeAndExposesNobody) {
  Start(1);
  for (uint64_t n = 1; n <= 10; ++n) {
    RankQuery query = Query("a");
    query.request_id = n;
    Rank(query);
  }
  RankQuery batch = Query("a");
  batch.criticality = Criticality::kBatch;
  Rank(batch);
  ASSERT_TRUE(engine_->Drain(10 * kSecond).ok());
  EXPECT_EQ(Value(kOk), 10) << "BATCH has no shadow";
  EXPECT_EQ(Value("backstory_shadow_score_difference"), 10);
  EXPECT_TRUE(sink_->written.empty());
}

TEST_F(ShadowTest, AVersionThatIsNotThereHurtsNobody) {
  Start(1, false);
  Rank(Query("a"));
  ASSERT_TRUE(engine_->Drain(10 * kSecond).ok());
  EXPECT_EQ(Value(kFailed), 1);
}

TEST_F(ShadowTest, TakesItsFraction) {
  Start(0.25);
  for (uint64_t n = 1; n <= 200; ++n) {
    RankQuery query = Query("a");
    query.request_id = n;
    Rank(query);
  }
  ASSERT_TRUE(engine_->Drain(10 * kSecond).ok());
  EXPECT_GT(Value(kOk), 20);
  EXPECT_LT(Value(kOk), 85);
}

TEST(Shadow, RefusesWhatMakesNoSense) {
  MemoryMetrics metrics;
  EXPECT_FALSE(MakeShadowingEngine(nullptr, {"m", "1", 1.5}, &metrics).ok());
  EXPECT_FALSE(MakeShadowingEngine(nullptr, {"m", "1", std::nan("")}, &metrics).ok());
  EXPECT_FALSE(MakeShadowingEngine(nullptr, {"m", "", 0.5}, &metrics).ok());
}

}  // namespace
}  // namespace backstory::testing
