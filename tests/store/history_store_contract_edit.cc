// The contract of HistoryStore, second half: delete, merge, retain, statistics, checkpoint, slots, concurrency.
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "tests/store/history_store_contract.h"

namespace backstory {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::vector<Event> Sequence(uint64_t first, uint64_t last, uint64_t item = 7) {
  std::vector<Event> events;
  for (uint64_t id = first; id <= last; ++id) events.push_back(Rating(id, static_cast<int64_t>(id) * kSecond, item, 4));
  return events;
}

uint64_t CountOf(HistoryStore& store, uint64_t item, int64_t before_us = kNow) {
  const auto counts = store.CountsBefore("shop", item, before_us, kHour);
  EXPECT_TRUE(counts.ok()) << counts.status();
  uint64_t sum = counts->exposures;
  for (const auto& cell : counts->cells) sum += cell.count;
  return sum;
}

}  // namespace

TEST_P(HistoryStoreContract, DeleteNeedsExactlyOneSelector) {
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Delete(user_, {}, kNow).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Delete(user_, {.all = true, .has_item = true}, kNow).status()));
}

TEST_P(HistoryStoreContract, DeleteByIdTimeAndItem) {
  Append(Sequence(1, 600));
  Append(Sequence(601, 610, 8));
  uint64_t epoch = Head().epoch;
  EXPECT_EQ(*store_->Delete(user_, {.event_ids = {5, 605, 99999}}, kNow), 2u);
  EXPECT_EQ(Head().epoch, ++epoch);
  EXPECT_EQ(*store_->Delete(user_, {.from_us = 10 * kSecond, .until_us = 20 * kSecond}, kNow), 10u);
  EXPECT_EQ(*store_->Delete(user_, {.item_id = 8, .has_item = true}, kNow), 9u);
  EXPECT_EQ(Head().events, 589u);
  EXPECT_EQ(Head().newest_us, 600 * kSecond);
  EXPECT_EQ(Append(Sequence(1, 610)).duplicate, 610u) << "replays of deleted events stay deleted";
  EXPECT_THAT(Events(), SizeIs(589));
  EXPECT_EQ(CountOf(*store_, 8), 0u);
  EXPECT_EQ(CountOf(*store_, 7), 589u);
  EXPECT_EQ(*store_->Delete(user_, {.event_ids = {5}}, kNow), 0u);
}

TEST_P(HistoryStoreContract, DeleteUserRefusesReplaysAndContinuesSeqAndEpoch) {
  Append(Sequence(1, 700));
  const UserHead before = Head();
  EXPECT_EQ(*store_->Delete(user_, {.all = true}, 650 * kSecond), 700u);
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_GT(Head().seq, before.seq);
  EXPECT_GT(Head().epoch, before.epoch);
  EXPECT_EQ(CountOf(*store_, 7), 0u);
  for (int pass = 0; pass < 2; ++pass) {
    const AppendResult replay = Append(Sequence(600, 655));
    EXPECT_EQ(replay.rejected, 51u) << "events until the deletion are replays";
    EXPECT_THAT(replay.reasons[0], HasSubstr("deletion"));
    EXPECT_TRUE(store_->Tail(user_, before.seq)->rebuild);
    Reopen();
  }
  EXPECT_THAT(Events(), SizeIs(5));
  EXPECT_EQ(store_->GetStats()->users, 1u);
}

TEST_P(HistoryStoreContract, DeletedUnknownUserRefusesLaterReplays) {
  EXPECT_EQ(*store_->Delete(user_, {.all = true}, kNow), 0u);
  EXPECT_EQ(Append({Exposure(1, kNow - 1)}).rejected, 1u);
}

TEST_P(HistoryStoreContract, MergeMovesEventsAndRedirects) {
  const UserKey phone{"shop", "phone"}, tablet{"shop", "tablet"};
  Append(Sequence(1, 300));
  MustAppend(*store_, phone, Sequence(250, 400));  // 51 are known under both ids
  MustAppend(*store_, tablet, {Exposure(1000, 5, 6)});
  const UserHead a = Head(), b = *store_->Head(phone);
  ASSERT_TRUE(store_->Merge(phone, user_, kNow).ok());
  EXPECT_GT(Head().epoch, std::max(a.epoch, b.epoch));
  EXPECT_GT(Head().seq, std::max(a.seq, b.seq));
  EXPECT_THAT(Events(), SizeIs(400));
  EXPECT_EQ(CountOf(*store_, 7), 400u);
  EXPECT_EQ(*store_->Head(phone), Head());
  ASSERT_TRUE(store_->Merge(user_, tablet, kNow).ok()) << "an alias follows its primary";
  EXPECT_EQ(*store_->Head(phone), *store_->Head(tablet));
  Reopen();
  MustAppend(*store_, phone, Sequence(401, 401));
  EXPECT_THAT(ReadEvents(*store_, tablet), SizeIs(402));
  ASSERT_TRUE(store_->Merge(phone, tablet, kNow).ok()) << "again is no error";
  int users = 0;
  ASSERT_TRUE(store_->ForEachUser("shop", [&](const UserKey&, const UserHead&) { return ++users > 0; }).ok());
  EXPECT_EQ(users, 1);
  EXPECT_EQ(store_->GetStats()->events, 402u);
  EXPECT_EQ(*store_->Delete(phone, {.all = true}, kNow), 402u) << "deleting an alias deletes the person";
  EXPECT_EQ(MustAppend(*store_, tablet, Sequence(1, 5)).rejected, 5u);
  EXPECT_EQ(MustAppend(*store_, phone, Sequence(1, 5)).rejected, 5u);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->Merge(phone, {"other", "x"}, kNow)));
}

TEST_P(HistoryStoreContract, MergeRevivesNothingThatWasDeleted) {
  const UserKey phone{"shop", "phone"}, tablet{"shop", "tablet"};
  MustAppend(*store_, phone, Sequence(1, 10));
  ASSERT_EQ(*store_->Delete(phone, {.all = true}, 20 * kSecond), 10u);
  Append(Sequence(101, 103));
  ASSERT_TRUE(store_->Merge(phone, user_, kNow).ok());
  for (int pass = 0; pass < 2; ++pass) {
    const AppendResult replay = MustAppend(*store_, phone, Sequence(1, 10));
    EXPECT_EQ(replay.rejected, 10u) << "the id was deleted, whomever it belongs to now";
    EXPECT_THAT(replay.reasons[0], HasSubstr("deletion"));
    Reopen();
  }
  EXPECT_EQ(MustAppend(*store_, phone, Sequence(25, 26)).accepted, 2u);
  EXPECT_EQ(Append({Exposure(99, 5 * kSecond)}).accepted, 1u)
      << "the other id was not deleted: late events are welcome";
  ASSERT_TRUE(store_->Merge(user_, tablet, kNow).ok());
  EXPECT_EQ(MustAppend(*store_, phone, Sequence(1, 10)).rejected, 10u);
  EXPECT_EQ(MustAppend(*store_, tablet, {Exposure(98, 5 * kSecond)}).accepted, 1u);
}

TEST_P(HistoryStoreContract, RetainDropsBeforeAnAnchorOnly) {
  for (uint64_t part = 0; part < 3; ++part) Append(Sequence(part * 4000 + 1, part * 4000 + 4000));
  EXPECT_EQ(*store_->Retain(user_, 12'000), 0u);
  EXPECT_EQ(*store_->Retain(user_, 7'905), 0u) << "the newest anchor at or before is 0";
  const uint64_t seq = Head().seq;
  EXPECT_EQ(*store_->Retain(user_, 7'904), 4096u);
  EXPECT_EQ(Head().first_index, 4096);
  EXPECT_EQ(Head().events, 7'904u);
  EXPECT_TRUE(store_->Tail(user_, seq - 1)->rebuild);
  const std::vector<Event> kept = Events();
  EXPECT_EQ(kept.front().event_id, 4097u);
  EXPECT_THAT(kept, SizeIs(7'904));
  const AppendResult replay = Append(Sequence(4000, 4100));
  EXPECT_EQ(replay.rejected, 97u);
  EXPECT_THAT(replay.reasons[0], HasSubstr("retention"));
  EXPECT_EQ(replay.duplicate, 4u);
  EXPECT_EQ(CountOf(*store_, 7), 12'000u) << "statistics keep what retention drops";
  Reopen();
  EXPECT_EQ(Events(), kept);
  EXPECT_EQ(*store_->Retain(user_, 0), 4096u);
  EXPECT_EQ(Head().first_index, 8192);
}

// Counts are strictly before, by cell, and follow corrections, tombstones and random batches exactly.
TEST_P(HistoryStoreContract, CountsFollowEveryChangeExactlyOnce) {
  std::mt19937_64 random(TestSeed());
  std::map<uint64_t, Event> model;
  for (int step = 0; step < 30; ++step) {
    std::vector<Event> batch;
    for (int n = 0; n < 100; ++n) {
      Event e = RandomEvent(&random, 600, 0, 50 * kHour);
      e.tombstone = random() % 20 == 0;
      batch.push_back(e);
    }
    const AppendResult result = Append(batch);
    for (size_t i = 0; i < batch.size(); ++i) {
      if (result.outcomes[i] == EventOutcome::kAccepted) model[batch[i].event_id] = batch[i];
    }
    if (step % 10 == 9) Reopen();
    const uint64_t item = random() % 50;
    const int64_t granularity = static_cast<int64_t>(random() % 3 + 1) * kHour;
    const int64_t before = static_cast<int64_t>(random() % static_cast<uint64_t>(60 * kHour));
    const int64_t end = before / granularity * granularity;
    ItemCounts expected;
    std::map<std::pair<uint16_t, uint8_t>, uint64_t> cells;
    for (const auto& [id, e] : model) {
      if (e.tombstone || e.item_id != item || e.time_us >= end) continue;
      if (e.kind == EventKind::kExposure) {
        ++expected.exposures;
      } else {
        ++cells[{static_cast<uint16_t>(e.action), ValueBin(e.value)}];
      }
    }
    const auto counts = store_->CountsBefore("shop", item, before, granularity);
    ASSERT_TRUE(counts.ok()) << counts.status();
    ASSERT_EQ(counts->exposures, expected.exposures) << "step " << step;
    ASSERT_EQ(counts->cells.size(), cells.size());
    for (const auto& cell : counts->cells) ASSERT_EQ(cell.count, (cells[{cell.action, cell.value_bin}]));
  }
}

TEST_P(HistoryStoreContract, CountsAreStrictlyBeforeTheBucket) {
  Append({Rating(1, kHour - 1, 9, 4), Rating(2, kHour, 9, 4)});
  EXPECT_EQ(CountOf(*store_, 9, kHour - 1), 0u) << "the running hour is not counted";
  EXPECT_EQ(CountOf(*store_, 9, kHour), 1u);
  EXPECT_EQ(CountOf(*store_, 9, 2 * kHour), 2u);
  EXPECT_EQ(store_->CountsBefore("shop", 9, 3 * kHour, 2 * kHour)->cells.at(0).count, 2u);
  EXPECT_EQ(CountOf(*store_, 9, -5), 0u);
  // Many at once, one of them twice, in the order of the call.
  const uint64_t many[] = {9, 77, 9};
  std::vector<ItemCounts> counts(3, ItemCounts{.exposures = 99});
  ASSERT_TRUE(store_
                  ->ManyCountsBefore("shop", many, 3 * kHour, 2 * kHour,
                                     [&](size_t i, const ItemCounts& found) { counts[i] = found; })
                  .ok());
  EXPECT_EQ(counts[0].cells.at(0).count, 2u);
  EXPECT_TRUE(counts[1].cells.empty());
  EXPECT_EQ(counts[1].exposures, 0u);
  EXPECT_EQ(counts[2].cells.at(0).count, 2u);
  EXPECT_TRUE(absl::IsInvalidArgument(store_->CountsBefore("shop", 9, kHour, kHour / 2).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store_->CountsBefore("shop", 9, kHour, 0).status()));
  EXPECT_TRUE(store_->CountsBefore("other", 9, kNow, kHour)->cells.empty()) << "namespaces are apart";
}

TEST_P(HistoryStoreContract, CheckpointIsAStoreOfThatMoment) {
  Append(Sequence(1, 500));
  const std::string copy = dir_ / "checkpoint";
  ASSERT_TRUE(store_->Checkpoint(copy).ok());
  Append(Sequence(501, 502));
  EXPECT_TRUE(absl::IsAlreadyExists(store_->Checkpoint(copy)));
  auto restored = GetParam()(copy);
  ASSERT_NE(restored, nullptr);
  EXPECT_THAT(ReadEvents(*restored, user_), SizeIs(500));
  EXPECT_EQ(CountOf(*restored, 7), 500u);
  EXPECT_EQ(MustAppend(*restored, user_, Sequence(501, 502)).accepted, 2u);
  EXPECT_EQ(restored->Head(user_)->hash, Head().hash);
}

TEST_P(HistoryStoreContract, SlotMovesWithAllItsUsers) {
  const int slot = SlotOf("{tag}a");
  Append(Sequence(1, 3));  // another slot
  for (const char* name : {"{tag}a", "{tag}b"}) MustAppend(*store_, {"shop", name}, Sequence(1, 3000), 5 * kNow);
  ASSERT_TRUE(store_->Delete({"shop", "{tag}b"}, {.all = true}, kNow).ok());
  MustAppend(*store_, {"shop", "{tag}c"}, Sequence(1, 10));
  ASSERT_TRUE(store_->Merge({"shop", "{tag}d"}, {"shop", "{tag}c"}, kNow).ok());
  MustAppend(*store_, {"shop", "{tag}e"}, Sequence(1, 10));
  ASSERT_TRUE(store_->Delete({"shop", "{tag}e"}, {.all = true}, 20 * kSecond).ok());
  MustAppend(*store_, {"shop", "{tag}e"}, Sequence(21, 22));
  std::vector<std::string> chunks;
  ASSERT_TRUE(store_
                  ->ExportSlot(slot,
                               [&chunks](std::string_view chunk) {
                                 for (size_t i = 0; i < chunk.size(); i += 1000)
                                   chunks.emplace_back(chunk.substr(i, 1000));
                                 return absl::OkStatus();
                               })
                  .ok());
  const auto import = [&chunks](HistoryStore& into, int slot, size_t count) {
    size_t next = 0;
    return into.ImportSlot(slot, [&chunks, &next, count]() -> absl::StatusOr<std::string> {
      return next < count ? chunks[next++] : std::string();
    });
  };
  auto other = GetParam()(dir_ / "other");
  MustAppend(*other, {"shop", "{tag}a"}, Sequence(2999, 3005));
  EXPECT_TRUE(absl::IsDataLoss(import(*other, slot, chunks.size() - 1))) << "a stream that ends early";
  EXPECT_TRUE(absl::IsInvalidArgument(import(*other, slot + 1, chunks.size())));
  ASSERT_TRUE(import(*other, slot, chunks.size()).ok());
  ASSERT_TRUE(import(*other, slot, chunks.size()).ok()) << "again changes nothing";
  EXPECT_THAT(ReadEvents(*other, {"shop", "{tag}a"}), SizeIs(3005)) << "import appends";
  EXPECT_EQ(ReadEvents(*other, {"shop", "{tag}a"})[0].ingest_time_us, 5 * kNow) << "ingest times move too";
  EXPECT_THAT(ReadEvents(*other, user_), IsEmpty());
  EXPECT_THAT(ReadEvents(*other, {"shop", "{tag}d"}), SizeIs(10));
  EXPECT_EQ(MustAppend(*other, {"shop", "{tag}b"}, Sequence(1, 10)).rejected, 10u) << "deletions move too";
  EXPECT_EQ(MustAppend(*other, {"shop", "{tag}e"}, Sequence(1, 10)).rejected, 10u) << "of who came back as well";
  EXPECT_THAT(ReadEvents(*other, {"shop", "{tag}e"}), SizeIs(2));
  chunks[0][3] = static_cast<char>(chunks[0][3] ^ 1);
  EXPECT_TRUE(absl::IsDataLoss(import(*other, slot, chunks.size())));
}

// Several clients and readers at once: every ack is there, every read is a whole number of batches of one user.
TEST_P(HistoryStoreContract, ManyAppendersAndReaders) {
  constexpr int kThreads = 6, kBatches = 60, kRows = 10;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t n = 0; n < kBatches; ++n) {
        std::vector<Event> batch;
        for (uint64_t i = 0; i < kRows; ++i) {
          batch.push_back(Exposure((static_cast<uint64_t>(t) << 32) + n * kRows + i + 1, static_cast<int64_t>(i), 3));
        }
        MustAppend(*store_, t % 2 == 0 ? user_ : UserKey{"shop", Numbered("u", t)}, batch, kNow,
                   n % 8 == 0 ? Durability::kSynced : Durability::kBuffered);
      }
    });
  }
  std::thread reader([&] {
    while (!stop) {
      const auto snapshot = store_->Read(user_, {});
      ASSERT_TRUE(snapshot.ok()) << snapshot.status();
      ASSERT_EQ(snapshot->events.size() % kRows, 0u);
      ASSERT_EQ(snapshot->events.size(), snapshot->head.events);
      ASSERT_TRUE(store_->Tail(user_, 1).ok());
      ASSERT_TRUE(store_->CountsBefore("shop", 3, kNow, kHour).ok());
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  reader.join();
  EXPECT_THAT(Events(), SizeIs(3 * kBatches * kRows));
  EXPECT_EQ(CountOf(*store_, 3), static_cast<uint64_t>(kThreads * kBatches * kRows));
  EXPECT_EQ(Head().seq, static_cast<uint64_t>(3 * kBatches));
}

TEST_P(HistoryStoreContract, StatsCount) {
  Append({Exposure(1, 1), Exposure(1, 1), Exposure(1, 2), Exposure(2, -1)});
  Append({Exposure(3, 0)});
  const auto stats = store_->GetStats();
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->users, 1u);
  EXPECT_EQ(stats->events, 2u);
  EXPECT_EQ(stats->appended, 2u);
  EXPECT_EQ(stats->duplicate, 1u);
  EXPECT_EQ(stats->conflict, 1u);
  EXPECT_EQ(stats->rejected, 1u);
  EXPECT_EQ(stats->late, 1u);
  EXPECT_TRUE(store_->WriteHealth().ok());
}

}  // namespace backstory
