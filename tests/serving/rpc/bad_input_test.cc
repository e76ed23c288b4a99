// Every RPC against every kind of bad input: the status and the message that docs/reference/api.md promises.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <random>

#include "backstory/v1/retrieval.pb.h"
#include "tests/serving/rpc/fixture.h"

namespace backstory::testing {
namespace {

using ::testing::HasSubstr;
using grpc::StatusCode;

// One server for all cases: a bad request must leave it fit for the next one.
class BadInputTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    RpcServer::Options options;
    auto* range = options.config.mutable_store()->add_slots();
    range->set_first(0);
    range->set_last(kSlotCount - 2);
    range = options.config.mutable_store()->add_slots();
    range->set_first(kSlotCount - 1);
    range->set_last(kSlotCount - 1);
    range->set_owner("other-server");
    server = new RpcServer(options);
    channel = RpcServer::Connect(server->address());
    admin = RpcServer::Connect(server->admin_address());
  }
  static void TearDownTestSuite() {
    channel.reset();
    admin.reset();
    delete server;
  }
  void TearDown() override {
    v1::RankResponse response;
    // gRPC closes a connection that flooded it: the first call after that may still meet the dying one.
    grpc::Status status;
    for (int attempt = 0; attempt < 3; ++attempt) {
      status = v1::Ranking::NewStub(channel)->Rank(Deadline().get(), RankFor("fine"), &response);
      if (status.error_code() != StatusCode::UNAVAILABLE) break;
    }
    EXPECT_TRUE(status.ok()) << "the server is no longer well: " << status.error_message();
  }

  template <typename Service, typename Request, typename Response>
  static grpc::Status Call(grpc::Status (Service::*method)(grpc::ClientContext*, const Request&, Response*),
                           const Request& request, Response* out = nullptr) {
    using Api = std::conditional_t<std::is_same_v<Service, v1::Ranking::Stub>, v1::Ranking,
                std::conditional_t<std::is_same_v<Service, v1::History::Stub>, v1::History,
                std::conditional_t<std::is_same_v<Service, v1::Catalog::Stub>, v1::Catalog,
                std::conditional_t<std::is_same_v<Service, v1::Models::Stub>, v1::Models, v1::Store>>>>;
    constexpr bool is_admin = std::is_same_v<Api, v1::Models> || std::is_same_v<Api, v1::Store>;
    auto stub = Api::NewStub(is_admin ? admin : channel);
    Response response;
    return (stub.get()->*method)(Deadline().get(), request, out == nullptr ? &response : out);
  }

  static grpc::Status Rank(const v1::RankRequest& request, v1::RankResponse* out = nullptr) {
    return Call(&v1::Ranking::Stub::Rank, request, out);
  }
  static grpc::Status Append(const v1::AppendRequest& request, v1::AppendResponse* out = nullptr) {
    return Call(&v1::History::Stub::Append, request, out);
  }
  static v1::AppendRequest AppendFor(const std::string& user, const v1::Event& event) {
    v1::AppendRequest request;
    request.mutable_user()->set_user(user);
    *request.add_events() = event;
    return request;
  }
  // A user of the slot that is not ours.
  static std::string StrangerId() {
    for (int i = 0;; ++i) {
      if (SlotOf("stranger" + std::to_string(i)) == kSlotCount - 1) return "stranger" + std::to_string(i);
    }
  }

  static inline RpcServer* server = nullptr;
  static inline std::shared_ptr<grpc::Channel> channel, admin;
};

#define EXPECT_STATUS(call, code, text)                                                   \
  do {                                                                                    \
    const grpc::Status status = (call);                                                   \
    EXPECT_EQ(status.error_code(), StatusCode::code) << status.error_message();           \
    EXPECT_THAT(status.error_message(), HasSubstr(text));                                 \
  } while (false)

TEST_F(BadInputTest, RankFields) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto with = [](auto change) {
    v1::RankRequest request = RankFor("u");
    change(&request);
    return Rank(request);
  };
  EXPECT_STATUS(Rank(v1::RankRequest()), INVALID_ARGUMENT, "units.user");
  EXPECT_STATUS(with([](auto* r) { r->clear_candidates(); }), INVALID_ARGUMENT, "candidates.item_ids");
  EXPECT_STATUS(with([](auto* r) {
                  for (int i = 0; i < 10'001; ++i) r->mutable_candidates()->add_item_ids(i);
                }),
                INVALID_ARGUMENT, "10000");
  EXPECT_STATUS(with([](auto* r) { r->mutable_units()->mutable_user()->set_user(""); }), INVALID_ARGUMENT, "1..256");
  EXPECT_STATUS(with([](auto* r) { r->mutable_units()->mutable_user()->set_user(std::string(257, 'u')); }),
                INVALID_ARGUMENT, "1..256");
  EXPECT_STATUS(with([](auto* r) { r->set_namespace_("Upper Case"); }), INVALID_ARGUMENT, "namespace");
  EXPECT_STATUS(with([](auto* r) { r->set_scene(std::string(65, 's')); }), INVALID_ARGUMENT, "scene");
  EXPECT_STATUS(with([](auto* r) { r->set_now_us(-1); }), INVALID_ARGUMENT, "now_us");
  EXPECT_STATUS(with([](auto* r) { r->mutable_as_of()->set_event_time_us(-5); }), INVALID_ARGUMENT,
                "as_of.event_time_us");
  EXPECT_STATUS(with([](auto* r) { r->set_criticality(static_cast<v1::Criticality>(9)); }), INVALID_ARGUMENT,
                "criticality");
  EXPECT_STATUS(with([](auto* r) { r->set_explain_top(33); }), INVALID_ARGUMENT, "explain_top");
  EXPECT_STATUS(with([nan](auto* r) { (*r->mutable_features())["x"].set_number(nan); }), INVALID_ARGUMENT, "features");
  EXPECT_STATUS(with([](auto* r) { (*r->mutable_features())["x"]; }), INVALID_ARGUMENT, "features");
  EXPECT_STATUS(with([](auto* r) {
                  for (int i = 0; i < 257; ++i) (*r->mutable_features())["f" + std::to_string(i)].set_number(i);
                }),
                INVALID_ARGUMENT, "256");
}

TEST_F(BadInputTest, RankColumns) {
  const auto with = [](std::vector<float> values, const std::string& name, int times = 1) {
    v1::RankRequest request = RankFor("u");
    for (int i = 0; i < times; ++i) {
      auto* column = request.mutable_candidates()->add_numbers();
      column->set_name(name);
      column->mutable_values()->Assign(values.begin(), values.end());
    }
    return Rank(request);
  };
  EXPECT_TRUE(with({1, 2, 3}, "bid").ok());
  EXPECT_STATUS(with({1, std::nanf(""), 3}, "bid"), INVALID_ARGUMENT, "candidates.numbers[\"bid\"]");
  EXPECT_STATUS(with({1, std::numeric_limits<float>::infinity(), 3}, "bid"), INVALID_ARGUMENT, "finite");
  EXPECT_STATUS(with({1, 2}, "bid"), INVALID_ARGUMENT, "bid");
  EXPECT_STATUS(with({1, 2, 3}, "bid", 2), INVALID_ARGUMENT, "twice");
  EXPECT_STATUS(with({1, 2, 3}, std::string(65, 'n')), INVALID_ARGUMENT, "64");
  v1::RankRequest many = RankFor("u");
  for (int i = 0; i < 65; ++i) many.mutable_candidates()->add_texts()->set_name("c" + std::to_string(i));
  EXPECT_STATUS(Rank(many), INVALID_ARGUMENT, "64");
}

TEST_F(BadInputTest, RankTargets) {
  v1::RankRequest request = RankFor("u");
  request.mutable_model()->set_name("nothing");
  EXPECT_STATUS(Rank(request), NOT_FOUND, "nothing");
  request.mutable_model()->set_name("fake");
  request.mutable_model()->set_version("77");
  EXPECT_STATUS(Rank(request), NOT_FOUND, "77");
  request.mutable_model()->set_label("nightly");
  EXPECT_STATUS(Rank(request), NOT_FOUND, "nightly");
  EXPECT_STATUS(Rank(RankFor(StrangerId())), FAILED_PRECONDITION, "other-server");

  // Unknown users and items are no errors; they are flagged.
  v1::RankResponse response;
  ASSERT_TRUE(Rank(RankFor("nobody", {4711}), &response).ok());
  EXPECT_TRUE(response.unknown_user());
  EXPECT_THAT(response.unknown_items(), ::testing::ElementsAre(0));
  EXPECT_EQ(response.scores(0).calibrated_size(), 1);

  request = RankFor("u");
  (*request.mutable_parameters())["history_rowz"] = "1";
  EXPECT_STATUS(Rank(request), INVALID_ARGUMENT, "history_rowz");
  request.clear_parameters();
  (*request.mutable_parameters())["history_rows"] = "-1";
  EXPECT_STATUS(Rank(request), INVALID_ARGUMENT, "history_rows");
}

TEST_F(BadInputTest, BytesThatAreNoMessage) {
  // A string field that is not UTF-8: field 2 (scene) of RankRequest.
  grpc::GenericStub stub(channel);
  const auto call = [&](const std::string& bytes, const std::string& method) {
    grpc::Slice slice(bytes);
    grpc::ByteBuffer in(&slice, 1), out;
    grpc::CompletionQueue queue;
    auto context = Deadline();
    auto reader = stub.PrepareUnaryCall(context.get(), method, in, &queue);
    reader->StartCall();
    grpc::Status status;
    reader->Finish(&out, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    return status;
  };
  EXPECT_STATUS(call(std::string("\x12\x02\xff\xfe", 4), "/backstory.v1.Ranking/Rank"), INVALID_ARGUMENT,
                "RankRequest.scene must be UTF-8");
  EXPECT_STATUS(call("\xff\xff\xff\xff", "/backstory.v1.Ranking/Rank"), INVALID_ARGUMENT, "backstory.v1.RankRequest");
  EXPECT_STATUS(call("\xff\xff\xff\xff", "/backstory.v1.History/Append"), INVALID_ARGUMENT, "AppendRequest");
  EXPECT_STATUS(call("", "/backstory.v1.Ranking/Guess"), UNIMPLEMENTED, "Ranking/Guess");
  EXPECT_STATUS(call("", "/backstory.v1.Forecast/NextEvent"), UNIMPLEMENTED, "NextEvent");
  EXPECT_STATUS(call("\xff\xff\xff\xff", "/backstory.v1.Retrieval/Recommend"), INVALID_ARGUMENT, "RecommendRequest");
  v1::RecommendRequest recommend;
  recommend.mutable_units()->mutable_user()->set_user("u");
  recommend.set_count(5);
  EXPECT_STATUS(call(recommend.SerializeAsString(), "/backstory.v1.Retrieval/Recommend"), NOT_FOUND,
                "the server has 0 generative models");
  recommend.mutable_model()->set_name("fake");
  EXPECT_STATUS(call(recommend.SerializeAsString(), "/backstory.v1.Retrieval/Recommend"), FAILED_PRECONDITION,
                "ranks and does not recommend");
}

TEST_F(BadInputTest, OversizedMessage) {
  v1::RankRequest request = RankFor("u");
  auto* column = request.mutable_candidates()->add_texts();
  column->set_name("t");
  column->add_values(std::string(17 << 20, 'x'));
  EXPECT_STATUS(Rank(request), RESOURCE_EXHAUSTED, "16777216");
}

TEST_F(BadInputTest, MetadataFlood) {
  auto context = Deadline();
  for (int i = 0; i < 20; ++i) context->AddMetadata("x-flood-" + std::to_string(i), std::string(1'000, 'x'));
  v1::RankResponse response;
  const auto status = v1::Ranking::NewStub(channel)->Rank(context.get(), RankFor("u"), &response);
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
}

// Bytes that are no HTTP/2 at all, on both ports; TearDown then asks whether the server still ranks.
TEST_F(BadInputTest, GarbageOnTheSocket) {
  std::mt19937_64 random(5);
  for (const int port : {server->server->port(), server->server->admin_port()}) {
    for (int connection = 0; connection < 20; ++connection) {
      const int fd = socket(AF_INET, SOCK_STREAM, 0);
      ASSERT_GE(fd, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(static_cast<uint16_t>(port));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
      std::string bytes = connection % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "";
      for (int i = 0; i < 2'000; ++i) bytes.push_back(static_cast<char>(random()));
      (void)send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      close(fd);
    }
  }
}

TEST_F(BadInputTest, AppendFields) {
  const auto with = [](auto change) {
    v1::AppendRequest request = AppendFor("u", WireExposure(1, 2));
    change(request.mutable_events(0));
    return Append(request);
  };
  EXPECT_STATUS(Append(v1::AppendRequest()), INVALID_ARGUMENT, "user");
  v1::AppendRequest empty;
  empty.mutable_user()->set_user("u");
  EXPECT_STATUS(Append(empty), INVALID_ARGUMENT, "events");
  for (int i = 0; i < 10'001; ++i) *empty.add_events() = WireExposure(i + 1, 1);
  EXPECT_STATUS(Append(empty), INVALID_ARGUMENT, "10000");
  EXPECT_STATUS(with([](auto* e) { e->set_time_us(-1); }), INVALID_ARGUMENT, "events[0].time_us must be >= 0");
  EXPECT_STATUS(with([](auto* e) { e->set_time_us(INT64_MAX / 2); }), INVALID_ARGUMENT, "24 h");
  EXPECT_STATUS(with([](auto* e) { e->clear_kind(); }), INVALID_ARGUMENT, "events[0].kind");
  EXPECT_STATUS(with([](auto* e) { e->set_event_id(0); }), INVALID_ARGUMENT, "events[0].event_id");
  EXPECT_STATUS(with([](auto* e) { e->set_value(std::nanf("")); }), INVALID_ARGUMENT, "events[0].value");
  EXPECT_STATUS(with([](auto* e) { e->set_action(3); }), INVALID_ARGUMENT, "events[0].action");
  EXPECT_STATUS(with([](auto* e) { e->set_kind(v1::EVENT_KIND_ACTION); }), INVALID_ARGUMENT, "events[0].action");
  EXPECT_STATUS(with([](auto* e) { e->set_scene(std::string(65, 's')); }), INVALID_ARGUMENT, "events[0].scene");
  EXPECT_STATUS(with([](auto* e) { e->set_ingest_time_us(1); }), INVALID_ARGUMENT, "output only");
  EXPECT_STATUS(with([](auto* e) {
                  for (int i = 0; i < 33; ++i) e->add_context()->set_name("c");
                }),
                INVALID_ARGUMENT, "0..32");
  EXPECT_STATUS(with([](auto* e) { e->add_context()->set_name(""); }), INVALID_ARGUMENT, "context[0].name");
  EXPECT_STATUS(with([](auto* e) {
                  for (int i = 0; i < 17; ++i) e->add_embedding_ids(1);
                }),
                INVALID_ARGUMENT, "0..16");
  v1::AppendRequest odd = AppendFor("u", WireExposure(1, 2));
  odd.set_durability(static_cast<v1::Durability>(7));
  EXPECT_STATUS(Append(odd), INVALID_ARGUMENT, "durability");
  EXPECT_STATUS(Append(AppendFor(StrangerId(), WireExposure(1, 2))), FAILED_PRECONDITION, "other-server");
  // Nothing of a refused request was stored.
  v1::HeadRequest head;
  head.mutable_user()->set_user("u");
  v1::HeadResponse response;
  ASSERT_TRUE(Call(&v1::History::Stub::Head, head, &response).ok());
  EXPECT_EQ(response.head().seq(), 0u);
}

TEST_F(BadInputTest, HistoryReadsAndDeletes) {
  v1::GetHistoryRequest get;
  EXPECT_STATUS(Call(&v1::History::Stub::Get, get), INVALID_ARGUMENT, "user");
  get.mutable_user()->set_user("u");
  get.set_newest(100'001);
  EXPECT_STATUS(Call(&v1::History::Stub::Get, get), INVALID_ARGUMENT, "newest must be <= 100000");
  get.set_newest(1);
  get.set_from_us(-1);
  EXPECT_STATUS(Call(&v1::History::Stub::Get, get), INVALID_ARGUMENT, "from_us");
  get.set_from_us(0);
  get.mutable_user()->set_user(StrangerId());
  EXPECT_STATUS(Call(&v1::History::Stub::Get, get), FAILED_PRECONDITION, "slot 16383");

  v1::HeadRequest head;
  EXPECT_STATUS(Call(&v1::History::Stub::Head, head), INVALID_ARGUMENT, "user");

  v1::DeleteRequest erase;
  erase.mutable_user()->set_user("u");
  EXPECT_STATUS(Call(&v1::History::Stub::Delete, erase), INVALID_ARGUMENT, "exactly one selector");
  erase.set_all(true);
  erase.add_event_ids(1);
  EXPECT_STATUS(Call(&v1::History::Stub::Delete, erase), INVALID_ARGUMENT, "exactly one selector");
  erase.clear_all();
  erase.clear_event_ids();
  erase.mutable_range()->set_from_us(5);
  erase.mutable_range()->set_until_us(5);
  EXPECT_STATUS(Call(&v1::History::Stub::Delete, erase), INVALID_ARGUMENT, "range.until_us");

  v1::MergeRequest merge;
  merge.mutable_alias()->set_user("a");
  EXPECT_STATUS(Call(&v1::History::Stub::Merge, merge), INVALID_ARGUMENT, "primary");
  merge.mutable_primary()->set_user("a");
  EXPECT_STATUS(Call(&v1::History::Stub::Merge, merge), INVALID_ARGUMENT, "alias must differ");

  v1::PrefetchRequest prefetch;
  EXPECT_STATUS(Call(&v1::History::Stub::Prefetch, prefetch), INVALID_ARGUMENT, "user");
  prefetch.mutable_user()->set_user("u");
  prefetch.add_models()->set_name("nothing");
  EXPECT_STATUS(Call(&v1::History::Stub::Prefetch, prefetch), NOT_FOUND, "nothing");
  for (int i = 0; i < 17; ++i) prefetch.add_models();
  EXPECT_STATUS(Call(&v1::History::Stub::Prefetch, prefetch), INVALID_ARGUMENT, "0..16");
}

TEST_F(BadInputTest, Catalog) {
  v1::UpsertItemsRequest upsert;
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Upsert, upsert), INVALID_ARGUMENT, "items");
  auto* item = upsert.add_items();
  item->set_item_id(1);
  (*item->mutable_numbers())["price"] = std::nan("");
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Upsert, upsert), INVALID_ARGUMENT, "items[0].numbers[\"price\"]");
  item->clear_numbers();
  item->set_title(std::string(513, 't'));
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Upsert, upsert), INVALID_ARGUMENT, "items[0].title");
  item->set_title("fine");
  for (int i = 0; i < 65; ++i) item->add_categories("c");
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Upsert, upsert), INVALID_ARGUMENT, "items[0].categories");
  item->clear_categories();
  item->add_categories("drama");
  ASSERT_TRUE(Call(&v1::Catalog::Stub::Upsert, upsert).ok());
  item->set_categories(0, "comedy");
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Upsert, upsert), FAILED_PRECONDITION, "categor");

  v1::GetItemsRequest get;
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Get, get), INVALID_ARGUMENT, "item_ids");
  get.add_item_ids(1);
  get.add_item_ids(99);
  v1::GetItemsResponse items;
  ASSERT_TRUE(Call(&v1::Catalog::Stub::Get, get, &items).ok());
  EXPECT_EQ(items.items_size(), 1);
  EXPECT_THAT(items.unknown_ids(), ::testing::ElementsAre(99));
  for (int i = 0; i < 10'000; ++i) get.add_item_ids(1);
  EXPECT_STATUS(Call(&v1::Catalog::Stub::Get, get), INVALID_ARGUMENT, "10000");
}

TEST_F(BadInputTest, Admin) {
  v1::LoadModelRequest load;
  EXPECT_STATUS(Call(&v1::Models::Stub::Load, load), INVALID_ARGUMENT, "model");
  load.set_model("fake");
  load.set_version("../../etc");
  EXPECT_STATUS(Call(&v1::Models::Stub::Load, load), INVALID_ARGUMENT, "version");
  load.set_version("damaged");
  EXPECT_STATUS(Call(&v1::Models::Stub::Load, load), DATA_LOSS, "weights-00001");
  v1::ListModelsRequest list;
  list.set_model("nothing");
  EXPECT_STATUS(Call(&v1::Models::Stub::List, list), NOT_FOUND, "nothing");
  v1::UnloadModelRequest unload;
  unload.set_model("fake");
  unload.set_version("1");
  EXPECT_STATUS(Call(&v1::Models::Stub::Unload, unload), FAILED_PRECONDITION, "stable");
  unload.set_version("8");
  EXPECT_STATUS(Call(&v1::Models::Stub::Unload, unload), NOT_FOUND, "8");
  v1::SetLabelRequest label;
  label.set_model("fake");
  label.set_label("stable");
  label.set_version("damaged");
  EXPECT_STATUS(Call(&v1::Models::Stub::SetLabel, label), FAILED_PRECONDITION, "damaged");
  v1::CheckpointRequest checkpoint;
  checkpoint.set_name("../up");
  EXPECT_STATUS(Call(&v1::Store::Stub::Checkpoint, checkpoint), INVALID_ARGUMENT, "name");
  checkpoint.set_name("up");
  EXPECT_STATUS(Call(&v1::Store::Stub::Checkpoint, checkpoint), FAILED_PRECONDITION, "checkpoint_dir");
  v1::VerifyRequest verify;
  verify.set_max_users(1'000'001);
  EXPECT_STATUS(Call(&v1::Store::Stub::Verify, verify), INVALID_ARGUMENT, "max_users");
}

}  // namespace
}  // namespace backstory::testing
