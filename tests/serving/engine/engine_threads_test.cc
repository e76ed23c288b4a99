// The whole engine with workers, many callers, appends, cancels and swaps at once. Runs under the thread sanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

// R7 in small: versions swap under load; nobody fails, and every answer is of one version.
TEST(EngineThreadsTest, CallersAppendsCancelsAndSwaps) {
  auto first = std::make_shared<FakeModel>(FakeConfig());
  auto second = std::make_shared<FakeModel>(FakeConfig(), "anotherstateid00");
  Harness harness({{"1", Served(first, "1")}, {"2", Served(second, "2")}},
                  {{"cache_bytes", "1048576"}, {"queue_requests", "10000"}, {"shed_batch_queue_fill", "1"}}, 3);
  ASSERT_TRUE(harness.engine->models().Load("fake", "2").ok());
  constexpr int kCallers = 3, kCalls = 300;
  std::atomic<int> answered{0}, cancelled{0};
  std::atomic<uint64_t> next_event{1};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kCallers; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kCalls; ++i) {
        const std::string user = "user" + std::to_string(random() % 7);
        if (random() % 3 == 0) {
          const Event event =
              Shown(next_event++, kNow - static_cast<int64_t>(random() % 1000) * kSecond, random() % 50);
          EXPECT_TRUE(harness.engine->Append({"default", user}, std::span(&event, 1), Durability::kSynced).ok());
        }
        if (random() % 20 == 0) {
          DeleteSelector what;
          what.has_item = true;
          what.item_id = 3;
          EXPECT_TRUE(harness.engine->Delete({"default", user}, what).ok());
        }
        RankQuery query = Query(user, {1, 2, 3});
        query.criticality = static_cast<Criticality>(random() % 3);
        if (random() % 5 == 0) query.cancel = std::make_shared<CancelToken>();
        const std::shared_ptr<CancelToken> cancel = query.cancel;
        harness.engine->Rank(query, [&](absl::StatusOr<RankReply> reply) {
          ++answered;
          if (absl::IsCancelled(reply.status())) {
            ++cancelled;
          } else if (reply.ok()) {
            EXPECT_EQ(reply->state_id, reply->version == "1" ? "fakefakefakefake" : "anotherstateid00");
          } else {
            EXPECT_EQ(reply.status().code(), absl::StatusCode::kUnavailable) << reply.status();
          }
        });
        if (cancel != nullptr) cancel->Cancel();
      }
    });
  }
  std::thread swapper([&] {
    for (int i = 0; !done; ++i) {
      EXPECT_TRUE(harness.engine->models().SetLabel("fake", "stable", i % 2 == 0 ? "2" : "1").ok());
      harness.engine->Stats();
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(harness.engine->Drain(60 * kSecond).ok());
  done = true;
  swapper.join();
  EXPECT_EQ(answered, kCallers * kCalls);
  EXPECT_EQ(harness.engine->Stats().queued, 0u);
  EXPECT_EQ(harness.engine->Stats().running, 0u);
}

// One worker, one user, an append between every two requests in the queue: the worker holds a pin on the state that the
// next request of its own batch wants to extend, and must not wait for itself.
TEST(EngineThreadsTest, AWorkerNeverWaitsForItself) {
  auto model = std::make_shared<FakeModel>(FakeConfig());
  Harness harness({{"1", Served(model)}}, {{"refresh_queue", "0"}});
  std::atomic<int> answered{0};
  harness.Append("a", {Shown(1, kNow - 100 * kSecond, 1)});
  for (int i = 0; i < 5; ++i) {
    RankQuery query = Query("a", {1}, kNow + i);
    harness.engine->Rank(query, [&](absl::StatusOr<RankReply> reply) {
      EXPECT_TRUE(reply.ok()) << reply.status();
      ++answered;
      // The batch is under way: the next request finds a newer history.
      harness.Append("a", {Shown(10 + static_cast<uint64_t>(answered), kNow - 50 * kSecond + answered, 2)});
    });
  }
  model->on_extend = [&] {
    const Event event = Shown(1000 + static_cast<uint64_t>(model->extends), kNow - 20 * kSecond + model->extends, 4);
    EXPECT_TRUE(harness.store.Append({"default", "a"}, std::span(&event, 1), kNow, Durability::kSynced).ok());
  };
  harness.RunAll();
  EXPECT_EQ(answered, 5);
}

// Many cold requests for one user build its state once.
TEST(EngineThreadsTest, AColdUserIsBuiltOnce) {
  auto model = std::make_shared<FakeModel>(FakeConfig());
  Harness harness({{"1", Served(model)}}, {{"batch_users", "1"}, {"queue_requests", "1000"}}, 4);
  harness.Append("a", {Shown(1, kNow - 100 * kSecond, 1)});
  harness.store.reads = 0;
  for (int i = 0; i < 50; ++i) {
    harness.engine->Rank(Query("a"),
                         [](absl::StatusOr<RankReply> reply) { EXPECT_TRUE(reply.ok()) << reply.status(); });
  }
  EXPECT_TRUE(harness.engine->Drain(60 * kSecond).ok());
  EXPECT_EQ(harness.store.reads, 1);
  EXPECT_EQ(harness.engine->Stats().rebuilds, 1u);
}

}  // namespace
}  // namespace backstory::testing
