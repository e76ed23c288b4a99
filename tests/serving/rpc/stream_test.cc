// The two streams: replies by id in any order, one ack per batch in order, errors that leave the stream open, flow
// control.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>

#include <map>
#include <set>
#include <thread>

#include "tests/serving/rpc/fixture.h"

namespace backstory::testing {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

v1::AppendStreamRequest Batch(uint64_t batch_id, const std::string& user, std::vector<v1::Event> events) {
  v1::AppendStreamRequest request;
  request.set_batch_id(batch_id);
  auto* part = request.add_users();
  part->mutable_user()->set_user(user);
  for (v1::Event& event : events) *part->add_events() = std::move(event);
  return request;
}

std::vector<v1::Event> Exposures(uint64_t first_id, int count) {
  std::vector<v1::Event> events;
  for (int i = 0; i < count; ++i) {
    events.push_back(WireExposure(first_id + static_cast<uint64_t>(i), 7, kRpcNow - 1'000'000'000 + 1000 * i));
  }
  return events;
}

TEST(RankStream, AnswersEveryRequestByItsId) {
  RpcServer server;
  auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->RankStream(context.get());
  constexpr int kRequests = 300;  // several windows
  std::thread writer([&] {
    for (int i = 1; i <= kRequests; ++i) {
      v1::RankRequest request = RankFor("user" + std::to_string(i % 7), {static_cast<uint64_t>(i), 2});
      request.set_request_id(static_cast<uint64_t>(i));
      ASSERT_TRUE(stream->Write(request));
    }
    stream->WritesDone();
  });
  std::set<uint64_t> seen;
  v1::RankStreamResponse reply;
  while (stream->Read(&reply)) {
    ASSERT_TRUE(reply.has_response()) << reply.error().message();
    EXPECT_EQ(reply.response().request_id(), reply.request_id());
    EXPECT_EQ(reply.response().scores(0).calibrated_size(), 2);
    EXPECT_TRUE(seen.insert(reply.request_id()).second);
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(seen.size(), static_cast<size_t>(kRequests));
}

TEST(RankStream, OneBadRequestLeavesTheOthersAlone) {
  RpcServer server;
  auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->RankStream(context.get());
  v1::RankRequest good = RankFor("u");
  good.set_request_id(1);
  v1::RankRequest bad = good;
  bad.set_request_id(2);
  bad.clear_candidates();
  v1::RankRequest nameless = good;
  nameless.clear_request_id();
  ASSERT_TRUE(stream->Write(bad));
  ASSERT_TRUE(stream->Write(nameless));
  ASSERT_TRUE(stream->Write(good));
  stream->WritesDone();
  std::map<uint64_t, v1::RankStreamResponse> replies;
  v1::RankStreamResponse reply;
  while (stream->Read(&reply)) replies[reply.request_id()] = reply;
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_TRUE(replies[1].has_response());
  EXPECT_EQ(replies[2].error().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(replies[2].error().message(), HasSubstr("candidates.item_ids"));
  EXPECT_EQ(replies[0].error().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(replies[0].error().message(), HasSubstr("request_id"));
}

TEST(RankStream, TheSameIdTwiceInFlightIsRefused) {
  RpcServer server;
  server.gate.Close();
  auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->RankStream(context.get());
  v1::RankRequest request = RankFor("u");
  request.set_request_id(5);
  ASSERT_TRUE(stream->Write(request));
  server.gate.AwaitWaiting();
  ASSERT_TRUE(stream->Write(request));
  v1::RankStreamResponse reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_THAT(reply.error().message(), HasSubstr("in flight already"));
  server.gate.Open();
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_TRUE(reply.has_response());
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_TRUE(stream->Finish().ok());
}

// The client goes away while a request is scored: the server must neither crash nor leak the stream (a drain waits for
// it).
TEST(RankStream, CancelledClientLeavesNothingBehind) {
  RpcServer server;
  server.gate.Close();
  {
    auto stub = v1::Ranking::NewStub(RpcServer::Connect(server.address()));
    auto context = Deadline();
    auto stream = stub->RankStream(context.get());
    for (uint64_t id = 1; id <= 10; ++id) {
      v1::RankRequest request = RankFor("u" + std::to_string(id));
      request.set_request_id(id);
      ASSERT_TRUE(stream->Write(request));
    }
    server.gate.AwaitWaiting();
    context->TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), StatusCode::CANCELLED);
  }
  server.gate.Open();
  EXPECT_TRUE(server.server->Drain().ok());
}

TEST(AppendStream, OneAckPerBatchInOrder) {
  RpcServer server;
  auto stub = v1::History::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->AppendStream(context.get());
  constexpr uint64_t kBatches = 100;
  const std::vector<std::string> users{"u0", "u1", "u2"};
  std::thread writer([&] {
    for (uint64_t b = 0; b < kBatches; ++b) {
      ASSERT_TRUE(stream->Write(Batch(b + 1, users[b % 3], Exposures(1 + b * 10, 10))));
    }
    stream->WritesDone();
  });
  v1::AppendStreamResponse ack;
  uint64_t expected = 0;
  while (stream->Read(&ack)) {
    EXPECT_EQ(ack.batch_id(), ++expected);
    ASSERT_FALSE(ack.has_error()) << ack.error().message();
    ASSERT_EQ(ack.users_size(), 1);
    EXPECT_EQ(ack.users(0).accepted(), 10u);
    EXPECT_GT(ack.users(0).seq(), 0u);
  }
  writer.join();
  EXPECT_EQ(expected, kBatches);
  EXPECT_TRUE(stream->Finish().ok());
  v1::GetHistoryRequest get;
  get.mutable_user()->set_user("u0");
  v1::GetHistoryResponse history;
  ASSERT_TRUE(stub->Get(Deadline().get(), get, &history).ok());
  EXPECT_EQ(history.head().events(), 340u);
  EXPECT_EQ(history.events_size(), 340);
}

// Refusals keep their place: a message that is no batch, and a batch that breaks a limit, are acknowledged after what
// was sent before them, which here still waits for the store.
TEST(AppendStream, RefusalsKeepTheirPlace) {
  RpcServer::Options options;
  options.config.mutable_limits()->set_blocking_threads(1);
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();  // the only thread for blocking work now warms up a model
  std::thread loader([&] {
    v1::LoadModelRequest request;
    request.set_model("fake");
    request.set_version("2");
    v1::LoadModelResponse response;
    auto admin = v1::Models::NewStub(RpcServer::Connect(server.admin_address()));
    EXPECT_TRUE(admin->Load(Deadline().get(), request, &response).ok());
  });
  server.gate.AwaitWaiting();

  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  auto context = Deadline();
  auto call = stub.PrepareCall(context.get(), "/backstory.v1.History/AppendStream", &queue);
  const auto next = [&] {
    void* tag;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(next());
  const std::vector<std::string> messages{Batch(1, "u", Exposures(1, 1)).SerializeAsString(), "\xff\xff garbage",
                                          Batch(3, "u", {}).SerializeAsString(),
                                          Batch(4, "u", Exposures(2, 1)).SerializeAsString()};
  for (const std::string& message : messages) {
    grpc::Slice slice(message);
    call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    ASSERT_TRUE(next());
  }
  // Answered without a thread for blocking work: when it is, the server has read everything before it on this
  // connection.
  v1::RankResponse unused;
  v1::RankRequest bad = RankFor("u");
  bad.set_now_us(-1);
  EXPECT_FALSE(v1::Ranking::NewStub(channel)->Rank(Deadline().get(), bad, &unused).ok());
  server.gate.Open();
  std::vector<v1::AppendStreamResponse> acks;
  for (size_t i = 0; i < messages.size(); ++i) {
    grpc::ByteBuffer bytes;
    call->Read(&bytes, nullptr);
    ASSERT_TRUE(next());
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(bytes.Dump(&slices).ok());
    std::string text;
    for (const auto& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    ASSERT_TRUE(acks.emplace_back().ParseFromString(text));
  }
  EXPECT_EQ(acks[0].batch_id(), 1u);
  EXPECT_FALSE(acks[0].has_error()) << acks[0].error().message();
  EXPECT_EQ(acks[1].batch_id(), 0u);
  EXPECT_EQ(acks[1].error().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(acks[1].error().message(), HasSubstr("not a valid backstory.v1.AppendStreamRequest"));
  EXPECT_EQ(acks[2].batch_id(), 3u);
  EXPECT_EQ(acks[2].error().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(acks[3].batch_id(), 4u);
  EXPECT_FALSE(acks[3].has_error()) << acks[3].error().message();
  call->WritesDone(nullptr);
  ASSERT_TRUE(next());
  grpc::Status end;
  call->Finish(&end, nullptr);
  ASSERT_TRUE(next());
  EXPECT_TRUE(end.ok()) << end.error_message();
  loader.join();
}

TEST(AppendStream, ResendingEverythingChangesNothing) {
  RpcServer server;
  auto stub = v1::History::NewStub(RpcServer::Connect(server.address()));
  uint64_t hash = 0;
  for (int round = 0; round < 3; ++round) {
    auto context = Deadline();
    auto stream = stub->AppendStream(context.get());
    for (uint64_t b = 0; b < 5; ++b) ASSERT_TRUE(stream->Write(Batch(b + 1, "u", Exposures(1 + b * 20, 20))));
    stream->WritesDone();
    v1::AppendStreamResponse ack;
    while (stream->Read(&ack)) {
      EXPECT_EQ(ack.users(0).accepted(), round == 0 ? 20u : 0u);
      EXPECT_EQ(ack.users(0).duplicate(), round == 0 ? 0u : 20u);
    }
    EXPECT_TRUE(stream->Finish().ok());
    v1::HeadRequest head;
    head.mutable_user()->set_user("u");
    v1::HeadResponse response;
    ASSERT_TRUE(stub->Head(Deadline().get(), head, &response).ok());
    EXPECT_EQ(response.head().events(), 100u);
    if (round > 0) {
      EXPECT_EQ(response.head().hash(), hash);
    }
    hash = response.head().hash();
  }
}

TEST(AppendStream, RefusesEventsOneByOneAndBatchesOneByOne) {
  RpcServer::Options options;
  auto* range = options.config.mutable_store()->add_slots();
  range->set_last(kSlotCount - 2);
  range = options.config.mutable_store()->add_slots();
  range->set_first(kSlotCount - 1);
  range->set_last(kSlotCount - 1);
  range->set_owner("other-server");
  RpcServer server(options);
  std::string stranger;
  for (int i = 0; stranger.empty(); ++i) {
    if (SlotOf("s" + std::to_string(i)) == kSlotCount - 1) stranger = "s" + std::to_string(i);
  }
  auto stub = v1::History::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->AppendStream(context.get());
  std::vector<v1::Event> mixed = Exposures(1, 3);
  mixed[0].set_time_us(-1);
  mixed[2] = mixed[1];
  mixed[2].set_item_id(8);  // same id and revision, other content
  ASSERT_TRUE(stream->Write(Batch(1, "u", mixed)));
  ASSERT_TRUE(stream->Write(Batch(2, stranger, Exposures(10, 1))));
  ASSERT_TRUE(stream->Write(Batch(3, "u", {})));
  ASSERT_TRUE(stream->Write(Batch(4, "u", Exposures(20, 1))));
  stream->WritesDone();
  std::vector<v1::AppendStreamResponse> acks(1);
  for (v1::AppendStreamResponse ack; stream->Read(&ack);) acks.push_back(ack);
  EXPECT_TRUE(stream->Finish().ok());
  ASSERT_EQ(acks.size(), 5u);
  ASSERT_EQ(acks[1].users_size(), 1) << acks[1].error().message();
  const auto& first = acks[1].users(0);
  EXPECT_EQ(first.accepted(), 1u);
  EXPECT_EQ(first.rejected(), 1u);
  EXPECT_EQ(first.conflict(), 1u);
  ASSERT_EQ(first.refusals_size(), 2);
  EXPECT_EQ(first.refusals(0).index(), 0u);
  EXPECT_THAT(first.refusals(0).reason(), HasSubstr("events[0].time_us"));
  EXPECT_EQ(first.refusals(1).index(), 2u);
  EXPECT_TRUE(first.refusals(1).conflict());
  EXPECT_EQ(acks[2].error().code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(acks[2].error().message(), HasSubstr("other-server"));
  EXPECT_EQ(acks[3].error().code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(acks[4].users(0).accepted(), 1u) << acks[4].error().message();
}

TEST(AppendStream, DrainAnswersWhatWasReadAndSaysSo) {
  RpcServer server;
  auto stub = v1::History::NewStub(RpcServer::Connect(server.address()));
  auto context = Deadline();
  auto stream = stub->AppendStream(context.get());
  ASSERT_TRUE(stream->Write(Batch(1, "u", Exposures(1, 5))));
  v1::AppendStreamResponse ack;
  ASSERT_TRUE(stream->Read(&ack));
  EXPECT_EQ(ack.users(0).accepted(), 5u);
  EXPECT_TRUE(server.server->Drain().ok());  // with the stream open
  while (stream->Read(&ack)) {
  }
  const grpc::Status end = stream->Finish();
  EXPECT_EQ(end.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(end.error_message(), HasSubstr("draining"));
  EXPECT_EQ(context->GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

// Batches that wait for the only thread when the drain begins are committed and acknowledged.
TEST(AppendStream, DrainAnswersWhatStillWaits) {
  RpcServer::Options options;
  options.config.mutable_limits()->set_blocking_threads(1);
  RpcServer server(options);
  auto channel = RpcServer::Connect(server.address());
  server.gate.Close();
  std::thread loader([&] {  // holds the thread: the warm-up waits at the gate
    v1::LoadModelRequest request;
    request.set_model("fake");
    request.set_version("2");
    v1::LoadModelResponse response;
    auto admin = v1::Models::NewStub(RpcServer::Connect(server.admin_address()));
    EXPECT_TRUE(admin->Load(Deadline().get(), request, &response).ok());
  });
  server.gate.AwaitWaiting();
  auto context = Deadline();
  auto stream = v1::History::NewStub(channel)->AppendStream(context.get());
  for (uint64_t b = 1; b <= 3; ++b) ASSERT_TRUE(stream->Write(Batch(b, "u", Exposures(b * 10, 5))));
  v1::RankResponse unused;
  v1::RankRequest bad = RankFor("u");
  bad.set_now_us(-1);
  auto ranking = v1::Ranking::NewStub(channel);
  // On the same connection and after the batches: when this is answered, the server has those.
  EXPECT_EQ(ranking->Rank(Deadline().get(), bad, &unused).error_code(), StatusCode::INVALID_ARGUMENT);
  std::thread drain([&] { EXPECT_TRUE(server.server->Drain().ok()); });
  while (ranking->Rank(Deadline().get(), bad, &unused).error_code() != StatusCode::UNAVAILABLE) {
    std::this_thread::yield();
  }
  server.gate.Open();
  v1::AppendStreamResponse ack;
  uint64_t seen = 0;
  while (stream->Read(&ack)) {
    EXPECT_EQ(ack.batch_id(), ++seen);
    EXPECT_FALSE(ack.has_error()) << ack.error().message();
    ASSERT_EQ(ack.users_size(), 1);
    EXPECT_EQ(ack.users(0).accepted(), 5u);
  }
  EXPECT_EQ(seen, 3u);
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::UNAVAILABLE);
  drain.join();
  loader.join();
  const auto stored = server.store.history->Read({"default", "u"}, {});
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->events.size(), 15u) << "acknowledged, so kept";
}

}  // namespace
}  // namespace backstory::testing
