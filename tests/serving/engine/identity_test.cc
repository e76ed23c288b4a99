// However a state came about, the scores are those of a rebuild, bit for bit: two engines share one store, one lives
// through every change, the other remembers nothing. Run on a model that hashes all it sees and on a small GRAB.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>

#include "models/grab/init_random.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

uint64_t Seed() {
  const char* text = std::getenv("BACKSTORY_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
}

std::shared_ptr<const ServedModel> TinyGrab(OpenRows open_rows) {
  grab::Config config = *grab::PresetConfig("grab-tiny");
  config.tokenizer.open_rows = open_rows;
  config.tokenizer.label_window_us = 50 * kSecond;
  auto model = grab::CreateModel(config, grab::RandomWeights(config, 7), nullptr);
  EXPECT_TRUE(model.ok()) << model.status();
  return Served(std::shared_ptr<const grab::Model>(*std::move(model)));
}

struct Case {
  const char* name;
  bool real_model;
  OpenRows open_rows;
  int64_t state_events_max;
};

class IdentityTest : public ::testing::TestWithParam<Case> {
 protected:
  std::shared_ptr<const ServedModel> Model() const {
    if (GetParam().real_model) return TinyGrab(GetParam().open_rows);
    return Served(std::make_shared<FakeModel>(FakeConfig(GetParam().open_rows)));
  }
};

// Changes a world at random, about two users who are merged at some point.
class World {
 public:
  World(Harness* harness, uint64_t seed) : harness_(harness), random_(seed) {}

  void Step() {
    const int dice = Draw(100);
    harness_->clock.Advance(Draw(20) * kSecond);
    const int64_t now = harness_->clock.WallMicros();
    if (dice < 45) return Add(now - Draw(10) * kSecond);    // in time, roughly
    if (dice < 60) return Add(now - Draw(400) * kSecond);   // late
    if (dice < 65) return Add(now + Draw(60) * kSecond);    // ahead of the clock
    if (dice < 72 && !events_.empty()) return Repeat(now);  // a duplicate or a correction
    if (dice < 76 && !events_.empty()) return Remove();
    if (dice < 82) return Describe();
    if (dice == 82 && !merged_) return Merge();
    if (dice < 90) harness_->clock.Advance(Draw(100) * kSecond);  // label windows close
    if (dice < 95) harness_->RunAll();                            // refreshes happen, or not
  }

  int Draw(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  std::string AnyUser() { return Draw(4) == 0 ? "other" : "user"; }

 private:
  void Add(int64_t time_us) {
    std::vector<Event> batch;
    for (int i = Draw(3); i >= 0; --i) {
      const uint64_t id = ++next_id_;
      const uint64_t item = 1 + static_cast<uint64_t>(Draw(30));
      const bool answers = Draw(2) == 0 && !events_.empty();
      if (!answers) {
        batch.push_back(Shown(id, time_us + i, item, Draw(3) == 0 ? 1 + static_cast<uint64_t>(Draw(20)) : 0));
      } else {
        const Event& shown = events_[static_cast<size_t>(Draw(static_cast<int>(std::min<size_t>(events_.size(), 20))))];
        batch.push_back(Clicked(id, time_us + i, shown.item_id, shown.event_id));
        if (Draw(3) == 0) batch.back().action = ActionType::kLike;
      }
    }
    for (const Event& event : batch) events_.insert(events_.begin(), event);
    harness_->Append(AnyUser(), batch);
  }
  void Repeat(int64_t) {
    Event event = events_[static_cast<size_t>(Draw(static_cast<int>(events_.size())))];
    if (Draw(2) == 0) {
      event.revision = 1 + static_cast<uint32_t>(Draw(3));
      event.item_id = 1 + static_cast<uint64_t>(Draw(30));
      event.tombstone = Draw(2) == 0;
    }
    harness_->Append(AnyUser(), {event});
  }
  void Remove() {
    DeleteSelector what;
    const Event& event = events_[static_cast<size_t>(Draw(static_cast<int>(events_.size())))];
    switch (Draw(8)) {
      case 0:
        what.has_item = true, what.item_id = event.item_id;
        break;
      case 1:
        what.from_us = event.time_us, what.until_us = event.time_us + 5 * kSecond;
        break;
      case 2:
        what.all = Draw(4) == 0;
        [[fallthrough]];
      default:
        what.event_ids = {event.event_id};
    }
    ASSERT_TRUE(harness_->engine->Delete({"default", AnyUser()}, what).ok());
  }
  void Describe() {
    Item item;
    item.item_id = 1 + static_cast<uint64_t>(Draw(30));
    if (!described_.insert(item.item_id).second) return;
    item.categories = {"genre" + std::to_string(item.item_id % 5)};
    ASSERT_TRUE(harness_->catalog.Upsert("default", std::span(&item, 1), false).ok());
  }
  void Merge() {
    ASSERT_TRUE(harness_->engine->Merge({"default", "other"}, {"default", "user"}).ok());
    merged_ = true;
  }

  Harness* const harness_;
  std::mt19937_64 random_;
  uint64_t next_id_ = 0;
  bool merged_ = false;
  std::vector<Event> events_;  // newest first
  std::set<uint64_t> described_;
};

void ExpectSame(const RankReply& kept, const RankReply& rebuilt) {
  ASSERT_EQ(kept.scores.size(), rebuilt.scores.size());
  EXPECT_EQ(kept.rows_visible, rebuilt.rows_visible);
  EXPECT_EQ(kept.seq, rebuilt.seq);
  EXPECT_EQ(kept.unknown_items, rebuilt.unknown_items);
  for (size_t t = 0; t < kept.scores.size(); ++t) {
    EXPECT_EQ(kept.scores[t].raw_logit, rebuilt.scores[t].raw_logit);
    EXPECT_EQ(kept.scores[t].calibrated, rebuilt.scores[t].calibrated);
  }
}

TEST_P(IdentityTest, AKeptStateScoresAsARebuiltOne) {
  const uint64_t seed = Seed();
  SCOPED_TRACE(absl::StrCat("repeat with BACKSTORY_TEST_SEED=", seed));
  const auto model = Model();
  const std::map<std::string, std::string> parameters{
      {"state_events_max", std::to_string(GetParam().state_events_max)}};
  Harness kept({{"1", model}}, parameters);
  World world(&kept, seed);
  std::map<std::string, int> sources;
  for (int step = 0; step < (GetParam().real_model ? 150 : 600); ++step) {
    world.Step();
    if (::testing::Test::HasFailure()) return;
    if (world.Draw(2) == 0) continue;
    RankQuery query = Query(world.AnyUser(), {1, 2, 3, 17, 999});
    query.now_us = kept.clock.WallMicros();
    if (world.Draw(4) == 0) query.now_us -= world.Draw(300) * kSecond;  // a look back
    if (world.Draw(8) == 0) query.as_of.event_time_us = query.now_us - world.Draw(100) * kSecond;
    if (world.Draw(8) == 0) query.as_of.known_by_us = kept.clock.WallMicros() - world.Draw(200) * kSecond;
    if (world.Draw(4) == 0) query.request_id = 1 + static_cast<uint64_t>(world.Draw(20));
    if (world.Draw(8) == 0) query.parameters["history_rows"] = std::to_string(world.Draw(20));
    Harness fresh(&kept, {{"1", model}}, parameters);
    const auto a = kept.Rank(query);
    const auto b = fresh.Rank(query);
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    ++sources[a->cache.source];
    ExpectSame(*a, *b);
    ASSERT_FALSE(::testing::Test::HasFailure()) << "step " << step << " source " << a->cache.source;
  }
  // The walk must have been worth it.
  for (const char* source : {"hit", "extend", "truncate", "rebuild", "uncached"})
    EXPECT_GT(sources[source], 0) << source;
  EXPECT_EQ(kept.metrics.Value("backstory_state_hash_mismatch_total"), 0);
}

INSTANTIATE_TEST_SUITE_P(Worlds, IdentityTest,
                         ::testing::Values(Case{"FakeAsKnown", false, OpenRows::kAsKnown, 131072},
                                           Case{"FakeHide", false, OpenRows::kHide, 131072},
                                           Case{"GrabAsKnown", true, OpenRows::kAsKnown, 131072},
                                           Case{"GrabHide", true, OpenRows::kHide, 131072}),
                         [](const auto& info) { return info.param.name; });

class GrabEngineTest : public ::testing::Test {
 protected:
  GrabEngineTest() : model_(TinyGrab(OpenRows::kAsKnown)), harness_({{"1", model_}}) {
    std::vector<Event> events;
    for (uint64_t i = 1; i <= 300; ++i) {
      const int64_t time = kNow - 100'000 * kSecond + static_cast<int64_t>(i) * 100 * kSecond;
      events.push_back(Shown(2 * i, time, i % 40 + 1));
      if (i % 3 == 0) events.push_back(Clicked(2 * i + 1, time + kSecond, i % 40 + 1, 2 * i));
    }
    harness_.Append("a", events);
  }
  std::vector<float> Logits(RankQuery query, CacheReport* report = nullptr) {
    auto reply = harness_.Rank(std::move(query));
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (report != nullptr) *report = reply->cache;
    return reply->scores.at(0).raw_logit;
  }
  std::shared_ptr<const ServedModel> model_;
  Harness harness_;
};

TEST_F(GrabEngineTest, AppendingOneEventComputesItsRowsAlone) {
  CacheReport report;
  Logits(Query("a"), &report);
  EXPECT_EQ(report.source, "rebuild");
  const uint64_t rows = report.rows_computed;
  EXPECT_EQ(rows, 400u);  // 300 shown, 100 of them in the channel of clicks as well
  harness_.clock.Advance(100 * kSecond);
  harness_.Append("a", {Shown(5000, harness_.clock.WallMicros() - kSecond, 7)});
  Logits(Query("a"), &report);
  EXPECT_EQ(report.source, "extend");
  EXPECT_EQ(report.rows_reused, rows);
  EXPECT_EQ(report.rows_computed, 1u);
  Logits(Query("a"), &report);
  EXPECT_EQ(report.source, "hit");
  EXPECT_EQ(report.rows_computed, 0u);
}

TEST_F(GrabEngineTest, AnAppendIsRefreshedAheadOfTheNextRequest) {
  CacheReport report;
  Logits(Query("a"), &report);
  harness_.clock.Advance(100 * kSecond);
  harness_.Append("a", {Shown(5000, harness_.clock.WallMicros() - kSecond, 7)});
  harness_.RunAll();
  Logits(Query("a"), &report);
  EXPECT_EQ(report.source, "hit");
  EXPECT_EQ(report.rows_reused, 401u);
}

TEST_F(GrabEngineTest, ALateEventTakesBackTheRowsAfterIt) {
  CacheReport report;
  Logits(Query("a"), &report);
  harness_.Append("a", {Shown(5000, kNow - 100'000 * kSecond + 200 * 100 * kSecond + 1, 7)});
  Logits(Query("a"), &report);
  EXPECT_EQ(report.source, "truncate");
  EXPECT_EQ(report.rows_reused, 200u + 66u);
  EXPECT_EQ(report.rows_computed, 101u + 34u);
}

// Candidates never see each other: order, company and micro-batches change no bit.
TEST_F(GrabEngineTest, CandidatesAreIsolated) {
  const std::vector<float> base = Logits(Query("a", {1, 2, 3, 4, 5}));
  EXPECT_EQ(Logits(Query("a", {5, 4, 3, 2, 1})), std::vector<float>(base.rbegin(), base.rend()));
  for (size_t i = 0; i < base.size(); ++i) EXPECT_EQ(Logits(Query("a", {i + 1})), std::vector<float>{base[i]});
  Harness sliced(&harness_, {{"1", model_}}, {{"micro_batch_candidates", "2"}});
  EXPECT_EQ(sliced.Rank(Query("a", {1, 2, 3, 4, 5}))->scores[0].raw_logit, base);
}

// Users do not leak into each other, batched in one call of the model or not.
TEST_F(GrabEngineTest, UsersAreIsolated) {
  harness_.Append("b", {Shown(1, kNow - 5 * kSecond, 3), Clicked(2, kNow - 4 * kSecond, 3, 1)});
  const std::vector<float> a = Logits(Query("a")), b = Logits(Query("b")), nobody = Logits(Query("nobody"));
  EXPECT_NE(a, b);
  EXPECT_NE(b, nobody);
  std::map<std::string, std::vector<float>> together;
  for (const char* user : {"a", "b", "nobody"}) {
    harness_.engine->Rank(Query(user), [&together, user](absl::StatusOr<RankReply> reply) {
      together[user] = reply->scores[0].raw_logit;
    });
  }
  const double before = harness_.metrics.Value("backstory_rank_batches_total");
  EXPECT_TRUE(harness_.engine->RunOne());
  EXPECT_EQ(harness_.metrics.Value("backstory_rank_batches_total"), before + 1);
  EXPECT_EQ(together, (std::map<std::string, std::vector<float>>{{"a", a}, {"b", b}, {"nobody", nobody}}));
}

TEST_F(GrabEngineTest, AnEvictedUserScoresAsBefore) {
  const std::vector<float> before = Logits(Query("a"));
  Harness small(&harness_, {{"1", model_}}, {{"cache_bytes", "1048576"}});
  CacheReport report;
  for (int round = 0; round < 2; ++round) {
    for (int other = 0; other < 20; ++other) {
      const std::string name = "other" + std::to_string(other);
      std::vector<Event> events;
      for (uint64_t i = 1; i <= 60; ++i) events.push_back(Shown(i, kNow - static_cast<int64_t>(i) * kSecond, i));
      small.Append(name, events);
      ASSERT_TRUE(small.Rank(Query(name)).ok());
    }
    auto reply = small.Rank(Query("a"));
    EXPECT_EQ(reply->cache.source, "rebuild");
    EXPECT_EQ(reply->scores[0].raw_logit, before);
  }
  EXPECT_GT(small.engine->Stats().evictions, 0u);
  EXPECT_LE(small.engine->Stats().cached_bytes, 1048576u);
}

TEST_F(GrabEngineTest, ExplanationsNameEventsOfTheHistory) {
  RankQuery query = Query("a", {1, 2});
  query.explain_top = 3;
  auto reply = harness_.Rank(query);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->explanations.size(), 2u);
  for (const auto& events : reply->explanations) {
    ASSERT_EQ(events.size(), 6u);  // 3 of each channel
    for (size_t i = 0; i < events.size(); ++i) {
      EXPECT_EQ(events[i].event_id % 2, 0u);
      EXPECT_EQ(events[i].item_id, events[i].event_id / 2 % 40 + 1);
      if (i > 0) {
        EXPECT_LE(events[i].mass, events[i - 1].mass);
      }
    }
  }
  query.explain_top = 0;
  EXPECT_EQ(harness_.Rank(query)->scores[0].raw_logit, reply->scores[0].raw_logit);
}

}  // namespace
}  // namespace backstory::testing
