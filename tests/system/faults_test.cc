// The real server against a jumping clock, replays, damage and SIGTERM (R3, R9, R17, R18).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <random>
#include <thread>

#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000;

// What identifies a history to a reader: the canonical projection, without ingest times.
std::string Canonical(const v1::GetHistoryResponse& history) {
  std::string bytes;
  for (v1::Event event : history.events()) {
    event.clear_ingest_time_us();
    bytes += event.SerializeAsString();
  }
  return bytes;
}

std::vector<v1::Event> Events(size_t n, uint64_t first_id, int64_t time_us) {
  std::vector<v1::Event> events;
  for (size_t i = 0; i < n; ++i)
    events.push_back(Exposure(first_id + i, time_us + static_cast<int64_t>(i), i % 97 + 1));
  return events;
}

TEST(Faults, DrainAnswersEverythingAccepted) {
  ScratchDir scratch;
  ServerProcess server(
      {.store = scratch.path() / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  std::atomic<uint64_t> acked{0}, refused{0}, broken{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      SystemClient client(server.Connect());
      for (uint64_t i = 0;; ++i) {
        const auto [status, response] =
            client.Append("drain-" + std::to_string(c), Events(1, 1 + i, kStart + int64_t(i)));
        if (status.ok()) {
          ++acked;
          continue;
        }
        // After SIGTERM a caller is told to go elsewhere. CANCELLED is gRPC's word for a call that came in the instant
        // in which connections were closed: no handler saw it (lifecycle_test proves that by the server's own counts).
        const bool turned_away =
            status.error_code() == grpc::StatusCode::UNAVAILABLE || status.error_code() == grpc::StatusCode::CANCELLED;
        ++(turned_away ? refused : broken);
        return;
      }
    });
  }
  while (acked < 200) std::this_thread::yield();
  server.Signal(SIGTERM);
  const ExitState end = server.Wait();
  for (std::thread& caller : callers) caller.join();
  EXPECT_TRUE(end.exited && end.code == 0) << server.log();
  EXPECT_EQ(refused, 4u);
  EXPECT_EQ(broken, 0u);

  ASSERT_TRUE(server.Start()) << server.log();
  SystemClient client(server.Connect());
  uint64_t stored = 0;
  for (int c = 0; c < 4; ++c)
    stored += static_cast<uint64_t>(client.Get("drain-" + std::to_string(c)).second.events_size());
  // Every refused append was one that the server did not take: each caller ended with one.
  EXPECT_EQ(stored, acked) << "acknowledged appends survived the drain, and nothing else was kept";
}

// The warm-up file is a pipe: the load waits in it until the test has sent the signal.
TEST(Faults, ASignalDuringTheLoadEndsTheServerBeforeItIsReady) {
  ScratchDir scratch;
  ServerProcess server(
      {.store = scratch.path() / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  const std::filesystem::path pipe = server.models() / "grab-tiny" / "warmup.jsonl";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::atomic<bool> ended{false};
  bool ready = true;
  std::thread start([&] {
    ready = server.Start();
    ended = true;
  });
  int fd = -1;
  while (!ended && (fd = open(pipe.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0) std::this_thread::yield();
  server.Signal(SIGTERM);
  if (fd >= 0) close(fd);
  start.join();
  EXPECT_GE(fd, 0) << server.log();
  EXPECT_FALSE(ready) << "the port file is written when the server is ready";
  const ExitState end = server.Wait();
  EXPECT_TRUE(end.exited && end.code == 0) << server.log();
  EXPECT_NE(server.log().find("stopped while loading models"), std::string::npos) << server.log();
  EXPECT_EQ(server.log().find("\"ready\""), std::string::npos) << server.log();
}

TEST(Faults, ReplaysAndReorderingEndInTheSameHistory) {
  constexpr unsigned kSeed = 18;
  std::mt19937 random(kSeed);
  ScratchDir scratch;
  ServerProcess server(
      {.store = scratch.path() / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  std::vector<v1::Event> events = Events(500, 1, kStart);
  for (size_t i = 0; i < 500; i += 5) {
    v1::Event corrected = events[i];
    corrected.set_revision(1);
    corrected.set_item_id(4'000 + i);
    events.push_back(corrected);
  }
  ASSERT_TRUE(server.Start()) << server.log();
  ASSERT_TRUE(SystemClient(server.Connect()).Append("ordered", events).first.ok());
  for (int replay = 0; replay < 3; ++replay) {  // three times, shuffled, with a restart between
    std::shuffle(events.begin(), events.end(), random);
    SystemClient client(server.Connect());
    for (size_t begin = 0; begin < events.size(); begin += 60) {
      const size_t end = std::min(events.size(), begin + 60);
      ASSERT_TRUE(client.Append("shuffled", {events.begin() + long(begin), events.begin() + long(end)}).first.ok());
    }
    server.Kill();
    ASSERT_TRUE(server.Start()) << server.log();
  }
  SystemClient client(server.Connect());
  const auto ordered = client.Get("ordered").second, shuffled = client.Get("shuffled").second;
  EXPECT_EQ(ordered.events_size(), 500);
  ASSERT_EQ(shuffled.events_size(), 500);
  for (int i = 0; i < 500; ++i) {
    v1::Event one = ordered.events(i), other = shuffled.events(i);
    one.clear_ingest_time_us();
    other.clear_ingest_time_us();
    ASSERT_EQ(one.ShortDebugString(), other.ShortDebugString()) << "seed " << kSeed;
  }
  EXPECT_EQ(ordered.head().hash(), shuffled.head().hash());
}

// The wall clock runs a day ahead, then a day behind: order is by event time and id, and nothing else changes.
TEST(Faults, AJumpingClockChangesNoOrder) {
  const char* library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
  if (!std::filesystem::exists(library)) GTEST_SKIP() << "libfaketime is not installed";
  ScratchDir scratch;
  std::string order;
  for (const char* offset : {"+0d", "+1d", "-1d"}) {
    // FAKETIME moves the wall clock only: timeouts must not notice.
    ServerProcess server({.store = scratch.path() / "store",
                          .models = {},
                          .arguments = {"--create-store"},
                          .environment = {{"LD_PRELOAD", library},
                                          {"FAKETIME", offset},
                                          {"FAKETIME_DONT_FAKE_MONOTONIC", "1"},
                                          {"DONT_FAKE_MONOTONIC", "1"}}});
    ASSERT_TRUE(server.Start()) << offset << "\n" << server.log();
    SystemClient client(server.Connect());
    const auto [status, response] = client.Append("clock", Events(100, 1, kStart));  // replayed under every clock
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.accepted() + response.duplicate(), 100u);
    const std::string now = Canonical(client.Get("clock").second);
    if (order.empty()) order = now;
    EXPECT_EQ(now, order) << offset;
    // Two days ahead of any of these clocks is refused with the field and the limit.
    const int64_t wall =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
            .count();
    const auto [refused, future] = client.Append("future", {Exposure(1, wall + 3 * 86'400'000'000, 1)});
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << future.ShortDebugString();
    EXPECT_NE(refused.error_message().find("time_us must be at most 24 h"), std::string::npos)
        << refused.error_message();
    server.Signal(SIGTERM);
    const ExitState end = server.Wait();
    EXPECT_TRUE(end.exited && end.code == 0) << server.log();
  }
}

// A damaged store is never opened for writing: the server ends with exit code 4 and names the file and the next
// command.
TEST(Faults, ADamagedStoreIsRefusedAtStart) {
  ScratchDir scratch;
  ServerProcess server(
      {.store = scratch.path() / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  ASSERT_TRUE(SystemClient(server.Connect()).Append("user", Events(5'000, 1, kStart)).first.ok());
  server.Signal(SIGTERM);
  ASSERT_EQ(server.Wait().code, 0) << server.log();
  std::filesystem::path manifest;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(scratch.path() / "store")) {
    if (entry.path().filename().string().starts_with("MANIFEST-")) manifest = entry.path();
  }
  ASSERT_FALSE(manifest.empty());
  const auto before = std::filesystem::file_size(manifest);
  std::filesystem::resize_file(manifest, before - 40);
  std::string output;
  const ExitState end = RunBinary(
      {"serve", "--store", (scratch.path() / "store").string(), "--models", server.models().string(), "--port", "0"},
      &output);
  EXPECT_TRUE(end.exited);
  EXPECT_EQ(end.code, 4) << output;
  EXPECT_NE(output.find("MANIFEST-"), std::string::npos) << output;
  EXPECT_NE(output.find("backstory store"), std::string::npos) << "names the next command: " << output;
}

}  // namespace
}  // namespace backstory
