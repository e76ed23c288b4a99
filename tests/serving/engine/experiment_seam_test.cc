// Experiments through the engine: layers set parameters, exposures are written and closed, and never for shadow work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving/engine/experiment.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FixedAssigner : public Assigner {
 public:
  Assignment Assign(const std::string&, const std::string&, const Units&, const FeatureMap&) const override {
    return Assignment{{layers.begin(), layers.end()}, "e7", nullptr};
  }
  std::vector<LayerAssignment> layers;
};

class KeptExposures : public ExposureSink {
 public:
  void Write(const ExposureRecord& record) override { written.push_back(record); }
  void Finish(const ExposureFinal& record) override { finished.push_back(record); }
  std::vector<ExposureRecord> written;
  std::vector<ExposureFinal> finished;
};

class KeptRequests : public RequestRecorder {
 public:
  void Record(const RankQuery& query, const RankReply& reply) override {
    users.push_back(query.units.user);
    seqs.push_back(reply.seq);
  }
  std::vector<std::string> users;
  std::vector<uint64_t> seqs;
};

class ExperimentSeamTest : public ::testing::Test {
 protected:
  ExperimentSeamTest()
      : assigner_(std::make_shared<FixedAssigner>()),
        sink_(std::make_shared<KeptExposures>()),
        recorder_(std::make_shared<KeptRequests>()) {
    assigner_->layers = {{{{"history_rows", "1"}}, {{"length", "short", "b", "user"}}}};
  }
  void Start(std::map<std::string, std::string> parameters = {}) {
    EngineOptions options;
    options.assigner = assigner_;
    options.exposure_sink = sink_;
    options.recorder = recorder_;
    harness_ = std::make_unique<Harness>(
        std::map<std::string, std::shared_ptr<const ServedModel>>{
            {"1", Served(std::make_shared<FakeModel>(FakeConfig()), "1")},
            {"2", Served(std::make_shared<FakeModel>(FakeConfig()), "2")}},
        std::move(parameters), 0, std::move(options));
    ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
    harness_->Append("a", {Shown(1, kNow - 20 * kSecond, 1), Shown(2, kNow - 10 * kSecond, 2)});
  }
  std::shared_ptr<FixedAssigner> assigner_;
  std::shared_ptr<KeptExposures> sink_;
  std::shared_ptr<KeptRequests> recorder_;
  std::unique_ptr<Harness> harness_;
};

TEST_F(ExperimentSeamTest, AnArmSetsParametersAndIsExposed) {
  Start();
  const auto reply = harness_->Rank(Query("a"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->rows_visible[0], 1u);
  EXPECT_EQ(reply->config_version, "calibration-1/e7");
  ASSERT_EQ(reply->exposures.size(), 1u);
  EXPECT_EQ(reply->exposures[0].arm, "b");
  ASSERT_EQ(sink_->written.size(), 1u);
  EXPECT_EQ(sink_->written[0].config_version, "e7");
  ASSERT_EQ(sink_->finished.size(), 1u);
  EXPECT_EQ(sink_->finished[0].id, sink_->written[0].id);
  EXPECT_EQ(sink_->finished[0].status, "OK");
  EXPECT_EQ(sink_->finished[0].version, "1");
  EXPECT_THAT(sink_->finished[0].parameters,
              ::testing::Contains(EffectiveParameter{"history_rows", "1", "experiment"}));
}

TEST_F(ExperimentSeamTest, ARequestOverridesAnArm) {
  Start();
  RankQuery query = Query("a");
  query.parameters["history_rows"] = "100";
  EXPECT_EQ(harness_->Rank(query)->rows_visible[0], 2u);
}

TEST_F(ExperimentSeamTest, AnArmMayPinAVersion) {
  assigner_->layers[0].parameters = {{"model_version", "2"}};
  Start();
  EXPECT_EQ(harness_->Rank(Query("a"))->version, "2");
  EXPECT_EQ(sink_->written[0].version, "2");
  RankQuery query = Query("a");
  query.model.version = "1";
  EXPECT_EQ(harness_->Rank(query)->version, "1");
}

TEST_F(ExperimentSeamTest, ShadowAndCounterfactualCallsWriteNothing) {
  Start();
  RankQuery shadow = Query("a");
  shadow.criticality = Criticality::kShadow;
  EXPECT_EQ(harness_->Rank(shadow)->rows_visible[0], 1u);  // the arm applies
  RankQuery counterfactual = Query("a");
  counterfactual.suppress_exposure = true;
  EXPECT_THAT(harness_->Rank(counterfactual)->exposures, IsEmpty());
  harness_->engine->Prefetch({"default", "a"}, {}, INT64_MAX, [](auto) {});
  harness_->Append("a", {Shown(3, kNow - kSecond, 2)});
  harness_->RunAll();
  EXPECT_THAT(sink_->written, IsEmpty());
  EXPECT_THAT(sink_->finished, IsEmpty());
}

// The exposure is written before anything that an arm decided can shed the request, and says how it ended.
TEST_F(ExperimentSeamTest, AShedRequestWasExposedAndSaysSo) {
  Start({{"queue_requests", "1"}});
  harness_->engine->Rank(Query("a"), [](auto) {});
  harness_->engine->Rank(Query("a"), [](auto reply) { EXPECT_FALSE(reply.ok()); });
  EXPECT_EQ(sink_->written.size(), 2u);
  ASSERT_EQ(sink_->finished.size(), 1u);
  EXPECT_EQ(sink_->finished[0].status, "UNAVAILABLE");
  EXPECT_EQ(sink_->finished[0].id, sink_->written[1].id);
  harness_->RunAll();
  EXPECT_EQ(sink_->finished.size(), 2u);
}

TEST_F(ExperimentSeamTest, AnInvalidLayerFailsAloneAndIsCounted) {
  assigner_->layers.insert(assigner_->layers.begin(),
                           LayerAssignment{{{"threads", "3"}}, {{"broken", "x", "y", "user"}}});
  Start();
  const auto reply = harness_->Rank(Query("a"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->exposures.size(), 1u);
  EXPECT_EQ(harness_->metrics.Value("backstory_experiment_layer_errors_total"), 1);
}

TEST_F(ExperimentSeamTest, RecordsTheSampledFraction) {
  Start({{"request_log_fraction", "0.5"}});
  for (uint64_t i = 1; i <= 200; ++i) {
    RankQuery query = Query("a");
    query.request_id = i;
    ASSERT_TRUE(harness_->Rank(query).ok());
  }
  EXPECT_GT(recorder_->users.size(), 60u);
  EXPECT_LT(recorder_->users.size(), 140u);
  EXPECT_EQ(recorder_->seqs[0], 1u);
}

}  // namespace
}  // namespace backstory::testing
