// Releases: who is warmed for a version before a label moves to it, how fast, and what requests find after the move.
#include "serving/engine/release_warm_up.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

UserKey Key(const std::string& user) { return {"default", user}; }

std::vector<std::string> Names(const WarmUpPlan& plan) {
  std::vector<std::string> names;
  for (const UserKey& user : plan.users) names.push_back(user.user);
  return names;
}

TEST(PlanWarmUpTest, TakesTheHottestUntilTheShareIsReached) {
  const std::vector<UserStateCache::UserHeat> present{{Key("cold"), 1, 10}, {Key("hot"), 6, 10}, {Key("warm"), 3, 10}};
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 0.9, 1000)), ElementsAre("hot", "warm"));
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 1.0, 1000)), ElementsAre("hot", "warm", "cold"));
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 0.5, 1000)), ElementsAre("hot"));
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 0, 1000)), IsEmpty());
}

TEST(PlanWarmUpTest, CountsWhoIsWarmAndLeavesOutWhoCannotBe) {
  const std::vector<UserStateCache::UserHeat> present{{Key("cold"), 1, 10}, {Key("hot"), 6, 10}, {Key("warm"), 3, 10}};
  const WarmUpPlan plan = PlanWarmUp(present, {Key("hot"), Key("stranger")}, {Key("warm")}, 1.0, 1000);
  EXPECT_DOUBLE_EQ(plan.share, 0.6);
  EXPECT_THAT(Names(plan), ElementsAre("cold"));
  const WarmUpPlan reached = PlanWarmUp(present, {Key("hot"), Key("warm")}, {}, 0.9, 1000);
  EXPECT_DOUBLE_EQ(reached.share, 0.9);
  EXPECT_THAT(Names(reached), IsEmpty());
}

TEST(PlanWarmUpTest, StopsBeforeTheRoomEnds) {
  const std::vector<UserStateCache::UserHeat> present{{Key("a"), 3, 60}, {Key("b"), 2, 60}, {Key("c"), 1, 1}};
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 1.0, 119)), ElementsAre("a")) << "no smaller one jumps the queue";
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 1.0, 120)), ElementsAre("a", "b"));
  EXPECT_THAT(Names(PlanWarmUp(present, {}, {}, 1.0, 0)), IsEmpty());
  const WarmUpPlan nobody = PlanWarmUp({}, {}, {}, 1.0, 100);
  EXPECT_EQ(nobody.share, 1) << "nobody to wait for";
}

TEST(UserHeatTest, CountsUsesAndForgetsThem) {
  UserStateCache cache(1 << 20);
  const auto use = [&](const std::string& user, int times) {
    for (int i = 0; i < times; ++i) {
      const auto entry = cache.Get(Key(user), "k:1");
      cache.SetBytes(Key(user), entry, 100);
    }
  };
  use("a", 3);
  use("b", 1);
  cache.Get(Key("empty"), "k:1");  // no state yet
  cache.SetBytes(Key("a"), cache.Get(Key("a"), "other"), 100);
  const auto find = [&](const std::string& user) {
    for (const auto& heat : cache.UsersOf("k:1")) {
      if (heat.user == Key(user)) return heat.heat;
    }
    return -1.0;
  };
  EXPECT_EQ(cache.UsersOf("k:1").size(), 2u);
  EXPECT_NEAR(find("a"), 3, 0.01);
  EXPECT_NEAR(find("b"), 1, 0.01);
  for (int i = 0; i < static_cast<int>(UserStateCache::kHeatHalfLife); ++i) cache.Get(Key("c"), "k:1");
  EXPECT_NEAR(find("a"), 1.5, 0.01);
}

class ReleaseTest : public ::testing::Test {
 protected:
  static constexpr int kUsers = 40;
  void Start(std::map<std::string, std::string> parameters, int threads = 3) {
    parameters.try_emplace("cache_bytes", "100000000");
    parameters.try_emplace("queue_requests", "10000");
    parameters.try_emplace("concurrency_limit_max", "10000");
    parameters.try_emplace("concurrency_limit_min", "10000");
    parameters.try_emplace("degrade_queue_fill", "1");
    parameters.try_emplace("shed_batch_queue_fill", "1");
    parameters.try_emplace("release_warm_rows_per_s", "1000000000");
    harness_ = std::make_unique<Harness>(
        std::map<std::string, std::shared_ptr<const ServedModel>>{{"1", Served(first_, "1")},
                                                                  {"2", Served(second_, "2")}},
        parameters, threads);
    for (int u = 0; u < kUsers; ++u) {
      std::vector<Event> events;
      for (uint64_t i = 1; i <= 20; ++i) events.push_back(Shown(i, kNow - static_cast<int64_t>(1000 - i) * kSecond, i));
      harness_->Append(User(u), events);
    }
  }
  static std::string User(int u) { return "user" + std::to_string(u); }
  // The first eight users in every round, the next eight in every second one, and so on; five rounds ask for all.
  void AskAll(int rounds) {
    for (int round = 1; round <= rounds; ++round) {
      for (int u = 0; u < kUsers; ++u) {
        if (round % (u / 8 + 1) == 0) Ask(User(u));
      }
    }
    EXPECT_TRUE(WaitIdle());
  }
  void Ask(const std::string& user) {
    ++asked_;
    harness_->engine->Rank(Query(user), [this](absl::StatusOr<RankReply> reply) {
      EXPECT_TRUE(reply.ok()) << reply.status();
      if (reply.ok() && reply->version == "2" && reply->cache.source == "rebuild") ++cold_;
      if (reply.ok() && reply->version == "2") ++of_second_;
      ++answered_;
    });
  }
  bool WaitIdle() {
    for (int i = 0; i < 60'000 && answered_ < asked_; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return answered_ == asked_;
  }
  // Requests come without a pause while a version is loaded and the label moves; the number of histories that requests
  // of the new version had to build.
  absl::StatusOr<Engine::LabelMove> Release(bool at_once) {
    std::atomic<bool> done{false};
    std::thread caller([&] {
      std::mt19937 random(1);
      while (!done || of_second_ < 20 * kUsers) {
        if (asked_ - answered_ > 20) {
          std::this_thread::yield();
          continue;
        }
        Ask(User(static_cast<int>(random() % kUsers)));
      }
    });
    EXPECT_TRUE(harness_->engine->models().Load("fake", "2").ok());
    auto move = harness_->engine->MoveLabel("fake", "stable", "2", at_once);
    done = true;
    if (!move.ok()) of_second_ = 20 * kUsers;
    caller.join();
    EXPECT_TRUE(WaitIdle());
    return move;
  }

  std::shared_ptr<FakeModel> first_ = std::make_shared<FakeModel>(FakeConfig());
  std::shared_ptr<FakeModel> second_ = std::make_shared<FakeModel>(FakeConfig(), "anotherstateid00");
  std::unique_ptr<Harness> harness_;
  std::atomic<int> asked_{0}, answered_{0}, cold_{0}, of_second_{0};
};

TEST_F(ReleaseTest, WithoutWarmUpEveryUsersNextRequestBuildsAHistory) {
  Start({{"release_warm_share", "0"}});
  AskAll(10);
  const auto move = Release(/*at_once=*/false);
  ASSERT_TRUE(move.ok()) << move.status();
  EXPECT_EQ(cold_, kUsers);
  EXPECT_EQ(move->reason, "at_once");
}

TEST_F(ReleaseTest, WithWarmUpNoRequestOfTheNewVersionDoes) {
  Start({{"release_warm_share", "1"}});
  AskAll(10);
  const auto move = Release(/*at_once=*/false);
  ASSERT_TRUE(move.ok()) << move.status();
  EXPECT_EQ(move->previous, "1");
  EXPECT_EQ(move->reason, "warm");
  EXPECT_EQ(move->warm_share, 1);
  EXPECT_EQ(cold_, 0);
  EXPECT_EQ(harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}"), kUsers);
  EXPECT_EQ(harness_->metrics.Value("backstory_release_warm_share"), 1);
  EXPECT_EQ(harness_->metrics.Value("backstory_prefetch_total{code=\"OK\",trigger=\"release\"}"), kUsers);
}

TEST_F(ReleaseTest, AShareLeavesTheColdestUsersToTheirRequests) {
  Start({{"release_warm_share", "0.5"}});
  AskAll(60);  // users of the first of five groups: 60 uses each of about 137 a column
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
  ASSERT_TRUE(move.ok()) << move.status();
  EXPECT_EQ(move->reason, "warm");
  EXPECT_GE(move->warm_share, 0.5);
  EXPECT_LT(move->warm_share, 0.6);
  for (int u = 0; u < kUsers; ++u) Ask(User(u));
  ASSERT_TRUE(WaitIdle());
  const double built = harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}");
  EXPECT_EQ(cold_, kUsers - static_cast<int>(built));
  EXPECT_LT(built, kUsers / 2) << "the hottest came first";
}

TEST_F(ReleaseTest, ARollbackDoesNotWait) {
  Start({{"release_warm_share", "1"}, {"release_warm_rows_per_s", "1"}});
  AskAll(2);
  const auto move = Release(/*at_once=*/true);
  ASSERT_TRUE(move.ok()) << move.status();
  EXPECT_EQ(move->reason, "at_once");
  EXPECT_GT(cold_, 0);
}

// The clock stands still, so the second user is never due; then the limit passes.
TEST_F(ReleaseTest, TheRateAndTheTimeLimitHold) {
  Start({{"release_warm_share", "1"}, {"release_warm_rows_per_s", "1"}, {"release_warm_s_max", "60"}});
  AskAll(2);
  std::atomic<bool> moved{false};
  std::thread release([&] {
    EXPECT_TRUE(harness_->engine->models().Load("fake", "2").ok());
    const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
    EXPECT_TRUE(move.ok()) << move.status();
    EXPECT_EQ(move->reason, "time");
    EXPECT_GT(move->warm_share, 0);
    EXPECT_LT(move->warm_share, 0.2);
    moved = true;
  });
  const auto built = [&] { return harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}"); };
  while (built() < 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(built(), 1) << "its rows, 20 in each of two channels at most, have used up the next seconds";
  EXPECT_FALSE(moved);
  harness_->clock.Advance(61 * kSecond);
  release.join();
  EXPECT_EQ((*harness_->engine->models().Resolve({"fake", "", ""}))->version, "2");
}

TEST_F(ReleaseTest, TheNextVersionTakesNoMoreThanHalfOfTheCache) {
  constexpr size_t kCache = 1'500'000;
  Start({{"release_warm_share", "1"}, {"cache_bytes", std::to_string(kCache)}});
  AskAll(5);
  const size_t before = harness_->engine->cache_for_test().bytes();
  ASSERT_GT(before, kCache / 2) << "the fixture's states are too small for this test";
  ASSERT_LT(before, kCache);
  // A version that nobody waits for takes what is free and pushes nobody out.
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  const auto ended = [&] { return harness_->metrics.Value("backstory_release_warm_ups_total{reason=\"room\"}"); };
  while (ended() < 1) std::this_thread::yield();
  EXPECT_EQ(harness_->engine->Stats().evictions, 0u);
  EXPECT_GT(harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}"), 0);
  const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
  ASSERT_TRUE(move.ok()) << move.status();
  size_t bytes = 0;
  for (const auto& user : harness_->engine->cache_for_test().UsersOf(
           UserStateProvider::StateKey(*Served(second_, "2"), harness_->engine->parameters().StateHash())))
    bytes += user.bytes;
  EXPECT_GT(bytes, kCache - before);
  EXPECT_LE(bytes, kCache / 2);
  EXPECT_EQ(move->reason, "room");
  EXPECT_LT(move->warm_share, 1);
}

TEST_F(ReleaseTest, UsersWhoCannotBeBuiltDoNotHoldUpALabel) {
  Start({{"release_warm_share", "1"}});
  AskAll(5);
  second_->extend_status = absl::InternalError("no");
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
  ASSERT_TRUE(move.ok()) << move.status();
  EXPECT_EQ(move->reason, "room");
  EXPECT_EQ(move->warm_share, 0);
  EXPECT_EQ(harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"failed\"}"), kUsers);
}

TEST_F(ReleaseTest, BadMovesAreRefusedAsBefore) {
  Start({});
  EXPECT_EQ(harness_->engine->MoveLabel("fake", "stable", "9", false).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(harness_->engine->MoveLabel("fake", "", "1", false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(harness_->engine->MoveLabel("fake", "stable", "1", false)->warm_share, 1);
  EXPECT_EQ(harness_->engine->MoveLabel("fake", "canary", "1", false)->previous, "");
}

// Whoever waits for a release is answered when the server goes away, and nothing hangs.
TEST_F(ReleaseTest, ADrainEndsTheWait) {
  Start({{"release_warm_share", "1"}, {"release_warm_rows_per_s", "1"}});
  AskAll(1);
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  std::thread release([&] {
    const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
    EXPECT_EQ(move.status().code(), absl::StatusCode::kUnavailable) << move.status();
  });
  while (harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}") < 1)
    std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // let it wait
  EXPECT_TRUE(harness_->engine->Drain(60 * kSecond).ok());
  release.join();
  EXPECT_EQ((*harness_->engine->models().Resolve({"fake", "", ""}))->version, "1");
}

TEST_F(ReleaseTest, UnloadingTheVersionEndsTheWait) {
  Start({{"release_warm_share", "1"}, {"release_warm_rows_per_s", "1"}});
  AskAll(1);
  ASSERT_TRUE(harness_->engine->models().Load("fake", "2").ok());
  std::thread release([&] {
    const auto move = harness_->engine->MoveLabel("fake", "stable", "2", false);
    EXPECT_EQ(move.status().code(), absl::StatusCode::kFailedPrecondition) << move.status();
  });
  while (harness_->metrics.Value("backstory_release_warm_users_total{outcome=\"built\"}") < 1)
    std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_TRUE(harness_->engine->models().Unload("fake", "2").ok());
  release.join();
}

}  // namespace
}  // namespace backstory::testing
