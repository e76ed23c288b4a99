// Retrieval.Recommend on the real server: over gRPC and the command line, ranked and not, with new items across a
// restart.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <set>
#include <thread>

#include "backstory/v1/admin.grpc.pb.h"
#include "backstory/v1/catalog.grpc.pb.h"
#include "backstory/v1/retrieval.grpc.pb.h"
#include "tests/models/glass_version_fixture.h"
#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kStart = 1'600'000'000'000'000, kMinute = 60'000'000, kLater = kStart + 1'000 * kMinute;

class Recommend : public testing::Test {
 protected:
  void SetUp() override {
    const std::string models = (scratch_.path() / "models").string();
    glass::MustWrite(parts_, models + "/tiny/1");
    std::string output;
    ASSERT_EQ(RunBinary({"model", "init-random", "grab-tiny", "--out", models + "/grab-tiny/1"}, &output).code, 0)
        << output;
    server_ = std::make_unique<ServerProcess>(ServerProcess::Options{
        .store = scratch_.path() / "store", .models = models, .arguments = {"--create-store"}, .environment = {}});
    Start();
  }
  void Start() {
    ASSERT_TRUE(server_->Start()) << server_->log();
    channel_ = server_->Connect();
    retrieval_ = v1::Retrieval::NewStub(channel_);
    catalog_ = v1::Catalog::NewStub(channel_);
  }
  v1::RecommendRequest For(const std::string& user, uint32_t count = 5) {
    v1::RecommendRequest request;
    request.set_namespace_(kSystemNamespace);
    request.mutable_units()->mutable_user()->set_user(user);
    request.set_now_us(kLater);
    request.set_count(count);
    return request;
  }
  v1::RecommendResponse Ask(const v1::RecommendRequest& request) {
    v1::RecommendResponse response;
    const grpc::Status status = retrieval_->Recommend(SystemClient::Context().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  std::string Refusal(const v1::RecommendRequest& request, grpc::StatusCode code) {
    v1::RecommendResponse response;
    const grpc::Status status = retrieval_->Recommend(SystemClient::Context().get(), request, &response);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    return status.error_message();
  }
  void AppendRatings(const std::string& user, int count) {
    std::vector<v1::Event> events;
    for (int i = 0; i < count; ++i) {
      v1::Event event = Exposure(1 + static_cast<uint64_t>(i), kStart + i * kMinute, 1000 + 3 * (i * 7 % 60));
      event.set_kind(v1::EVENT_KIND_ACTION);
      event.set_action(v1::ACTION_TYPE_RATING);
      event.set_value(5);
      events.push_back(event);
    }
    const auto [status, response] = SystemClient(channel_).Append(user, events);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  // What the version's own golden path says.
  std::vector<uint64_t> Expected(int ratings, size_t beam, size_t count) {
    const auto loaded = glass::LoadGlassVersion((scratch_.path() / "models/tiny/1").string());
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    glass::GoldenCase golden{"", {}, kLater, beam, count, true, {}};
    for (int i = 0; i < ratings; ++i) {
      golden.events.push_back(
          glass::RatingOf(1 + static_cast<uint64_t>(i), 1000 + 3 * (i * 7 % 60), kStart + i * kMinute));
    }
    return glass::RunGolden(*(*loaded)->searcher, *(*loaded)->catalogue, golden)->items;
  }

  const glass::VersionParts parts_ = glass::MakeParts();
  ScratchDir scratch_;
  std::unique_ptr<ServerProcess> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Retrieval::Stub> retrieval_;
  std::unique_ptr<v1::Catalog::Stub> catalog_;
};

TEST_F(Recommend, AnswersAsTheVersionsGoldenPath) {
  AppendRatings("ann", 25);
  const v1::RecommendResponse response = Ask(For("ann", 3));
  const std::vector<uint64_t> want = Expected(25, 8, 3);
  ASSERT_EQ(response.items_size(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(response.items(i).item_id(), want[static_cast<size_t>(i)]);
  EXPECT_EQ(response.model(), "tiny");
  EXPECT_EQ(response.version(), "1");
  EXPECT_EQ(response.beam(), 8u);
  EXPECT_EQ(response.rows_visible(0), 6u);
  EXPECT_EQ(response.rows_visible(1), 19u);
  EXPECT_FALSE(response.partial());
  EXPECT_EQ(response.items(0).sid_size(), 3);
  EXPECT_EQ(response.timings_size(), 0);
  EXPECT_TRUE(Ask(For("nobody")).unknown_user());
  v1::RecommendRequest full = For("ann", 3);
  full.set_explain_top(4);
  full.set_stage_timings(true);
  full.mutable_rank();
  const v1::RecommendResponse ranked = Ask(full);
  EXPECT_EQ(ranked.rank_model(), "grab-tiny");
  EXPECT_EQ(ranked.items(0).ranked(0).task(), "click");
  EXPECT_GE(ranked.items(0).score(), ranked.items(1).score());
  std::set<std::string> stages;
  for (const auto& timing : ranked.timings()) stages.insert(timing.stage());
  EXPECT_EQ(stages, (std::set<std::string>{"queue", "store", "state", "decode", "items", "rank"}));
  EXPECT_EQ(ranked.cache().source(), "hit");
  EXPECT_THAT(server_->Scrape(), HasSubstr("grpc_method=\"backstory.v1.Retrieval/Recommend\""));
  // Ranking still finds its model without a name, and says what the other one is for.
  EXPECT_TRUE(SystemClient(channel_).Rank("ann", kLater, {1, 2}).first.ok());
  v1::RankRequest wrong;
  wrong.mutable_units()->mutable_user()->set_user("ann");
  wrong.mutable_model()->set_name("tiny");
  wrong.mutable_candidates()->add_item_ids(1);
  v1::RankResponse ignored;
  const grpc::Status status = SystemClient(channel_).ranking().Rank(SystemClient::Context().get(), wrong, &ignored);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("ask Retrieval.Recommend"));
}

TEST_F(Recommend, RefusesByNameAndSaysWhatIsPartial) {
  const auto with = [&](auto edit) {
    v1::RecommendRequest request = For("bob");
    edit(&request);
    return request;
  };
  constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  EXPECT_THAT(Refusal(with([](auto* r) { r->set_count(0); }), kInvalid),
              HasSubstr("count is 0, must be within 1..1000"));
  EXPECT_THAT(Refusal(with([](auto* r) { r->set_beam(1025); }), kInvalid),
              HasSubstr("beam is 1025, must be within 0..1024"));
  EXPECT_THAT(Refusal(with([](auto* r) { r->clear_units(); }), kInvalid), HasSubstr("units.user"));
  EXPECT_THAT(Refusal(with([](auto* r) { r->set_explain_top(33); }), kInvalid), HasSubstr("explain_top"));
  EXPECT_THAT(Refusal(with([](auto* r) { r->set_now_us(-1); }), kInvalid), HasSubstr("now_us"));
  EXPECT_THAT(Refusal(with([](auto* r) {
                        for (int i = 0; i < 65; ++i) r->add_include_categories("x");
                      }),
                      kInvalid),
              HasSubstr("include_categories"));
  EXPECT_THAT(Refusal(with([](auto* r) { r->mutable_model()->set_version("9"); }), grpc::StatusCode::NOT_FOUND),
              HasSubstr("model tiny has no version \"9\""));
  EXPECT_THAT(Refusal(with([](auto* r) { r->add_include_categories("Opera"); }), grpc::StatusCode::FAILED_PRECONDITION),
              HasSubstr("no item is left"));
  v1::RecommendRequest many = For("bob", 1000);
  const v1::RecommendResponse partial = Ask(many);
  EXPECT_TRUE(partial.partial());
  EXPECT_THAT(partial.partial_reason(), HasSubstr("of 1000 items: beam 8 found 8 semantic IDs"));
}

TEST_F(Recommend, NewItemsSurviveARestart) {
  v1::UpsertItemsRequest upsert;
  upsert.set_namespace_(kSystemNamespace);
  auto* item = upsert.add_items();
  item->set_item_id(4711);
  item->set_title("A new film");
  for (int i = 0; i < 8; ++i) item->add_embedding(parts_.embeddings[static_cast<size_t>(i)]);
  v1::UpsertItemsResponse upserted;
  grpc::Status status = catalog_->Upsert(SystemClient::Context().get(), upsert, &upserted);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(upserted.encoded_size(), 1);
  for (int l = 0; l < 3; ++l) EXPECT_EQ(upserted.encoded(0).sid(l), parts_.sids[0][static_cast<size_t>(l)]);
  const auto found = [&] {
    v1::RecommendRequest request = For("cid", 100);
    request.set_beam(200);
    const v1::RecommendResponse response = Ask(request);
    for (const auto& each : response.items()) {
      if (each.item_id() == 4711) return true;
    }
    return false;
  };
  EXPECT_TRUE(found());
  // A later upsert without it keeps the embedding; another one is refused.
  item->clear_embedding();
  item->set_title("A film with a better title");
  ASSERT_TRUE(catalog_->Upsert(SystemClient::Context().get(), upsert, &upserted).ok());
  server_->Kill();
  Start();
  EXPECT_TRUE(found());
  for (int i = 0; i < 8; ++i) item->add_embedding(0.5f);
  status = catalog_->Upsert(SystemClient::Context().get(), upsert, &upserted);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("embedding is immutable"));
  item->set_item_id(4712);
  item->add_embedding(0.5f);
  status = catalog_->Upsert(SystemClient::Context().get(), upsert, &upserted);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("items[0].embedding has 9 numbers, model tiny takes 8"));
  item->set_embedding(0, std::nanf(""));
  status = catalog_->Upsert(SystemClient::Context().get(), upsert, &upserted);
  EXPECT_THAT(status.error_message(), HasSubstr("items[0].embedding[0] must be finite"));

  std::string output;
  const ExitState end =
      RunBinary({"recommend", "--server", server_->address(), "--namespace", kSystemNamespace, "--user", "cid",
                 "--count", "100", "--beam", "200", "--now-us", std::to_string(kLater)},
                &output);
  EXPECT_EQ(end.code, 0) << output;
  EXPECT_THAT(output, HasSubstr("A film with a better title"));
  EXPECT_EQ(RunBinary({"recommend", "--server", server_->address(), "--user", "cid", "--count", "0"}, &output).code, 1);
  EXPECT_THAT(output, HasSubstr("count is 0"));
}

TEST_F(Recommend, ABrokenVersionLeavesTheOldOneServing) {
  AppendRatings("dan", 12);
  const v1::RecommendResponse before = Ask(For("dan"));
  glass::VersionParts broken = parts_;
  broken.sids[0][0] = static_cast<uint16_t>((broken.sids[0][0] + 1) % 6);
  glass::MustWrite(broken, (scratch_.path() / "models/tiny/2").string());
  const auto models = v1::Models::NewStub(server_->ConnectAdmin());
  v1::LoadModelRequest load;
  load.set_model("tiny");
  load.set_version("2");
  v1::LoadModelResponse loaded;
  const grpc::Status status = models->Load(SystemClient::Context(60).get(), load, &loaded);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("sid_version is"));
  const v1::RecommendResponse after = Ask(For("dan"));
  EXPECT_EQ(after.version(), "1");
  EXPECT_EQ(after.items(0).item_id(), before.items(0).item_id());
  std::string output;
  EXPECT_EQ(RunBinary({"model", "verify", (scratch_.path() / "models/tiny/1").string()}, &output).code, 0) << output;
  EXPECT_THAT(output, HasSubstr("goldens: 3 cases"));
  EXPECT_EQ(RunBinary({"model", "verify", (scratch_.path() / "models/tiny/2").string()}, &output).code, 1) << output;
}

}  // namespace
}  // namespace backstory
