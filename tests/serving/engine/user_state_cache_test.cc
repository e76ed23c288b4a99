// Pins, leases, eviction. Runs under the thread sanitizer.
#include "serving/engine/user_state_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/serving/engine/fakes.h"

namespace backstory::testing {
namespace {

const FakeModel& Model() {
  static const FakeModel model(FakeConfig());
  return model;
}

UserKey User(int i) { return {"default", "user" + std::to_string(i)}; }

// Puts a state of `bytes` (as far as the cache knows) into the entry.
void Fill(UserStateCache* cache, const UserKey& user, size_t bytes, const std::string& key = "s:0") {
  const auto entry = cache->Get(user, key);
  StateLease lease = StateLease::Acquire(entry);
  lease.state() = std::make_unique<UserState>(Model(), 4096);
  cache->SetBytes(user, entry, bytes);
}

bool Has(UserStateCache* cache, const UserKey& user, const std::string& key = "s:0") {
  const std::vector<std::string> keys = cache->StateKeysOf(user);
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

TEST(UserStateCacheTest, EvictsTheLeastRecentlyUsed) {
  UserStateCache cache(1000);
  for (int i = 0; i < 4; ++i) Fill(&cache, User(i), 250);
  cache.Get(User(0), "s:0");  // used again
  Fill(&cache, User(4), 250);
  EXPECT_TRUE(Has(&cache, User(0)));
  EXPECT_FALSE(Has(&cache, User(1)));
  EXPECT_TRUE(Has(&cache, User(2)));
  EXPECT_EQ(cache.GetStats().bytes, 1000u);
  EXPECT_EQ(cache.GetStats().evictions, 1u);
  EXPECT_EQ(cache.GetStats().users, 4u);
}

TEST(UserStateCacheTest, WhatIsPinnedStays) {
  UserStateCache cache(1000);
  Fill(&cache, User(0), 600);
  StatePin pin;
  ASSERT_TRUE(StatePin::TryAcquire(cache.Get(User(0), "s:0"), &pin));
  Fill(&cache, User(1), 600);
  EXPECT_TRUE(Has(&cache, User(0)));
  EXPECT_NE(pin.state(), nullptr);
  pin.Release();
  Fill(&cache, User(2), 600);
  EXPECT_FALSE(Has(&cache, User(0)));
  EXPECT_LE(cache.GetStats().bytes, 1000u);
}

TEST(UserStateCacheTest, AStateThatGrowsIsAccountedOnce) {
  UserStateCache cache(10'000);
  Fill(&cache, User(0), 100);
  Fill(&cache, User(0), 300);
  EXPECT_EQ(cache.GetStats().bytes, 300u);
  EXPECT_EQ(cache.GetStats().states, 1u);
}

TEST(UserStateCacheTest, ErasingAUserLeavesReadersAlone) {
  UserStateCache cache(10'000);
  Fill(&cache, User(0), 100, "a:0");
  Fill(&cache, User(0), 100, "b:0");
  StatePin pin;
  ASSERT_TRUE(StatePin::TryAcquire(cache.Get(User(0), "a:0"), &pin));
  EXPECT_EQ(cache.EraseUser(User(0)), 2u);
  EXPECT_TRUE(cache.StateKeysOf(User(0)).empty());
  EXPECT_EQ(cache.GetStats().bytes, 0u);
  EXPECT_NE(pin.state(), nullptr);
  // A holder of the old entry reports bytes that no longer count.
  Fill(&cache, User(0), 70, "a:0");
  EXPECT_EQ(cache.GetStats().bytes, 70u);
}

TEST(UserStateCacheTest, ErasesByStateKeyPrefix) {
  UserStateCache cache(10'000);
  Fill(&cache, User(0), 1, "a:0");
  Fill(&cache, User(1), 1, "a:1");
  Fill(&cache, User(1), 1, "ab:1");
  EXPECT_EQ(cache.EraseStateKeys("a:"), 2u);
  EXPECT_TRUE(Has(&cache, User(1), "ab:1"));
}

TEST(StateLeaseTest, ReadersShareAndWritersDoNot) {
  const auto entry = std::make_shared<CacheEntry>("s:0");
  StatePin a, b;
  ASSERT_TRUE(StatePin::TryAcquire(entry, &a));
  ASSERT_TRUE(StatePin::TryAcquire(entry, &b));
  EXPECT_FALSE(StateLease::TryAcquire(entry));
  a.Release();
  EXPECT_FALSE(StateLease::TryAcquire(entry));
  b.Release();
  StateLease lease = StateLease::TryAcquire(entry);
  ASSERT_TRUE(lease);
  EXPECT_FALSE(StatePin::TryAcquire(entry, &a));
  EXPECT_FALSE(StateLease::TryAcquire(entry));
  b = std::move(lease).Downgrade();
  EXPECT_TRUE(StatePin::TryAcquire(entry, &a));
}

// However many ask for a cold user at once, one builds.
TEST(StateLeaseTest, OneBuildsForAll) {
  const auto entry = std::make_shared<CacheEntry>("s:0");
  std::atomic<int> builds{0}, served{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      StateLease lease = StateLease::Acquire(entry);
      if (lease.state() == nullptr) {
        ++builds;
        lease.state() = std::make_unique<UserState>(Model(), 4096);
      }
      const StatePin pin = std::move(lease).Downgrade();
      if (pin.state() != nullptr) ++served;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(builds, 1);
  EXPECT_EQ(served, 8);
}

TEST(UserStateCacheTest, SurvivesManyThreads) {
  UserStateCache cache(2000);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&cache, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 1500; ++i) {
        const UserKey user = User(static_cast<int>(random() % 20));
        switch (random() % 6) {
          case 0:
            cache.EraseUser(user);
            break;
          case 1:
            cache.EraseStateKeys("none:");
            cache.GetStats();
            break;
          case 2: {
            StatePin pin;
            if (StatePin::TryAcquire(cache.Get(user, "s:0"), &pin) && pin.state() != nullptr) {
              EXPECT_EQ(pin.state()->view_us(), 0);
            }
            break;
          }
          default:
            Fill(&cache, user, 100 + random() % 100);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Fill(&cache, User(0), 1);
  EXPECT_LE(cache.GetStats().bytes, 2000u);
  cache.EraseStateKeys("s:");
  EXPECT_EQ(cache.GetStats().bytes, 0u);
  EXPECT_EQ(cache.GetStats().users, 0u);
}

}  // namespace
}  // namespace backstory::testing
