// kill -9 during ingest (R1). Goal: after any kill the store holds every acknowledged event, nothing that was never
// sent, and nothing twice. Method: a real server is killed while several streams append, in half of the rounds at a
// random moment, in half by itself at a random pass of a named point of the commit (store/kill_point.h; the points
// outside the commit are tests/crash/kill_point_test.cc's). An oracle in this process, outside the store, marks each event pending before it is sent and committed when its ack arrives; after
// each restart the round's users are read back whole, and at the end all users. Options are drawn at random per round.
// BACKSTORY_CRASH_ROUNDS and BACKSTORY_CRASH_SEED override rounds and seed; a failure prints both.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <map>
#include <random>
#include <thread>

#include "backstory/v1/history.grpc.pb.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoll(text) : otherwise;
}

struct OracleEvent {
  uint64_t item_id = 0;
  int64_t time_us = 0;
  bool committed = false;
};
using Oracle = std::map<std::string, std::map<uint64_t, OracleEvent>>;  // user -> event_id -> event

struct WriterPlan {
  std::string user;
  size_t batch = 1;
  bool buffered = false;  // a process kill must lose nothing acknowledged either way
  unsigned seed = 0;
};

v1::AppendRequest NextBatch(const WriterPlan& plan, std::mt19937* random, uint64_t* next_id,
                            std::map<uint64_t, OracleEvent>* oracle) {
  v1::AppendRequest request;
  request.set_namespace_("crash");
  request.mutable_user()->set_user(plan.user);
  request.set_durability(plan.buffered ? v1::DURABILITY_BUFFERED : v1::DURABILITY_SYNCED);
  for (size_t i = 0; i < plan.batch; ++i) {
    v1::Event* event = request.add_events();
    event->set_kind(v1::EVENT_KIND_EXPOSURE);
    event->set_event_id((*next_id)++);
    event->set_time_us(1'600'000'000'000'000 + static_cast<int64_t>((*random)() % 1'000'000'000));
    event->set_item_id((*random)() % 100'000);
    (*oracle)[event->event_id()] = {event->item_id(), event->time_us(), false};
  }
  return request;
}

// Appends over one AppendStream until the server dies. Two batches are kept in flight.
void WriteUntilKilled(v1::History::Stub* stub, const WriterPlan& plan, std::map<uint64_t, OracleEvent>* oracle,
                      std::atomic<uint64_t>* acked, std::atomic<size_t>* ended) {
  grpc::ClientContext context;
  auto stream = stub->AppendStream(&context);
  std::mt19937 random(plan.seed);
  uint64_t next_id = 1;
  std::map<uint64_t, std::vector<uint64_t>> in_flight;
  for (uint64_t batch_id = 1;; ++batch_id) {
    v1::AppendStreamRequest request;
    request.set_batch_id(batch_id);
    *request.add_users() = NextBatch(plan, &random, &next_id, oracle);
    for (const auto& event : request.users(0).events()) in_flight[batch_id].push_back(event.event_id());
    if (!stream->Write(request)) break;
    if (batch_id < 2) continue;
    v1::AppendStreamResponse ack;
    if (!stream->Read(&ack)) break;
    EXPECT_FALSE(ack.has_error()) << ack.error().message();
    if (ack.has_error()) break;
    EXPECT_EQ(ack.users(0).accepted(), plan.batch);
    for (const uint64_t id : in_flight[ack.batch_id()]) (*oracle)[id].committed = true;
    *acked += plan.batch;
    in_flight.erase(ack.batch_id());
  }
  context.TryCancel();
  stream->Finish();
  ++*ended;
}

struct Tally {
  uint64_t lost = 0, invented = 0, twice = 0, changed = 0, committed = 0;
};

void ReadBack(v1::History::Stub* stub, const std::string& user, const std::map<uint64_t, OracleEvent>& oracle,
              Tally* tally) {
  grpc::ClientContext context;
  v1::GetHistoryRequest request;
  request.set_namespace_("crash");
  request.mutable_user()->set_user(user);
  request.mutable_as_of()->set_event_time_us(INT64_MAX);
  request.set_newest(100'000);
  v1::GetHistoryResponse history;
  const grpc::Status status = stub->Get(&context, request, &history);
  ASSERT_TRUE(status.ok()) << status.error_code() << " " << status.error_message();
  std::map<uint64_t, int> seen;
  for (const v1::Event& event : history.events()) {
    const auto known = oracle.find(event.event_id());
    if (known == oracle.end()) {
      ++tally->invented;
    } else if (known->second.item_id != event.item_id() || known->second.time_us != event.time_us()) {
      ++tally->changed;
    }
    tally->twice += ++seen[event.event_id()] > 1;
  }
  for (const auto& [id, event] : oracle) {
    tally->committed += event.committed;
    tally->lost += event.committed && !seen.contains(id);
  }
}

// Points that every commit of the server passes.
constexpr const char* kCommitPoints[] = {"before_write", "after_write", "after_sync", "after_watermark"};

TEST(Crash, NothingAcknowledgedIsLostByKillNine) {
  const int64_t rounds = FromEnvironment("BACKSTORY_CRASH_ROUNDS", 40);
  const int64_t seed = FromEnvironment("BACKSTORY_CRASH_SEED", 20261122);
  SCOPED_TRACE("BACKSTORY_CRASH_ROUNDS=" + std::to_string(rounds) + " BACKSTORY_CRASH_SEED=" + std::to_string(seed));
  std::mt19937 random(static_cast<unsigned>(seed));
  // A killed process loses nothing that it wrote, on any file system: take one whose syncs are quick.
  if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
  ScratchDir scratch;
  uint64_t at_points = 0;
  ServerProcess server({.store = scratch.path() / "store", .arguments = {"--create-store"}});
  Oracle oracle;
  for (int64_t round = 0; round < rounds; ++round) {
    const bool at_point = round % 2 == 1;
    // Opening a store passes some points too.
    if (at_point) {
      const std::string pass = std::to_string(3 + random() % 40);
      server.SetEnvironment({{"BACKSTORY_KILL_POINT", std::string(kCommitPoints[random() % 4]) + ":" + pass}});
    }
    ASSERT_TRUE(server.Start()) << "round " << round << "\n" << server.log();
    std::vector<WriterPlan> plans(1 + random() % 3);
    for (size_t w = 0; w < plans.size(); ++w) {
      plans[w] = {"round-" + std::to_string(round) + "-writer-" + std::to_string(w), 1 + random() % 64, random() % 4 == 0,
                  static_cast<unsigned>(random())};
      oracle[plans[w].user];  // exists before the threads, which touch only their own entry
    }
    std::atomic<uint64_t> acked{0};
    std::atomic<size_t> ended{0};
    std::vector<std::thread> writers;
    std::vector<std::unique_ptr<v1::History::Stub>> stubs;
    for (const WriterPlan& plan : plans) {
      stubs.push_back(v1::History::NewStub(server.Connect()));
      writers.emplace_back(WriteUntilKilled, stubs.back().get(), plan, &oracle[plan.user], &acked, &ended);
    }
    if (at_point) {
      while (ended < plans.size()) std::this_thread::yield();  // it dies by itself
      ++at_points;
    } else {  // killed once a random amount of work was acknowledged, plus a random moment: never by the clock alone
      const uint64_t enough = random() % 400;
      while (acked < enough) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    }
    server.Kill();
    server.SetEnvironment({});
    for (std::thread& writer : writers) writer.join();

    ASSERT_TRUE(server.Start()) << "after the kill of round " << round << "\n" << server.log();
    auto stub = v1::History::NewStub(server.Connect());
    Tally tally;
    for (const WriterPlan& plan : plans) ReadBack(stub.get(), plan.user, oracle[plan.user], &tally);
    ASSERT_EQ(tally.lost, 0u) << "round " << round;
    ASSERT_EQ(tally.invented + tally.twice + tally.changed, 0u) << "round " << round;
    server.Kill();  // the second kill of the round hits a store that has just recovered
  }
  ASSERT_TRUE(server.Start()) << server.log();
  auto stub = v1::History::NewStub(server.Connect());
  Tally tally;
  for (const auto& [user, events] : oracle) ReadBack(stub.get(), user, events, &tally);
  EXPECT_EQ(tally.lost, 0u);
  EXPECT_EQ(tally.invented + tally.twice + tally.changed, 0u);
  EXPECT_GT(tally.committed, static_cast<uint64_t>(rounds));
  std::cout << rounds << " rounds, " << 2 * rounds << " kills (" << at_points << " at named points), " << tally.committed << " acknowledged events, "
            << tally.lost << " lost, " << tally.invented << " invented, "
            << tally.twice << " doubled\n";
  server.Signal(SIGTERM);
  const ExitState end = server.Wait();
  EXPECT_TRUE(end.exited && end.code == 0) << server.log();
}

}  // namespace
}  // namespace backstory
