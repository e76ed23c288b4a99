// States of their own: anchors, verification, what can be extended.
#include "serving/engine/user_state.h"

#include <gtest/gtest.h>

#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

TEST(AnchorTest, IsTheFirstMultipleThatFits) {
  struct {
    uint64_t events;
    int64_t first_index, events_max, anchor;
  } const cases[] = {
      {0, 0, 4096, 0},       {4096, 0, 4096, 0},       {4097, 0, 4096, 4096},    {8192, 0, 4096, 4096},
      {8193, 0, 4096, 8192}, {5000, 4096, 8192, 4096}, {9000, 4096, 8192, 8192}, {100'000, 0, 65'536, 36'864},
  };
  for (const auto& c : cases) {
    UserHead head;
    head.events = c.events;
    head.first_index = c.first_index;
    const int64_t anchor = AnchorOf(head, c.events_max);
    EXPECT_EQ(anchor, c.anchor) << c.events << " events";
    EXPECT_EQ(anchor % kAnchorEvents, 0);
    EXPECT_LE(c.first_index + static_cast<int64_t>(c.events) - anchor, c.events_max);
  }
}

class UserStateTest : public ::testing::Test {
 protected:
  void Append(std::vector<Event> events) { ASSERT_TRUE(store_.Append(user_, events, kNow, Durability::kSynced).ok()); }
  std::unique_ptr<UserState> Build(int64_t events_max = 131072) {
    auto state = std::make_unique<UserState>(model_, events_max);
    ItemReader items(&catalog_, user_.ns);
    const absl::Status status = state->Build(model_, *store_.Read(user_, {}), kNow, &items, &report_);
    EXPECT_TRUE(status.ok()) << status;
    return state;
  }
  bool Extend(UserState* state) {
    HistoryTail tail = *store_.Tail(user_, state->head().seq);
    if (!state->CanExtend(tail, kNow)) return false;
    ItemReader items(&catalog_, user_.ns);
    const absl::Status status = state->Extend(model_, std::move(tail), kNow, &items, &report_);
    EXPECT_TRUE(status.ok()) << status;
    return true;
  }
  static const std::vector<std::vector<uint64_t>>& Chain(const UserState& state) {
    return static_cast<const FakeKv&>(state.kv()).chain;
  }
  static std::vector<Event> Many(uint64_t count, int64_t start_us) {
    std::vector<Event> events;
    for (uint64_t i = 0; i < count; ++i) {
      events.push_back(Shown(i + 1, start_us + static_cast<int64_t>(i) * kSecond, i % 7 + 1));
    }
    return events;
  }

  const UserKey user_{"default", "u"};
  FakeModel model_{FakeConfig()};
  FakeHistoryStore store_;
  FakeCatalog catalog_;
  CacheReport report_;
};

// A user with more events than a state may cover: it starts at an anchor, is extended until the anchor moves, and an
// event from before its start is nothing it could hold.
TEST_F(UserStateTest, APartialStateStartsAtItsAnchor) {
  Append(Many(4096 + 100, kNow - 100'000 * kSecond));
  auto state = Build(4096);
  EXPECT_EQ(state->anchor(), 4096);
  EXPECT_EQ(state->channels()[0].time_us.size(), 100u);
  Append({Shown(90'000, kNow - 10 * kSecond, 1)});
  ASSERT_TRUE(Extend(state.get()));
  EXPECT_EQ(Chain(*state), Chain(*Build(4096)));
  EXPECT_EQ(state->channels()[0].time_us.size(), 101u);
  Append({Shown(90'001, kNow - 100'000 * kSecond, 1)});
  EXPECT_FALSE(Extend(state.get()));
}

TEST_F(UserStateTest, AMovedAnchorIsARebuild) {
  Append(Many(8192, kNow - 100'000 * kSecond));
  auto state = Build(4096);
  EXPECT_EQ(state->anchor(), 4096);
  Append({Shown(90'000, kNow - 10 * kSecond, 1)});
  EXPECT_FALSE(Extend(state.get()));
  EXPECT_EQ(Build(4096)->anchor(), 8192);
}

// The rolling hash covers what K/V was computed from: a row that changed in memory is noticed before it is built upon.
TEST_F(UserStateTest, VerifyNoticesEveryKindOfDamage) {
  Append(Many(300, kNow - 10'000 * kSecond));
  const std::vector<std::function<void(HistoryRow*)>> damages{
      [](HistoryRow* row) { row->item_id ^= 1; },       [](HistoryRow* row) { row->time_us += 1; },
      [](HistoryRow* row) { row->action_class = 3; },   [](HistoryRow* row) { row->tie += 1; },
      [](HistoryRow* row) { row->scene = "x"; },        [](HistoryRow* row) { row->value = 1; },
      [](HistoryRow* row) { row->positive = true; },    [](HistoryRow* row) { row->context.push_back({"a", "b"}); },
      [](HistoryRow* row) { row->closed_us += 1; },     [](HistoryRow* row) { row->position = 2; },
      [](HistoryRow* row) { row->event_id = 1 << 20; },
  };
  for (size_t d = 0; d < damages.size(); ++d) {
    auto state = Build();
    ASSERT_TRUE(state->Verify());
    damages[d](&state->mutable_joined_for_test()->rows[200]);
    EXPECT_FALSE(state->Verify()) << "damage " << d;
  }
}

TEST_F(UserStateTest, ADamagedStateIsRebuiltByTheEngine) {
  auto model = std::make_shared<FakeModel>(FakeConfig());
  Harness harness({{"1", Served(model)}});
  harness.Append("a", Many(300, kNow - 10'000 * kSecond));
  ASSERT_TRUE(harness.Rank(Query("a")).ok());
  {
    const UserKey user{"default", "a"};
    const std::string key = harness.engine->cache_for_test().StateKeysOf(user).at(0);
    StateLease lease = StateLease::Acquire(harness.engine->cache_for_test().Get(user, key));
    lease.state()->mutable_joined_for_test()->rows[5].item_id = 999;
  }
  harness.Append("a", {Shown(9000, kNow - kSecond, 1)});
  const auto reply = harness.Rank(Query("a"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->cache.source, "rebuild");
  EXPECT_EQ(harness.metrics.Value("backstory_state_hash_mismatch_total"), 1);
}

TEST_F(UserStateTest, WhatWasKnownThenBeginsWhereItBeganThen) {
  Harness harness({{"1", Served(std::make_shared<FakeModel>(FakeConfig()))}}, {{"state_events_max", "4096"}});
  harness.Append("a", Many(5000, kNow - 20'000 * kSecond));
  const auto then = harness.Rank(Query("a"));
  ASSERT_TRUE(then.ok()) << then.status();
  EXPECT_EQ(then->rows_visible.at(0), 904u) << "from event 4,096 on";
  harness.clock.Advance(10'000 * kSecond);
  std::vector<Event> later = Many(4000, kNow + kSecond);
  for (Event& event : later) event.event_id += 10'000;
  harness.Append("a", later);
  RankQuery query = Query("a", {1, 2, 3}, kNow);
  query.as_of.known_by_us = kNow + kSecond;
  const auto again = harness.Rank(query);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->cache.source, "uncached");
  EXPECT_EQ(again->rows_visible, then->rows_visible);
  EXPECT_EQ(again->scores.at(0).raw_logit, then->scores.at(0).raw_logit);
}

// The same without a known-by time: what came after a view does not move where its history begins, whatever is cached,
// and two views with different beginnings each keep their state.
TEST_F(UserStateTest, ALookBackOfALongUserBeginsWhereItBeganThen) {
  Harness harness({{"1", Served(std::make_shared<FakeModel>(FakeConfig()))}}, {{"state_events_max", "4096"}});
  harness.Append("a", Many(5000, kNow - 20'000 * kSecond));
  const auto then = harness.Rank(Query("a"));
  ASSERT_TRUE(then.ok()) << then.status();
  EXPECT_EQ(then->rows_visible.at(0), 904u) << "from event 4,096 on";
  harness.clock.Advance(10'000 * kSecond);
  std::vector<Event> later = Many(4000, kNow + kSecond);
  for (Event& event : later) event.event_id += 10'000;
  harness.Append("a", later);
  const RankQuery past = Query("a", {1, 2, 3}, kNow), present = Query("a");
  Harness cold(&harness, {{"1", Served(std::make_shared<FakeModel>(FakeConfig()))}}, {{"state_events_max", "4096"}});
  for (Harness* engine : {&harness, &cold}) {
    for (int round = 0; round < 3; ++round) {
      const auto again = engine->Rank(past);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(again->rows_visible, then->rows_visible) << round;
      EXPECT_EQ(again->scores.at(0).raw_logit, then->scores.at(0).raw_logit) << round;
      const auto now = engine->Rank(present);
      ASSERT_TRUE(now.ok()) << now.status();
      EXPECT_EQ(now->rows_visible.at(0), 808u) << "from event 8,192 on";
      if (round == 0) continue;
      EXPECT_EQ(again->cache.source, "hit");
      EXPECT_EQ(now->cache.source, "hit");
    }
  }
}

// Through a user's past in order, each view has what a state built for it alone has, and the work is that of the rows,
// not of rows times views.
TEST_F(UserStateTest, AWalkThroughALongPastReadsAndComputesLittle) {
  Harness harness({{"1", Served(std::make_shared<FakeModel>(FakeConfig()))}}, {{"state_events_max", "4096"}});
  harness.clock.Advance(20'000 * kSecond);
  harness.Append("a", Many(13'000, kNow));
  uint64_t computed = 0;
  for (int64_t event = 50; event < 13'000; event += 50) {
    const auto reply = harness.Rank(Query("a", {1, 2, 3}, kNow + event * kSecond));
    ASSERT_TRUE(reply.ok()) << reply.status();
    computed += reply->cache.rows_computed;
    UserHead seen;
    seen.events = static_cast<uint64_t>(event);
    ASSERT_EQ(reply->rows_visible.at(0), static_cast<uint64_t>(event - AnchorOf(seen, 4096))) << event;
    if (event % 1000 != 0) continue;
    RankQuery alone = Query("a", {1, 2, 3}, kNow + event * kSecond);
    alone.as_of.known_by_us = harness.clock.WallMicros();  // a state of its own
    EXPECT_EQ(harness.Rank(alone)->scores.at(0).raw_logit, reply->scores.at(0).raw_logit) << event;
  }
  EXPECT_LE(computed, 2u * 13'000) << "each row once for each channel";
  // A late event in that past moves the beginnings after it.
  harness.Append("a", {Shown(90'000, kNow + 10 * kSecond + 1, 3)});
  for (const int64_t event : {4095, 4096, 12'000, 5'000, 40}) {
    RankQuery query = Query("a", {1, 2, 3}, kNow + event * kSecond);
    const auto reply = harness.Rank(query);
    ASSERT_TRUE(reply.ok()) << reply.status();
    query.as_of.known_by_us = harness.clock.WallMicros();
    const auto alone = harness.Rank(query);
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(alone->cache.source, "uncached");
    EXPECT_EQ(alone->rows_visible, reply->rows_visible) << event;
    EXPECT_EQ(alone->scores.at(0).raw_logit, reply->scores.at(0).raw_logit) << event;
  }
}

// A read that gives less than the head promises must not become a state.
TEST_F(UserStateTest, AShortReadIsDataLoss) {
  Append(Many(10, kNow - 100 * kSecond));
  HistoryStore::Snapshot snapshot = *store_.Read(user_, {});
  snapshot.events.pop_back();
  UserState state(model_, 131072);
  ItemReader items(&catalog_, user_.ns);
  EXPECT_EQ(state.Build(model_, snapshot, kNow, &items, &report_).code(), absl::StatusCode::kDataLoss);
}

TEST_F(UserStateTest, TailsThatDoNotFitAreRefused) {
  Append(Many(10, kNow - 100 * kSecond));
  auto state = Build();
  HistoryTail tail = *store_.Tail(user_, state->head().seq);
  EXPECT_TRUE(state->CanExtend(tail, kNow));
  HistoryTail other = tail;
  other.rebuild = true;
  EXPECT_FALSE(state->CanExtend(other, kNow));
  other = tail;
  ++other.head.epoch;
  EXPECT_FALSE(state->CanExtend(other, kNow));
  other = tail;
  ++other.head.events;  // promises an event that it does not carry
  EXPECT_FALSE(state->CanExtend(other, kNow));
  other = tail;
  other.head.first_index = 4096;
  EXPECT_FALSE(state->CanExtend(other, kNow));
}

TEST_F(UserStateTest, BytesGrowWithRows) {
  Append(Many(100, kNow - 10'000 * kSecond));
  const size_t small = Build()->Bytes();
  std::vector<Event> more = Many(400, kNow - 5'000 * kSecond);
  for (Event& event : more) event.event_id += 1000;
  Append(more);
  const size_t large = Build()->Bytes();
  EXPECT_GT(small, 100 * 1024u);  // the fake's K/V alone
  EXPECT_GT(large, 4 * small);
}

}  // namespace
}  // namespace backstory::testing
