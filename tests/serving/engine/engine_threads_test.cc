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
  std::atomic<int> answered{0}, cancelled{0}, early{0};
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
        const bool before = cancel != nullptr && random() % 2 == 0;
        if (before) ++early, cancel->Cancel();
        harness.engine->Rank(query, [&, before](absl::StatusOr<RankReply> reply) {
          ++answered;
          EXPECT_FALSE(before && reply.ok()) << "cancelled before it was asked";
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
  EXPECT_GT(early, 0);
  EXPECT_GE(cancelled, early) << "and nothing was shed: the queue holds them all";
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

// One thread, so that the order is certain: while it builds a long history, requests come for users whose state is
// there or soon built, and for others.
class LongBuildTest : public ::testing::Test {
 protected:
  LongBuildTest() : harness_({{"1", Served(model_)}}, {{"refresh_queue", "0"}}) {
    const auto history = [](uint64_t count) {
      std::vector<Event> events;
      for (uint64_t i = 1; i <= count; ++i) {
        events.push_back(Shown(i, kNow - static_cast<int64_t>(10'000 - i) * kSecond, i % 50));
      }
      return events;
    };
    harness_.Append("long", history(3'000));
    harness_.Append("cold", history(2'049));
    harness_.Append("cold and short", history(2'048));
    harness_.Append("ready", history(1));
    EXPECT_TRUE(harness_.Rank(Query("ready")).ok());
    model_->extends = 0;
  }
  void Send(const std::string& name, const std::string& user) {
    harness_.engine->Rank(Query(user), [this, name](absl::StatusOr<RankReply> reply) {
      EXPECT_TRUE(reply.ok()) << name << ": " << reply.status();
      order_.push_back(name);
      if (reply.ok()) replies_[name] = *std::move(reply);
    });
  }

  std::shared_ptr<FakeModel> model_ = std::make_shared<FakeModel>(FakeConfig());
  Harness harness_;
  std::vector<std::string> order_;
  std::map<std::string, RankReply> replies_;
};

TEST_F(LongBuildTest, ReadyRequestsAreScoredBetweenItsSteps) {
  model_->on_extend = [this] {
    if (model_->extends != 2) return;  // a step of the long one
    Send("ready 1", "ready");
    Send("cold", "cold");
    Send("long again", "long");  // its state is being written
    Send("cold and short", "cold and short");
    Send("ready 2", "ready");
  };
  Send("long", "long");
  harness_.RunAll();
  EXPECT_EQ(order_, (std::vector<std::string>{"ready 1", "cold and short", "ready 2", "long", "long again", "cold"}));
  EXPECT_EQ(replies_["ready 1"].cache.source, "hit");
  EXPECT_EQ(replies_["long"].cache.source, "rebuild");
  EXPECT_EQ(replies_["long again"].cache.source, "hit");
  EXPECT_EQ(replies_["cold"].cache.source, "rebuild");
  EXPECT_EQ(replies_["cold"].timings.size(), replies_["long"].timings.size()) << "a stage of the first start is left";
  const EngineStats stats = harness_.engine->Stats();
  EXPECT_EQ(stats.queued + stats.running, 0u);
}

TEST_F(LongBuildTest, APrefetchLetsRequestsPass) {
  model_->on_extend = [this] {
    if (model_->extends == 1) Send("ready", "ready");
  };
  harness_.engine->Prefetch({"default", "long"}, {}, INT64_MAX, [this](absl::StatusOr<std::vector<CacheReport>> done) {
    EXPECT_TRUE(done.ok()) << done.status();
    order_.push_back("prefetch");
  });
  harness_.RunAll();
  EXPECT_EQ(order_, (std::vector<std::string>{"ready", "prefetch"}));
}

TEST_F(LongBuildTest, ACallCancelledAfterItWasPutBackIsAnsweredCancelled) {
  auto cancel = std::make_shared<CancelToken>();
  absl::Status status;
  model_->on_extend = [&, this] {
    if (model_->extends == 1) {
      RankQuery query = Query("cold");
      query.cancel = cancel;
      harness_.engine->Rank(std::move(query), [&](absl::StatusOr<RankReply> reply) { status = reply.status(); });
    }
    if (model_->extends == 2) {
      cancel->Cancel();
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    }
  };
  Send("long", "long");
  harness_.RunAll();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(harness_.engine->Stats().running, 0u);
}

TEST(ExtendInStepsTest, GivesTheStateOfOneCall) {
  FakeModel model(FakeConfig());
  const size_t channels = model.config().tokenizer.channels.size();
  std::vector<ChannelRows> rows(channels);
  for (size_t c = 0; c < channels; ++c) {
    const size_t count = c == 0 ? 1'300 : 40;
    rows[c].tokens.rows = count;
    rows[c].tokens.sparse.resize(2);
    for (size_t i = 0; i < count; ++i) {
      for (size_t f = 0; f < 2; ++f) {
        SparseColumn& column = rows[c].tokens.sparse[f];
        for (size_t id = 0; id < (i + f) % 3; ++id) column.ids.push_back(static_cast<uint32_t>(i * 7 + f));
        column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
      }
      rows[c].time_us.push_back(static_cast<int64_t>(i));
      rows[c].action.push_back(static_cast<int32_t>(i % 2));
      rows[c].tie.push_back(static_cast<int64_t>(i / 3));
      rows[c].event_id.push_back(i + 1);
    }
  }
  FakeKv once(channels), steps(channels);
  ASSERT_TRUE(model.Extend(rows, &once).ok());
  int pauses = 0;
  ASSERT_TRUE(ExtendInSteps(model, rows, &steps, [&] { ++pauses; }).ok());
  EXPECT_EQ(steps.chain, once.chain);
  EXPECT_EQ(pauses, 2);
  model.extends_at_once = true;
  FakeKv quick(channels);
  ASSERT_TRUE(ExtendInSteps(model, rows, &quick, [&] { ++pauses; }).ok());
  EXPECT_EQ(quick.chain, once.chain);
  EXPECT_EQ(pauses, 2);
  EXPECT_EQ(StepRows(0), 512u);
  EXPECT_EQ(StepRows(16'384), 128u);
  EXPECT_EQ(StepRows(1'000'000), 128u);
}

}  // namespace
}  // namespace backstory::testing
