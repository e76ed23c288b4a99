#include "tests/store/history_store_contract.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "gmock/gmock.h"

namespace backstory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::vector<uint64_t> Ids(const std::vector<Event>& events) {
  std::vector<uint64_t> ids;
  for (const Event& e : events) ids.push_back(e.event_id);
  return ids;
}

Event Tombstone(Event e, uint32_t revision) {
  e.tombstone = true;
  e.revision = revision;
  return e;
}

}  // namespace

// An unknown user is not an error: seq 0, no events.
TEST_P(HistoryStoreContract, UnknownUserIsEmpty) {
  EXPECT_EQ(Head(), UserHead());
  EXPECT_THAT(Events(), IsEmpty());
  const HistoryTail tail = *store_->Tail(user_, 0);
  EXPECT_FALSE(tail.rebuild);
  EXPECT_THAT(tail.events, IsEmpty());
}

TEST_P(HistoryStoreContract, EveryFieldSurvivesAndOrderIsCanonical) {
  Event full = Rating(3, kNow - kHour, 42, 4.5f);
  full.revision = 2;
  full.request_id = 77;
  full.position = 5;
  full.scene = "home";
  full.exposure_id = 2;
  full.context = {{"device", "phone"}, {"empty", ""}};
  full.embedding_ids = {1, ~uint64_t{0}};
  const Event tie_b = Exposure(9, kNow - 2 * kHour), tie_a = Exposure(2, kNow - 2 * kHour);
  EXPECT_EQ(Append({full, tie_b, tie_a}).accepted, 3u);
  const std::vector<Event> events = Events();
  ASSERT_THAT(Ids(events), ElementsAre(2, 9, 3));
  full.ingest_time_us = kNow;
  EXPECT_EQ(events[2], full);
  Reopen();
  EXPECT_EQ(Events(), events);
}

TEST_P(HistoryStoreContract, RepeatedEventIsDuplicateAndChangesNothing) {
  Append({Exposure(1, kNow - 5)});
  const UserHead before = Head();
  const AppendResult again = Append({Exposure(1, kNow - 5)}, kNow + 9);
  EXPECT_THAT(again.outcomes, ElementsAre(EventOutcome::kDuplicate));
  EXPECT_EQ(again.seq, before.seq);
  EXPECT_EQ(Head(), before);
  EXPECT_EQ(Events()[0].ingest_time_us, kNow) << "the first ingest time stays";
}

TEST_P(HistoryStoreContract, RepeatWithinOneBatchIsDuplicate) {
  const AppendResult result = Append({Exposure(1, 10), Exposure(1, 10), Exposure(1, 11)});
  EXPECT_THAT(result.outcomes, ElementsAre(EventOutcome::kAccepted, EventOutcome::kDuplicate, EventOutcome::kConflict));
  EXPECT_THAT(Events(), SizeIs(1));
}

TEST_P(HistoryStoreContract, SameRevisionOtherContentIsConflictAndFirstIsKept) {
  Append({Rating(1, 10, 5, 3)});
  const AppendResult result = Append({Rating(1, 10, 5, 4)});
  EXPECT_EQ(result.conflict, 1u);
  EXPECT_THAT(result.reasons[0], HasSubstr("revision"));
  EXPECT_EQ(Events()[0].value, 3);
}

TEST_P(HistoryStoreContract, HigherRevisionWinsAndRaisesEpoch) {
  Append({Rating(1, 10, 5, 3), Exposure(2, 20)});
  const UserHead before = Head();
  Event corrected = Rating(1, 30, 5, 4);
  corrected.revision = 1;
  EXPECT_EQ(Append({corrected}).accepted, 1u);
  EXPECT_THAT(Ids(Events()), ElementsAre(2, 1)) << "a correction may move an event";
  EXPECT_EQ(Head().epoch, before.epoch + 1);
  EXPECT_EQ(Head().events, 2u);
  EXPECT_EQ(Head().newest_us, 30);
  EXPECT_THAT(Append({Rating(1, 10, 5, 3)}).outcomes, ElementsAre(EventOutcome::kStale));
  EXPECT_TRUE(store_->Tail(user_, before.seq)->rebuild);
}

TEST_P(HistoryStoreContract, CorrectionBackInTimeLowersNewest) {
  Append({Exposure(1, 10), Exposure(2, 20)});
  Event moved = Exposure(2, 5);
  moved.revision = 1;
  Append({moved});
  EXPECT_EQ(Head().newest_us, 10);
  EXPECT_THAT(Ids(Events()), ElementsAre(2, 1));
}

TEST_P(HistoryStoreContract, TombstoneHidesAndRefusesReplays) {
  Append({Exposure(1, 10), Exposure(2, 20)});
  Append({Tombstone(Exposure(2, 20), 1)});
  EXPECT_THAT(Ids(Events()), ElementsAre(1));
  EXPECT_EQ(Head().events, 1u);
  EXPECT_EQ(Head().newest_us, 10);
  EXPECT_EQ(Append({Exposure(2, 20)}).duplicate, 1u) << "a replay of the deleted revision is stale";
  HistoryRange all;
  all.include_tombstones = true;
  EXPECT_THAT(Events(all), SizeIs(2));
  Event revived = Exposure(2, 20);
  revived.revision = 2;
  EXPECT_EQ(Append({revived}).accepted, 1u);
  EXPECT_THAT(Ids(Events()), ElementsAre(1, 2));
}

TEST_P(HistoryStoreContract, TombstoneBeforeItsEventIsRemembered) {
  Append({Tombstone(Exposure(1, 10), 5)});
  EXPECT_EQ(Append({Exposure(1, 10)}).duplicate, 1u);
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_P(HistoryStoreContract, AsOfIsStrictAndKnowsIngestTime) {
  Append({Exposure(1, 10), Exposure(2, 20)}, 100);
  Append({Exposure(3, 15)}, 200);
  EXPECT_THAT(Ids(Events({.as_of = {.event_time_us = 20}})), ElementsAre(1, 3));
  EXPECT_THAT(Ids(Events({.as_of = {.event_time_us = 21}})), ElementsAre(1, 3, 2));
  EXPECT_THAT(Ids(Events({.as_of = {.event_time_us = 21, .known_by_us = 199}})), ElementsAre(1, 2));
  EXPECT_THAT(Ids(Events({.as_of = {.event_time_us = 21, .known_by_us = 200}})), ElementsAre(1, 3, 2));
  EXPECT_THAT(Events({.as_of = {.event_time_us = 0}}), IsEmpty());
  EXPECT_THAT(Ids(Events({.from_us = 15})), ElementsAre(3, 2));
  EXPECT_THAT(Ids(Events({.newest = 2})), ElementsAre(3, 2));
  EXPECT_THAT(Events({.newest = 0}), IsEmpty());
}

TEST_P(HistoryStoreContract, EventsInTheFutureOfNowAreStoredUpToADay) {
  const AppendResult result = Append({Exposure(1, kNow + 24 * kHour), Exposure(2, kNow + 24 * kHour + 1)});
  EXPECT_THAT(result.outcomes, ElementsAre(EventOutcome::kAccepted, EventOutcome::kRejected));
  EXPECT_THAT(result.reasons[1], HasSubstr("time_us"));
  EXPECT_THAT(Events({.as_of = {.event_time_us = kNow}}), IsEmpty());
}

// Both sides of every limit of an event.
TEST_P(HistoryStoreContract, LimitsNameTheField) {
  const auto reason = [this](const Event& e) { return Append({e}).reasons[0]; };
  Event e = Exposure(1, 0);
  EXPECT_EQ(reason(e), "");
  e = Exposure(2, -1);
  EXPECT_THAT(reason(e), HasSubstr("time_us"));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_THAT(reason(Rating(3, 5, 1, bad)), HasSubstr("value"));
  }
  e = Exposure(4, 5);
  e.kind = static_cast<EventKind>(3);
  EXPECT_THAT(reason(e), HasSubstr("kind"));
  e = Exposure(5, 5);
  e.scene = std::string(65, 's');
  EXPECT_THAT(reason(e), HasSubstr("scene: 65 bytes, limit 64"));
  e.scene.pop_back();
  EXPECT_EQ(reason(e), "");
  e = Exposure(6, 5);
  e.context.assign(33, {"n", "v"});
  EXPECT_THAT(reason(e), HasSubstr("context: 33"));
  e.context.assign(32, {std::string(64, 'n'), std::string(256, 'v')});
  EXPECT_EQ(reason(e), "");
  e.context = {{std::string(65, 'n'), "v"}};
  EXPECT_THAT(reason(e), HasSubstr("context.name"));
  e.context = {{"", "v"}};
  EXPECT_THAT(reason(e), HasSubstr("context.name"));
  e.context = {{"n", std::string(257, 'v')}};
  EXPECT_THAT(reason(e), HasSubstr("context.n: 257 bytes, limit 256"));
  e = Exposure(7, 5);
  e.embedding_ids.assign(17, 1);
  EXPECT_THAT(reason(e), HasSubstr("embedding_ids"));
  e.embedding_ids.pop_back();
  EXPECT_EQ(reason(e), "");
}

TEST_P(HistoryStoreContract, CallsOutsideLimitsAreInvalidArgument) {
  const auto status = [this](const UserKey& user, size_t events, int64_t now_us = kNow) {
    return store_->Append(user, std::vector<Event>(events, Exposure(1, 5)), now_us, Durability::kBuffered).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(status({"shop", ""}, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(status({"shop", std::string(257, 'u')}, 1)));
  EXPECT_TRUE(status({"shop", std::string(256, 'u')}, 1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(status({"Shop", "u"}, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(status({"", "u"}, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(status({std::string(65, 'n'), "u"}, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(status({"shop", "u"}, 10'001)));
  EXPECT_TRUE(status({"shop", "u"}, 10'000).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(status({"shop", "u"}, 1, -1)));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Read({"shop", ""}, {}).status()));
}

TEST_P(HistoryStoreContract, TailReturnsWhatChangedAndNothingElse) {
  Append({Exposure(1, 10), Exposure(2, 20)});
  const uint64_t seq = Head().seq;
  EXPECT_EQ(Append({Exposure(3, 15), Exposure(4, 30)}).late, 1u);
  const HistoryTail tail = *store_->Tail(user_, seq);
  EXPECT_FALSE(tail.rebuild);
  EXPECT_THAT(Ids(tail.events), ElementsAre(3, 4));
  EXPECT_EQ(tail.oldest_changed_us, 15);
  EXPECT_EQ(tail.head, Head());
  EXPECT_THAT(Ids(store_->Tail(user_, 0)->events), ElementsAre(1, 3, 2, 4));
  EXPECT_THAT(store_->Tail(user_, Head().seq)->events, IsEmpty());
  EXPECT_TRUE(store_->Tail(user_, Head().seq + 1)->rebuild) << "a sequence the store never gave out";
}

// Random batches in random order against a model in memory: reads, heads, tails and ranges agree at every step.
TEST_P(HistoryStoreContract, AgreesWithAModelInMemory) {
  std::mt19937_64 random(TestSeed());
  std::map<uint64_t, Event> model;
  uint64_t seq = 0;
  for (int step = 0; step < 60; ++step) {
    std::vector<Event> batch;
    for (uint64_t n = random() % (step % 7 == 0 ? 1500 : 20) + 1; n > 0; --n)
      batch.push_back(RandomEvent(&random, 5000, 0, 1'000'000));
    const AppendResult result = Append(batch);
    std::vector<uint64_t> changed;
    for (size_t i = 0; i < batch.size(); ++i) {
      const auto known = model.find(batch[i].event_id);
      const bool wins = known == model.end() || batch[i].revision > known->second.revision;
      ASSERT_EQ(result.outcomes[i] == EventOutcome::kAccepted, wins) << "step " << step << " event " << i;
      if (wins) model[batch[i].event_id] = batch[i];
    }
    seq += result.accepted > 0;
    ASSERT_EQ(result.seq, seq);
    if (step % 20 == 19) Reopen();
    std::vector<Event> expected;
    for (const auto& [id, e] : model) expected.push_back(e);
    std::sort(expected.begin(), expected.end(), CanonicalLess);
    const std::vector<Event> events = Canonical(Events());
    ASSERT_EQ(events, expected) << "step " << step;
    ASSERT_EQ(Head().events, expected.size());
    ASSERT_EQ(Head().newest_us, expected.back().time_us);
    const size_t newest = random() % 3000 + 1;
    const int64_t as_of = static_cast<int64_t>(random() % 1'000'000);
    std::erase_if(expected, [as_of](const Event& e) { return e.time_us >= as_of; });
    if (expected.size() > newest)
      expected.erase(expected.begin(), expected.end() - static_cast<std::ptrdiff_t>(newest));
    ASSERT_EQ(Canonical(Events({.as_of = {.event_time_us = as_of}, .newest = newest})), expected);
  }
}

// Applying tails to a copy gives the history, whatever the batches.
TEST_P(HistoryStoreContract, TailsReplayTheHistory) {
  std::mt19937_64 random(TestSeed());
  std::vector<Event> copy;
  uint64_t seq = 0;
  uint64_t next_id = 1;
  for (int step = 0; step < 80; ++step) {
    for (uint64_t commits = random() % 3; commits > 0; --commits) {
      std::vector<Event> batch;
      for (uint64_t n = random() % 200 + 1; n > 0; --n) {
        batch.push_back(Exposure(next_id++, static_cast<int64_t>(random() % 1'000'000)));
      }
      Append(batch);
    }
    const HistoryTail tail = *store_->Tail(user_, seq);
    ASSERT_FALSE(tail.rebuild);
    for (const Event& e : tail.events) ASSERT_GE(e.time_us, tail.oldest_changed_us);
    copy.insert(copy.end(), tail.events.begin(), tail.events.end());
    std::sort(copy.begin(), copy.end(), CanonicalLess);
    seq = tail.head.seq;
    ASSERT_EQ(copy, Events()) << "step " << step;
  }
}

// Replayed three times, shuffled and across restarts, a log gives the history of one ordered pass (R18).
TEST_P(HistoryStoreContract, DuplicatesAndReorderingEndInTheSameHistory) {
  std::mt19937_64 random(TestSeed());
  std::vector<Event> log;
  for (uint64_t id = 1; id <= 3000; ++id) {
    Event e = RandomEvent(&random, 1, 0, 1'000'000);
    e.event_id = id;
    e.revision = 0;
    log.push_back(e);
    if (random() % 10 == 0) {
      e.revision = 1;
      e.item_id = 1000;
      if (random() % 2 == 0) e.tombstone = true;
      log.push_back(e);
    }
  }
  const UserKey ordered{"shop", "ordered"};
  for (size_t i = 0; i < log.size(); i += 500) {
    MustAppend(*store_, ordered,
               {log.begin() + static_cast<std::ptrdiff_t>(i),
                log.begin() + static_cast<std::ptrdiff_t>(std::min(i + 500, log.size()))});
  }
  std::vector<Event> thrice;
  for (int copy = 0; copy < 3; ++copy) thrice.insert(thrice.end(), log.begin(), log.end());
  std::shuffle(thrice.begin(), thrice.end(), random);
  for (size_t i = 0; i < thrice.size();) {
    const size_t n = std::min<size_t>(random() % 400 + 1, thrice.size() - i);
    Append({thrice.begin() + static_cast<std::ptrdiff_t>(i), thrice.begin() + static_cast<std::ptrdiff_t>(i + n)},
           kNow + static_cast<int64_t>(i));
    i += n;
    if (random() % 20 == 0) Reopen();
  }
  HistoryRange all;
  all.include_tombstones = true;
  EXPECT_EQ(Canonical(Events(all)), Canonical(ReadEvents(*store_, ordered, all)));
  EXPECT_EQ(Head().hash, store_->Head(ordered)->hash);
  EXPECT_EQ(Head().events, store_->Head(ordered)->events);
}

// A clock that jumps back and forth changes ingest times, nothing else (R17).
TEST_P(HistoryStoreContract, ClockJumpsKeepOrder) {
  for (const int64_t now : {kNow, kNow + 24 * kHour, kNow - 24 * kHour, kNow + kSecond}) {
    Append({Exposure(static_cast<uint64_t>(now), now)}, now);
  }
  EXPECT_THAT(Ids(Events()), ElementsAre(kNow - 24 * kHour, kNow, kNow + kSecond, kNow + 24 * kHour));
  EXPECT_EQ(Head().seq, 4u);
}

TEST_P(HistoryStoreContract, AppendManyKeepsUsersApart) {
  std::vector<HistoryStore::UserBatch> batches;
  for (int i = 0; i < 40; ++i) {
    const uint64_t id = static_cast<uint64_t>(i) + 1;
    batches.push_back({{"shop", Numbered("u", i % 10)}, std::vector<Event>(1, Exposure(id, i))});
  }
  const auto results = store_->AppendMany(batches, kNow, Durability::kSynced);
  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_THAT(*results, SizeIs(40));
  EXPECT_EQ((*results)[39].seq, 4u);
  EXPECT_THAT(Ids(ReadEvents(*store_, {"shop", "u3"})), ElementsAre(4, 14, 24, 34));
  EXPECT_THAT(ReadEvents(*store_, {"other", "u3"}), IsEmpty()) << "namespaces are apart";
}

TEST_P(HistoryStoreContract, ForEachUserVisitsEachOnce) {
  std::map<std::string, uint64_t> seen;
  for (int i = 0; i < 100; ++i) MustAppend(*store_, {"shop", Numbered("u", i)}, {Exposure(1, i)});
  MustAppend(*store_, {"other", "x"}, {Exposure(1, 1)});
  ASSERT_TRUE(store_
                  ->ForEachUser("shop",
                                [&](const UserKey& user, const UserHead& head) {
                                  ++seen[user.user];
                                  EXPECT_EQ(head.events, 1u);
                                  return true;
                                })
                  .ok());
  EXPECT_THAT(seen, SizeIs(100));
  int visits = 0;
  ASSERT_TRUE(store_->ForEachUser("shop", [&](const UserKey&, const UserHead&) { return ++visits < 3; }).ok());
  EXPECT_EQ(visits, 3);
}

}  // namespace backstory
