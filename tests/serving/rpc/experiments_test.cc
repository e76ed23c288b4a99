// The service Experiments through a real channel: what each method answers, who may call it, and that replies of Rank
// follow.
#include <gmock/gmock.h>

#include <functional>
#include <map>

#include "backstory/v1/experiments.grpc.pb.h"
#include "tests/serving/rpc/fixture.h"

namespace backstory::testing {
namespace {

using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// user-1 is forced into the arm "short"; nobody else is exposed but on scene "home".
constexpr char kText[] = R"(hash_version: 1
holdout { buckets { first: 0 count: 1 } }
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    parameter: "history_rows"
    launch { name: "history_rows" value: "500" }
    experiment {
      name: "short-history"
      state: RUNNING
      targeting: "scene == 'home' and features.country == 'de'"
      buckets { first: 0 count: 10000 }
      ramp: 10000
      arm { name: "control" weight: 5000 }
      arm { name: "short" weight: 5000 parameters { name: "history_rows" value: "256" } }
    }
  }
}
override { id: "user-1" experiment: "short-history" arm: "short" }
)";

std::string Replaced(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

constexpr char kReader[] = "reader-token-0123456789", kOperator[] = "operator-token-0123456789";

class ExperimentsTest : public ::testing::Test {
 protected:
  ExperimentsTest() {
    WriteAll(dir_.path("reader"), std::string(kReader) + "\n");
    WriteAll(dir_.path("operator"), std::string(kOperator) + "\n");
    WriteAll(dir_.path("roles"),
             "token-file " + dir_.path("reader") + " reader\ntoken-file " + dir_.path("operator") + " operator\n");
    RpcServer::Options options;
    options.experiments = kText;
    options.config.mutable_admin()->set_roles_file(dir_.path("roles"));
    server_ = std::make_unique<RpcServer>(options);
    stub_ = v1::Experiments::NewStub(RpcServer::Connect(server_->admin_address()));
    ranking_ = v1::Ranking::NewStub(RpcServer::Connect(server_->address()));
  }

  static std::unique_ptr<grpc::ClientContext> As(const std::string& token) {
    auto context = Deadline();
    if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
    return context;
  }
  std::vector<std::string> Validate(const std::string& text) {
    v1::ValidateExperimentsRequest request;
    request.set_config_text(text);
    v1::ValidateExperimentsResponse response;
    const grpc::Status status = stub_->Validate(As(kReader).get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return {response.problems().begin(), response.problems().end()};
  }
  grpc::Status Apply(const std::string& text, const std::string& expected = "", std::string* version = nullptr) {
    v1::ApplyExperimentsRequest request;
    request.set_config_text(text);
    request.set_expected_config_version(expected);
    v1::ApplyExperimentsResponse response;
    const grpc::Status status = stub_->Apply(As(kOperator).get(), request, &response);
    if (version != nullptr) *version = response.config_version();
    return status;
  }
  v1::ExperimentsStatusResponse Status() {
    v1::ExperimentsStatusResponse response;
    const grpc::Status status = stub_->Status(As(kReader).get(), {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::ExplainAssignmentResponse Explain(const std::string& user, const std::string& scene,
                                        const std::string& country = "") {
    v1::ExplainAssignmentRequest request;
    request.mutable_units()->mutable_user()->set_user(user);
    request.set_scene(scene);
    if (!country.empty()) (*request.mutable_features())["country"].set_text(country);
    v1::ExplainAssignmentResponse response;
    const grpc::Status status = stub_->Explain(As(kReader).get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::RankResponse Rank(const std::string& user, const std::string& scene = "", const std::string& country = "") {
    v1::RankRequest request = RankFor(user);
    request.set_scene(scene);
    if (!country.empty()) (*request.mutable_features())["country"].set_text(country);
    v1::RankResponse response;
    const grpc::Status status = ranking_->Rank(Deadline().get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  // "experiment/arm/unit/reason" of every exposure.
  template <typename Response>
  static std::vector<std::string> Arms(const Response& response) {
    std::vector<std::string> arms;
    for (const auto& e : response.exposures()) {
      EXPECT_EQ(e.layer(), e.experiment() == "holdout" ? "holdout" : "length");
      arms.push_back(e.experiment() + "/" + e.arm() + "/" + e.unit() + "/" + e.reason());
    }
    return arms;
  }
  static std::string Rows(const v1::RankResponse& response) {
    for (const auto& p : response.parameters()) {
      if (p.name() == "history_rows") return p.value() + " " + p.source();
    }
    return "";
  }
  static std::string ConfigOf(const v1::RankResponse& response) {
    return response.config_version().substr(response.config_version().find('/') + 1);
  }

  TempDir dir_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Experiments::Stub> stub_;
  std::unique_ptr<v1::Ranking::Stub> ranking_;
};

TEST_F(ExperimentsTest, RepliesSayWhichArmAndWhy) {
  const v1::RankResponse forced = Rank("user-1");
  EXPECT_THAT(Arms(forced), ElementsAre("holdout/general/user/override", "short-history/short/user/override"));
  EXPECT_EQ(Rows(forced), "256 experiment");
  const v1::RankResponse elsewhere = Rank("user-2", "cart", "de");
  EXPECT_THAT(Arms(elsewhere), ElementsAre("holdout/general/user/holdout"));
  EXPECT_EQ(Rows(elsewhere), "500 experiment") << "the layer's launch value";
  const v1::RankResponse home = Rank("user-2", "home", "de");
  ASSERT_EQ(home.exposures_size(), 2);
  EXPECT_EQ(home.exposures(1).reason(), "targeted");
  EXPECT_EQ(Rows(home), home.exposures(1).arm() == "short" ? "256 experiment" : "500 experiment");
  EXPECT_EQ(ConfigOf(home), Status().config_version());
}

TEST_F(ExperimentsTest, ExplainGivesTheSameArmsAndTheWholePath) {
  for (const auto& [user, scene, country] : std::vector<std::tuple<std::string, std::string, std::string>>{
           {"user-1", "", ""}, {"user-2", "home", "de"}, {"user-2", "home", "fr"}, {"user-3", "cart", "de"}}) {
    const v1::ExplainAssignmentResponse explained = Explain(user, scene, country);
    EXPECT_EQ(Arms(explained), Arms(Rank(user, scene, country))) << user << " " << scene;
    EXPECT_EQ(explained.config_version(), Status().config_version());
    ASSERT_EQ(explained.reasons_size(), 3);
    EXPECT_THAT(explained.reasons(0), HasSubstr("holdout: user bucket"));
    EXPECT_THAT(explained.reasons(1), HasSubstr("domain: "));
    EXPECT_THAT(explained.reasons(2), HasSubstr("layer length: "));
  }
  EXPECT_THAT(Explain("user-2", "home", "fr").reasons(2), HasSubstr("does not match"));
  EXPECT_THAT(Explain("user-1", "").reasons(2), HasSubstr("override"));
  ASSERT_EQ(Explain("user-1", "").parameters_size(), 1);
  EXPECT_EQ(Explain("user-1", "").parameters(0).value(), "256");
  const uint64_t exposed = server_->exposures->Counts().size();
  Explain("user-4", "home", "de");
  EXPECT_EQ(server_->exposures->Counts().size(), exposed) << "explaining exposes nobody";
}

TEST_F(ExperimentsTest, ExplainRefusesBadRequestsByField) {
  const auto refused = [&](const std::function<void(v1::ExplainAssignmentRequest*)>& breaks, const std::string& says) {
    v1::ExplainAssignmentRequest request;
    request.mutable_units()->mutable_user()->set_user("u");
    breaks(&request);
    v1::ExplainAssignmentResponse response;
    const grpc::Status status = stub_->Explain(As(kReader).get(), request, &response);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << says;
    EXPECT_THAT(status.error_message(), HasSubstr(says));
  };
  refused([](auto* r) { r->clear_units(); }, "units.user");
  refused([](auto* r) { r->set_namespace_("Upper"); }, "namespace");
  refused([](auto* r) { r->set_scene(std::string(65, 's')); }, "scene");
  refused([](auto* r) { r->mutable_units()->set_device(std::string(257, 'd')); }, "units");
  refused([](auto* r) { (*r->mutable_features())["x"]; }, "features[\"x\"]");
}

TEST_F(ExperimentsTest, ValidateTellsEveryProblemAndChangesNothing) {
  EXPECT_THAT(Validate(kText), IsEmpty());
  const std::string version = Status().config_version();
  const auto problems =
      Validate(Replaced(Replaced(kText, "value: \"256\"", "value: \"-1\""), "weight: 5000", "weight: 4000"));
  ASSERT_GE(problems.size(), 2u);
  EXPECT_THAT(problems,
              ::testing::Contains(HasSubstr("config_text:17: domain[0].layer[0].experiment[0].arm[1].parameters")));
  EXPECT_THAT(problems, ::testing::Contains(HasSubstr("weights add up to 9000")));
  EXPECT_THAT(Validate("no_such_field: 1"), ElementsAre(HasSubstr("config_text")));
  EXPECT_THAT(Validate(Replaced(kText, "ramp: 10000", "ramp: 9999")),
              ElementsAre(HasSubstr("shrunk from 10000 to 9999")));
  EXPECT_EQ(Status().config_version(), version);
  EXPECT_EQ(Status().config_text(), kText);
}

TEST_F(ExperimentsTest, ApplyIsAtomicGuardedAndImmediate) {
  const std::string first = Status().config_version();
  const std::string killed = Replaced(kText, "RUNNING", "KILLED");
  std::string version;
  EXPECT_EQ(Apply(killed, "x0000").error_code(), StatusCode::ABORTED);
  EXPECT_THAT(Arms(Rank("user-1")), ElementsAre("holdout/general/user/override", "short-history/short/user/override"));
  const grpc::Status refused = Apply("hash_version: 7");
  EXPECT_EQ(refused.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.error_message(), HasSubstr("hash_version"));
  EXPECT_EQ(Apply(std::string((1 << 20) + 1, ' ')).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Status().config_version(), first);

  ASSERT_TRUE(Apply(killed, first, &version).ok());
  EXPECT_NE(version, first);
  const v1::RankResponse after = Rank("user-1");
  EXPECT_EQ(ConfigOf(after), version) << "every request that starts after the reply";
  EXPECT_THAT(Arms(after), ElementsAre("holdout/general/user/override"));
  EXPECT_EQ(Rows(after), "500 experiment");
  EXPECT_EQ(Status().config_text(), killed);
  EXPECT_EQ(ReadAll(server_->dir.path("experiments.textproto")), killed) << "after a restart the file decides";
  std::string again;
  ASSERT_TRUE(Apply(killed, "", &again).ok());
  EXPECT_EQ(again, version) << "idempotent by content";
}

TEST_F(ExperimentsTest, StatusCountsExposuresWithoutOverrides) {
  for (int i = 0; i < 3; ++i) Rank("user-1");
  for (int i = 0; i < 5; ++i) Rank("user-2", "home", "de");
  std::map<std::string, uint64_t> counts;
  const v1::ExperimentsStatusResponse status = Status();
  for (const auto& arm : status.arms())
    counts[arm.layer() + "/" + arm.experiment() + "/" + arm.arm()] = arm.exposures();
  const std::string arm = Rank("user-2", "home", "de").exposures(1).arm();
  EXPECT_EQ(counts["length/short-history/" + arm], 5u);
  EXPECT_EQ(counts["holdout/holdout/general"], 5u);
  EXPECT_EQ(counts.size(), 2u) << "the forced unit counts nowhere";
}

TEST_F(ExperimentsTest, EveryMethodAsksForItsRole) {
  v1::ValidateExperimentsResponse validate;
  v1::ApplyExperimentsRequest apply_request;
  apply_request.set_config_text(Replaced(kText, "RUNNING", "KILLED"));
  v1::ApplyExperimentsResponse apply;
  v1::ExperimentsStatusResponse status;
  v1::ExplainAssignmentResponse explain;
  const auto denied = [](const grpc::Status& end, const std::string& method, const std::string& role) {
    EXPECT_EQ(end.error_code(), StatusCode::PERMISSION_DENIED) << method;
    EXPECT_EQ(end.error_message(), "backstory.v1.Experiments/" + method + " needs the role \"" + role + "\"");
  };
  for (const std::string nobody : {"", "some-other-token-0123456789"}) {
    denied(stub_->Validate(As(nobody).get(), {}, &validate), "Validate", "reader");
    denied(stub_->Apply(As(nobody).get(), apply_request, &apply), "Apply", "operator");
    denied(stub_->Status(As(nobody).get(), {}, &status), "Status", "reader");
    denied(stub_->Explain(As(nobody).get(), {}, &explain), "Explain", "reader");
  }
  denied(stub_->Apply(As(kReader).get(), apply_request, &apply), "Apply", "operator");
  EXPECT_EQ(Status().config_text(), kText);
  EXPECT_TRUE(stub_->Status(As(kOperator).get(), {}, &status).ok()) << "an operator may read";
}

TEST(NoExperiments, TheServiceDoesNotExist) {
  RpcServer server;
  v1::ExperimentsStatusResponse response;
  const grpc::Status status =
      v1::Experiments::NewStub(RpcServer::Connect(server.admin_address()))->Status(Deadline().get(), {}, &response);
  EXPECT_EQ(status.error_code(), StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace backstory::testing
