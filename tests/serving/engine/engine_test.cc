// What the facade promises: who is refused and how, what costs no compute, what a reply says.
#include "serving/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving/engine/shed.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() : model_(std::make_shared<FakeModel>(FakeConfig())) {}
  void Start(std::map<std::string, std::string> parameters = {}, EngineOptions options = {}) {
    harness_ = std::make_unique<Harness>(Versions{{"1", Served(model_)}}, std::move(parameters), 0, std::move(options));
    harness_->Append("a", {Shown(1, kNow - 1000 * kSecond, 1), Clicked(2, kNow - 990 * kSecond, 1, 1),
                           Shown(3, kNow - 500 * kSecond, 2)});
    harness_->RunAll();
    model_->scores = 0;
    model_->extends = 0;
  }
  // Queues a request; its status ends up in answers_[name].
  void Send(const std::string& name, RankQuery query) {
    harness_->engine->Rank(std::move(query), [this, name](absl::StatusOr<RankReply> reply) {
      EXPECT_FALSE(answers_.contains(name)) << "answered twice";
      answers_[name] = reply.status();
    });
  }
  absl::StatusCode Code(const std::string& name) {
    return answers_.contains(name) ? answers_[name].code() : absl::StatusCode::kUnknown;
  }
  double Metric(const std::string& key) { return harness_->metrics.Value(key); }

  using Versions = std::map<std::string, std::shared_ptr<const ServedModel>>;
  std::shared_ptr<FakeModel> model_;
  std::unique_ptr<Harness> harness_;
  std::map<std::string, absl::Status> answers_;
};

TEST_F(EngineTest, AReplyTellsHowItCameAbout) {
  Start();
  RankQuery query = Query("a", {1, 2, 77});
  query.request_id = 9;
  query.parameters["history_rows"] = "1";
  const auto reply = harness_->Rank(query);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->request_id, 9u);
  EXPECT_EQ(reply->model, "fake");
  EXPECT_EQ(reply->version, "1");
  EXPECT_EQ(reply->config_version, "calibration-1/launch");
  EXPECT_EQ(reply->now_us, kNow);
  EXPECT_EQ(reply->seq, 1u);
  EXPECT_FALSE(reply->unknown_user);
  EXPECT_THAT(reply->rows_visible, ElementsAre(1, 1));
  EXPECT_THAT(reply->unknown_items, ElementsAre(0, 1, 2));
  EXPECT_THAT(reply->parameters, ::testing::Contains(EffectiveParameter{"history_rows", "1", "request"}));
  EXPECT_EQ(reply->cache.source, "rebuild");
  EXPECT_EQ(reply->cache.rows_computed, 3u);
  EXPECT_GT(reply->cache.state_bytes, 0u);
  ASSERT_EQ(reply->scores.size(), 1u);
  EXPECT_EQ(reply->scores[0].task, "like");
  EXPECT_EQ(reply->scores[0].raw_logit.size(), 3u);
  std::vector<std::string> stages;
  for (const StageTiming& timing : reply->timings) stages.push_back(timing.stage);
  EXPECT_THAT(stages, ElementsAre("queue", "store", "state", "features", "batch", "score"));
}

// Scoring may make a state keep more: K/V that the CPU computes for a user of a card.
TEST_F(EngineTest, WhatAStateKeepsAfterScoringCountsInTheCache) {
  Start();
  const auto before = harness_->Rank(Query("a"));
  ASSERT_TRUE(before.ok()) << before.status();
  model_->on_score = [](std::span<const grab::ScoreSegment> segments) {
    const_cast<FakeKv*>(static_cast<const FakeKv*>(segments[0].kv))->bytes_per_row = 1 << 20;
  };
  ASSERT_TRUE(harness_->Rank(Query("a")).ok());
  const auto after = harness_->Rank(Query("a"));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->cache.source, "hit");
  EXPECT_EQ(after->cache.state_bytes - before->cache.state_bytes, 3u * ((1 << 20) - 1024));
  EXPECT_EQ(harness_->metrics.Value("backstory_cache_bytes"), static_cast<double>(after->cache.state_bytes));
}

TEST_F(EngineTest, AnUnknownUserIsRankedOnNothingAndFlagged) {
  Start();
  const auto reply = harness_->Rank(Query("nobody"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(reply->unknown_user);
  EXPECT_EQ(reply->cache.source, "empty");
  EXPECT_THAT(reply->rows_visible, ElementsAre(0, 0));
  EXPECT_EQ(harness_->engine->Stats().cached_states, 0u);
}

TEST_F(EngineTest, BadQueriesNameFieldAndLimit) {
  Start();
  struct {
    const char* expected;
    std::function<void(RankQuery*)> spoil;
  } const cases[] = {
      {"namespace", [](RankQuery* q) { q->ns = "No Such"; }},
      {"namespace", [](RankQuery* q) { q->ns = ""; }},
      {"units.user is empty", [](RankQuery* q) { q->units.user = ""; }},
      {"units.user has 257 bytes, the limit is 256", [](RankQuery* q) { q->units.user = std::string(257, 'x'); }},
      {"scene has 65 bytes, the limit is 64", [](RankQuery* q) { q->scene = std::string(65, 'x'); }},
      {"now_us is -1", [](RankQuery* q) { q->now_us = -1; }},
      {"as_of.event_time_us", [](RankQuery* q) { q->as_of.event_time_us = -5; }},
      {"as_of.known_by_us", [](RankQuery* q) { q->as_of.known_by_us = -5; }},
      {"candidates.item_ids is empty", [](RankQuery* q) { q->candidates.item_ids.clear(); }},
      {"10001 candidates, the limit is 10000", [](RankQuery* q) { q->candidates.item_ids.resize(10001); }},
      {"candidates.numbers[\"bid\"] has 1 values for 3", [](RankQuery* q) { q->candidates.numbers["bid"] = {1}; }},
      {"value 1 is not finite",
       [](RankQuery* q) {
         q->candidates.numbers["bid"] = {1, NAN, 1};
       }},
      {"given twice",
       [](RankQuery* q) {
         q->candidates.numbers["bid"] = {1, 1, 1};
         q->candidates.texts["bid"] = {"", "", ""};
       }},
      {"features[\"age\"] is not finite",
       [](RankQuery* q) {
         q->features["age"] = {"", std::numeric_limits<double>::infinity(), true};
       }},
      {"empty name", [](RankQuery* q) { q->features[""] = {}; }},
      {"explain_top is 33", [](RankQuery* q) { q->explain_top = 33; }},
      {"parameters: unknown parameter", [](RankQuery* q) { q->parameters["nonsense"] = "1"; }},
      {"scope process", [](RankQuery* q) { q->parameters["threads"] = "1"; }},
      {"0..1000000000", [](RankQuery* q) { q->parameters["history_rows"] = "-1"; }},
  };
  for (const auto& c : cases) {
    RankQuery query = Query("a");
    c.spoil(&query);
    const auto reply = harness_->Rank(query);
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kInvalidArgument) << c.expected;
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr(c.expected));
  }
  EXPECT_EQ(model_->scores, 0);
  RankQuery largest = Query("a", std::vector<uint64_t>(10000, 1));
  EXPECT_TRUE(harness_->Rank(largest).ok());
}

TEST_F(EngineTest, UnknownModelsVersionsAndLabelsAreNamed) {
  Start();
  for (const auto& [choice, expected] :
       std::vector<std::pair<ModelChoice, std::string>>{{{"other", "", ""}, "unknown model \"other\""},
                                                        {{"fake", "7", ""}, "no version \"7\""},
                                                        {{"", "", "canary"}, "no label \"canary\""}}) {
    RankQuery query = Query("a");
    query.model = choice;
    const auto reply = harness_->Rank(query);
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(reply.status().message()), HasSubstr(expected));
  }
}

// R10: what expired while it waited costs no compute, and neither does what was cancelled.
TEST_F(EngineTest, ExpiredAndCancelledWorkIsNeverComputed) {
  Start();
  const int64_t now = harness_->clock.MonotonicMicros();
  RankQuery late = Query("a");
  late.deadline_us = now;
  Send("already late", late);
  EXPECT_EQ(Code("already late"), absl::StatusCode::kDeadlineExceeded);
  late.deadline_us = now + 1000;
  Send("late in the queue", late);
  RankQuery dropped = Query("a");
  dropped.cancel = std::make_shared<CancelToken>();
  Send("cancelled in the queue", dropped);
  EXPECT_EQ(harness_->engine->Stats().queued, 2u);
  dropped.cancel->Cancel();
  // Answered at once, and the slot is free before any worker looked.
  EXPECT_EQ(Code("cancelled in the queue"), absl::StatusCode::kCancelled);
  EXPECT_EQ(harness_->engine->Stats().queued, 1u);
  harness_->clock.Advance(1000);
  harness_->RunAll();
  EXPECT_EQ(Code("late in the queue"), absl::StatusCode::kDeadlineExceeded);
  RankQuery before = Query("a");
  before.cancel = std::make_shared<CancelToken>();
  before.cancel->Cancel();
  Send("cancelled before", before);
  EXPECT_EQ(Code("cancelled before"), absl::StatusCode::kCancelled);
  EXPECT_EQ(model_->scores, 0);
  EXPECT_EQ(model_->extends, 0);
  EXPECT_EQ(harness_->store.heads, 0);
}

TEST_F(EngineTest, ACallCancelledWhileItRunsIsAnsweredCancelled) {
  Start();
  RankQuery query = Query("a");
  query.cancel = std::make_shared<CancelToken>();
  model_->on_score = [&query](auto) { query.cancel->Cancel(); };
  EXPECT_EQ(harness_->Rank(query).status().code(), absl::StatusCode::kCancelled);
  query.cancel->Cancel();  // after the end: nothing happens
}

TEST_F(EngineTest, AFullQueueShedsTheLessImportantWithAPushback) {
  Start({{"queue_requests", "2"}, {"batch_limit_fraction", "1"}, {"shed_batch_queue_fill", "1"}});
  RankQuery batch = Query("a");
  batch.criticality = Criticality::kBatch;
  Send("batch 1", batch);
  Send("online 1", Query("a"));
  Send("online 2", Query("a"));
  EXPECT_EQ(Code("batch 1"), absl::StatusCode::kUnavailable);
  EXPECT_GE(RetryPushbackMs(answers_["batch 1"]).value_or(0), 10);
  Send("online 3", Query("a"));
  EXPECT_EQ(Code("online 3"), absl::StatusCode::kUnavailable);
  EXPECT_GE(RetryPushbackMs(answers_["online 3"]).value_or(0), 10);
  EXPECT_THAT(std::string(answers_["online 3"].message()), HasSubstr("queue of 2 requests is full"));
  harness_->RunAll();
  EXPECT_EQ(Code("online 1"), absl::StatusCode::kOk);
  EXPECT_EQ(Code("online 2"), absl::StatusCode::kOk);
  EXPECT_EQ(Metric("backstory_shed_total{reason=\"displaced\"}"), 1);
  EXPECT_EQ(Metric("backstory_shed_total{reason=\"queue_full\"}"), 1);
}

// The ladder: full quality, then shorter histories (said in the reply), then BATCH is shed before ONLINE.
TEST_F(EngineTest, PressureShortensHistoriesThenShedsBatch) {
  Start({{"queue_requests", "8"}, {"degrade_history_rows", "1"}, {"batch_users", "1"}});
  std::map<int, int> steps;
  std::map<int, uint64_t> rows;
  for (int i = 0; i < 7; ++i) {
    harness_->engine->Rank(Query("a"), [&](absl::StatusOr<RankReply> reply) {
      ASSERT_TRUE(reply.ok()) << reply.status();
      ++steps[reply->degrade_step];
      rows[reply->degrade_step] = reply->rows_visible[0];
      const std::string source = reply->degrade_step > 0 ? "degrade" : "default";
      EXPECT_EQ(reply->parameters[1].name, "history_rows");
      EXPECT_EQ(reply->parameters[1].source, source);
    });
  }
  RankQuery batch = Query("a");
  batch.criticality = Criticality::kBatch;
  Send("batch under pressure", batch);
  EXPECT_EQ(Code("batch under pressure"), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answers_["batch under pressure"].message()), HasSubstr("BATCH and SHADOW are shed"));
  EXPECT_EQ(harness_->engine->Stats().degrade_step, 2);
  EXPECT_EQ(Metric("backstory_degrade_step"), 2);
  harness_->RunAll();
  EXPECT_GT(steps[2], 0);
  EXPECT_GT(steps[1], 0);
  EXPECT_GT(steps[0], 0);
  EXPECT_EQ(rows[0], 2u);
  EXPECT_EQ(rows[1], 1u);
  EXPECT_EQ(rows[2], 1u);
  Send("batch afterwards", batch);
  harness_->RunAll();
  EXPECT_EQ(Code("batch afterwards"), absl::StatusCode::kOk);
}

TEST_F(EngineTest, QuotasAreOfNamespaces) {
  EngineOptions options;
  options.quotas = {{"default", 2, 2}};
  Start({}, std::move(options));  // the append of Start takes one of two
  EXPECT_TRUE(harness_->Rank(Query("a")).ok());
  const absl::Status refused = harness_->Rank(Query("a")).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("namespace default"));
  EXPECT_EQ(RetryPushbackMs(refused), 500);
  RankQuery elsewhere = Query("a");
  elsewhere.ns = "other";
  EXPECT_TRUE(harness_->Rank(elsewhere).ok());
  EXPECT_EQ(harness_->engine->Append({"default", "a"}, {}, Durability::kSynced).status().code(),
            absl::StatusCode::kResourceExhausted);
  harness_->clock.Advance(kSecond / 2);
  EXPECT_TRUE(harness_->Rank(Query("a")).ok());
}

TEST_F(EngineTest, BatchMayTakeItsShareOfTheLimitOnly) {
  Start({{"concurrency_limit_max", "4"}, {"concurrency_limit_min", "1"}, {"concurrency_adaptive", "false"}});
  RankQuery batch = Query("a");
  batch.criticality = Criticality::kShadow;
  for (int i = 0; i < 3; ++i) Send("shadow " + std::to_string(i), batch);
  EXPECT_EQ(Code("shadow 2"), absl::StatusCode::kUnavailable);
  for (int i = 0; i < 3; ++i) Send("online " + std::to_string(i), Query("a"));
  EXPECT_EQ(Code("online 2"), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answers_["online 2"].message()), HasSubstr("the limit is 4"));
  harness_->RunAll();
  for (const char* name : {"shadow 0", "shadow 1", "online 0", "online 1"}) {
    EXPECT_EQ(Code(name), absl::StatusCode::kOk) << name;
  }
}

// R9: what was accepted is answered; what comes later is refused with a pushback.
TEST_F(EngineTest, DrainFinishesWhatWasAccepted) {
  Start();
  Send("accepted", Query("a"));
  EXPECT_EQ(harness_->engine->Drain(1000).code(), absl::StatusCode::kDeadlineExceeded);
  Send("too late", Query("a"));
  EXPECT_EQ(Code("too late"), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryPushbackMs(answers_["too late"]).has_value());
  EXPECT_EQ(harness_->engine->Append({"default", "a"}, {}, Durability::kSynced).status().code(),
            absl::StatusCode::kUnavailable);
  harness_->RunAll();
  EXPECT_EQ(Code("accepted"), absl::StatusCode::kOk);
  EXPECT_TRUE(harness_->engine->Drain(0).ok());
}

TEST_F(EngineTest, DestructionAnswersWhatStillWaits) {
  Start();
  Send("waiting", Query("a"));
  bool prefetched = false;
  harness_->engine->Prefetch({"default", "a"}, {}, INT64_MAX, [&](absl::StatusOr<std::vector<CacheReport>> reports) {
    prefetched = true;
    EXPECT_EQ(reports.status().code(), absl::StatusCode::kUnavailable);
  });
  harness_->engine = nullptr;
  EXPECT_EQ(Code("waiting"), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(prefetched);
}

TEST_F(EngineTest, AModelThatGivesNanIsAnErrorAndNeverAScore) {
  Start();
  model_->nan_scores = true;
  const absl::Status status = harness_->Rank(Query("a")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model fake version 1"));
}

TEST_F(EngineTest, AFailedExtensionLeavesNoHalfState) {
  Start();
  model_->extend_status = absl::InternalError("broken");
  EXPECT_EQ(harness_->Rank(Query("a")).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(harness_->engine->Stats().cached_bytes, 0u);
  model_->extend_status = absl::OkStatus();
  EXPECT_EQ(harness_->Rank(Query("a"))->cache.source, "rebuild");
}

TEST_F(EngineTest, StoreErrorsPassThroughUnchanged) {
  Start();
  harness_->store.read_status = absl::DataLossError("000012.sst is damaged; run `backstory store verify`");
  EXPECT_EQ(harness_->Rank(Query("a")).status(), harness_->store.read_status);
  harness_->store.read_status = absl::FailedPreconditionError("slot 7 is owned by b");
  EXPECT_EQ(harness_->Rank(Query("a")).status(), harness_->store.read_status);
  harness_->store.write_status = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(harness_->engine->Append({"default", "a"}, {}, Durability::kSynced).status(), harness_->store.write_status);
}

TEST_F(EngineTest, PrefetchBuildsAheadAndNeverExposes) {
  Start();
  std::vector<CacheReport> reports;
  harness_->engine->Prefetch({"default", "a"}, {}, INT64_MAX, [&](absl::StatusOr<std::vector<CacheReport>> answer) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    reports = *answer;
  });
  harness_->RunAll();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].source, "rebuild");
  EXPECT_EQ(harness_->Rank(Query("a"))->cache.source, "hit");
}

TEST_F(EngineTest, RefreshesAreBoundedAndCountWhatTheyDrop) {
  Start({{"refresh_queue", "1"}});
  for (const char* user : {"b", "c"}) {
    harness_->Append(user, {Shown(1, kNow - 10 * kSecond, 1)});
    ASSERT_TRUE(harness_->Rank(Query(user)).ok());
  }
  harness_->clock.Advance(10 * kSecond);
  harness_->Append("b", {Shown(2, kNow, 1)});
  harness_->Append("b", {Shown(3, kNow + 1, 1)});  // waits already: not queued twice
  harness_->Append("c", {Shown(2, kNow, 1)});      // no room
  harness_->Append("nobody has state of me", {Shown(2, kNow, 1)});
  EXPECT_EQ(harness_->engine->Stats().refresh_dropped, 1u);
  harness_->RunAll();
  EXPECT_EQ(harness_->Rank(Query("b"))->cache.source, "hit");
  EXPECT_EQ(harness_->Rank(Query("c"))->cache.source, "extend");
}

TEST_F(EngineTest, DeleteDropsStateAtOnce) {
  Start();
  ASSERT_TRUE(harness_->Rank(Query("a")).ok());
  EXPECT_GT(harness_->engine->Stats().cached_bytes, 0u);
  ASSERT_EQ(*harness_->engine->Delete({"default", "a"}, {.all = true}), 3u);
  EXPECT_EQ(harness_->engine->Stats().cached_bytes, 0u);
  const auto reply = harness_->Rank(Query("a"));
  EXPECT_THAT(reply->rows_visible, ElementsAre(0, 0));
}

// A phone whose clock runs ahead: its events wait, and until then cost nobody a rebuild.
TEST_F(EngineTest, EventsFromTheFutureWaitAndCostNothing) {
  Start();
  ASSERT_TRUE(harness_->Rank(Query("a")).ok());
  harness_->Append("a", {Clicked(50, kNow + 60 * kSecond, 2, 0), Shown(51, kNow + 60 * kSecond, 3)});
  auto reply = harness_->Rank(Query("a"));
  EXPECT_EQ(reply->cache.source, "hit");
  EXPECT_EQ(reply->rows_visible[0], 2u);
  EXPECT_EQ(reply->seq, 2u);
  harness_->clock.Advance(61 * kSecond);
  reply = harness_->Rank(Query("a"));
  EXPECT_EQ(reply->cache.source, "extend");
  EXPECT_EQ(reply->rows_visible[0], 4u);
}

// A request that claims a far future is answered, but moves nobody else's view.
TEST_F(EngineTest, AStrangeNowLeavesTheCacheAlone) {
  Start();
  ASSERT_TRUE(harness_->Rank(Query("a")).ok());
  EXPECT_EQ(harness_->Rank(Query("a", {1}, kNow + 400 * 86'400 * kSecond))->cache.source, "uncached");
  EXPECT_EQ(harness_->Rank(Query("a"))->cache.source, "hit");
}

}  // namespace
}  // namespace backstory::testing
