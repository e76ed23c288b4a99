// Batch scores are those of single online requests, bit for bit, whatever the order of rows, the threads and the load.
// Two engines share one store: one scores the table, the other is asked row by row and remembers nothing of it.
#include "serving/engine/batch/batch_scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "models/grab/init_random.h"
#include "tests/serving/engine/batch_table.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

uint64_t Seed() {
  const char* text = std::getenv("BACKSTORY_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
}

// Sees request features, candidate columns and the scene as well.
grab::Config ConfigWithFeatures(OpenRows open_rows) {
  grab::Config config = FakeConfig(open_rows);
  config.tasks = {"click", "like"};
  TokenizerConfig& t = config.tokenizer;
  t.full.push_back({"scene", SparseSource::kScene, "", "scene", 100});
  t.full.push_back({"device", SparseSource::kRequestFeature, "device", "device", 100});
  t.full.push_back({"source", SparseSource::kRequestFeature, "cand.source", "source", 100});
  t.full_dense.push_back({"age", DenseSource::kRequestNumber, "age"});
  t.full_dense.push_back({"bid", DenseSource::kRequestNumber, "cand.bid"});
  return config;
}

std::shared_ptr<const ServedModel> Model(bool real, OpenRows open_rows) {
  if (!real) return Served(std::make_shared<FakeModel>(ConfigWithFeatures(open_rows)));
  grab::Config config = *grab::PresetConfig("grab-tiny");
  config.tokenizer.open_rows = open_rows;
  config.tokenizer.label_window_us = 50 * kSecond;
  auto model = grab::CreateModel(config, grab::RandomWeights(config, 7), nullptr);
  EXPECT_TRUE(model.ok()) << model.status();
  return Served(std::shared_ptr<const grab::Model>(*std::move(model)));
}

class RandomTable {
 public:
  explicit RandomTable(uint64_t seed) : random_(seed) {}
  uint64_t Draw(uint64_t n) { return random_() % n; }

  // Exposures 7 s apart, of which every other one is clicked within a minute, in some order.
  void FillStore(Harness* harness, int users, int events) {
    harness->clock.SetWall(kNow);
    for (int user = 0; user < users; ++user) {
      std::vector<Event> history;
      for (int i = 0; i < events; ++i) {
        const uint64_t id = static_cast<uint64_t>(2 * i + 1), item = 1 + Draw(30);
        const int64_t time = kNow - (events - i) * 7 * kSecond;
        history.push_back(Shown(id, time, item, Draw(4) == 0 ? 1 + Draw(20) : 0));
        if (Draw(2) == 0) history.push_back(Clicked(id + 1, time + static_cast<int64_t>(Draw(60)) * kSecond, item, id));
      }
      std::shuffle(history.begin(), history.end(), random_);
      harness->Append("user" + std::to_string(user), history);
    }
  }

  std::vector<TableRow> Rows(size_t n, int users, int events, bool features) {
    std::vector<TableRow> rows(n);
    for (TableRow& row : rows) {
      row.user = "user" + std::to_string(Draw(static_cast<uint64_t>(users) + 1));  // one is unknown
      row.item = 1 + Draw(40);
      row.time_us =
          kNow - static_cast<int64_t>(Draw(static_cast<uint64_t>(events) * 7 + 100)) * kSecond + 100 * kSecond;
      if (Draw(5) == 0) row.as_of_us = row.time_us - static_cast<int64_t>(Draw(300)) * kSecond + 50 * kSecond;
      if (Draw(10) == 0) row.known_by_us = kNow + (Draw(2) == 0 ? -1 : 1) * kSecond;
      if (Draw(4) == 0) row.request_id = 1 + Draw(20);
      if (Draw(3) == 0) row.scene = Draw(2) == 0 ? "feed" : "search";
      if (!features) continue;
      if (Draw(2) == 0) row.age = static_cast<double>(Draw(3));
      if (Draw(2) == 0) row.device = Draw(2) == 0 ? "phone" : "desk";
      if (Draw(2) == 0) row.bid = static_cast<float>(Draw(100)) / 10;
      if (Draw(2) == 0) row.source = "ann";
    }
    return rows;
  }
  template <typename T>
  void Shuffle(std::vector<T>* values) {
    std::shuffle(values->begin(), values->end(), random_);
  }

 private:
  std::mt19937_64 random_;
};

// What a client would send for this row alone.
RankQuery OnlineQuery(const TableRow& row) {
  RankQuery query = Query(row.user, {row.item}, row.time_us);
  if (!row.ns.empty()) query.ns = row.ns;
  query.scene = row.scene;
  query.request_id = row.request_id;
  if (row.as_of_us >= 0) query.as_of.event_time_us = row.as_of_us;
  if (row.known_by_us >= 0) query.as_of.known_by_us = row.known_by_us;
  if (std::isfinite(row.age)) query.features["age"] = {"", row.age, true};
  if (!row.device.empty()) query.features["device"] = {row.device, 0, false};
  if (std::isfinite(row.bid)) query.candidates.numbers["bid"] = {row.bid};
  if (!row.source.empty()) query.candidates.texts["source"] = {row.source};
  return query;
}

BatchScores ScoreAll(Engine* engine, const std::vector<TableRow>& rows, BatchOptions options = {}) {
  auto scorer = BatchScorer::Create(engine, std::move(options));
  EXPECT_TRUE(scorer.ok()) << scorer.status();
  const Table table(rows);
  auto scores = (*scorer)->Score(table.view);
  EXPECT_TRUE(scores.ok()) << scores.status();
  return scores.ok() ? *std::move(scores) : BatchScores{};
}

// Row by row, against an engine that is asked nothing else.
void ExpectOnline(Harness* online, const std::vector<TableRow>& rows, const BatchScores& scores) {
  ASSERT_EQ(scores.flags.size(), rows.size());
  EXPECT_TRUE(scores.bad.empty());
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto reply = online->Rank(OnlineQuery(rows[i]));
    ASSERT_TRUE(reply.ok()) << reply.status();
    for (size_t task = 0; task < reply->scores.size(); ++task) {
      ASSERT_EQ(scores.scores[task].task, reply->scores[task].task);
      ASSERT_EQ(scores.scores[task].raw_logit[i], reply->scores[task].raw_logit[0]) << "row " << i;
      ASSERT_EQ(scores.scores[task].calibrated[i], reply->scores[task].calibrated[0]) << "row " << i;
    }
    EXPECT_EQ((scores.flags[i] & kUnknownUser) != 0, reply->unknown_user);
    EXPECT_EQ((scores.flags[i] & kUnknownItem) != 0, !reply->unknown_items.empty());
    EXPECT_EQ(scores.rows_visible[i], std::accumulate(reply->rows_visible.begin(), reply->rows_visible.end(), 0u));
  }
}

struct Case {
  const char* name;
  bool real_model;
  OpenRows open_rows;
};

class BatchIdentityTest : public ::testing::TestWithParam<Case> {};

TEST_P(BatchIdentityTest, EveryRowHasTheBitsOfAnOnlineRequest) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("repeat with BACKSTORY_TEST_SEED=" + std::to_string(seed));
  RandomTable random(seed);
  const auto model = Model(GetParam().real_model, GetParam().open_rows);
  Harness batch({{"1", model}}, {{"batch_users", "3"}}, /*threads=*/2);
  random.FillStore(&batch, 5, 200);
  ASSERT_TRUE(batch.catalog.Upsert("default", std::vector<Item>{{.item_id = 3, .categories = {"x"}}}, false).ok());
  Harness online(&batch, {{"1", model}});
  std::vector<TableRow> rows = random.Rows(400, 5, 200, !GetParam().real_model);
  const BatchScores scores = ScoreAll(batch.engine.get(), rows);
  ExpectOnline(&online, rows, scores);
  EXPECT_EQ(scores.model, model->name);
  EXPECT_EQ(scores.version, "1");

  // Sorted, and by one thread: the same.
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&rows](size_t a, size_t b) {
    return std::pair(rows[a].user, rows[a].time_us) < std::pair(rows[b].user, rows[b].time_us);
  });
  std::vector<TableRow> sorted;
  for (const size_t row : order) sorted.push_back(rows[row]);
  Harness one(&batch, {{"1", model}}, {}, /*threads=*/1);
  const BatchScores again = ScoreAll(one.engine.get(), sorted, {.in_flight_max = 1});
  for (size_t i = 0; i < order.size(); ++i) {
    ASSERT_EQ(again.scores[0].raw_logit[i], scores.scores[0].raw_logit[order[i]]) << "sorted row " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, BatchIdentityTest,
                         ::testing::Values(Case{"fake_as_known", false, OpenRows::kAsKnown},
                                           Case{"fake_hidden", false, OpenRows::kHide},
                                           Case{"grab_as_known", true, OpenRows::kAsKnown},
                                           Case{"grab_hidden", true, OpenRows::kHide}),
                         [](const auto& info) { return std::string(info.param.name); });

class BatchScorerTest : public ::testing::Test {
 protected:
  BatchScorerTest() : model_(std::make_shared<FakeModel>(ConfigWithFeatures(OpenRows::kHide))) {}
  std::shared_ptr<FakeModel> model_;
  RandomTable random_{11};
};

TEST_F(BatchScorerTest, AStateIsBuiltOnceForAUser) {
  for (const OpenRows open_rows : {OpenRows::kHide, OpenRows::kAsKnown}) {
    Harness harness({{"1", Served(std::make_shared<FakeModel>(ConfigWithFeatures(open_rows)))}}, {}, 2);
    random_.FillStore(&harness, 6, 300);
    std::vector<TableRow> rows = random_.Rows(500, 5, 300, false);
    for (TableRow& row : rows) row.known_by_us = -1;
    ScoreAll(harness.engine.get(), rows);
    const EngineStats stats = harness.engine->Stats();
    EXPECT_EQ(stats.rebuilds, 6u);
    EXPECT_EQ(stats.uncached, 0u) << "a state of its own for a request";
  }
}

TEST_F(BatchScorerTest, ARefusingEngineIsWaitedForAndADegradingOneAskedAgain) {
  const auto served = Served(model_);
  EngineOptions options;
  options.quotas = {{"default", 2000, 20}};
  // The queue holds 3, half of the 4 in flight may be batch work, and one waiting request shortens histories.
  Harness narrow({{"1", served}},
                 {{"queue_requests", "3"},
                  {"concurrency_limit_max", "4"},
                  {"concurrency_limit_min", "4"},
                  {"degrade_queue_fill", "0.25"},
                  {"degrade_history_rows", "3"}},
                 2, options);
  random_.FillStore(&narrow, 5, 100);
  Harness online(&narrow, {{"1", served}});
  std::jthread time([&narrow](std::stop_token stop) {  // quotas follow the engine's clock
    while (!stop.stop_requested()) {
      narrow.clock.Advance(1000);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  const std::vector<TableRow> rows = random_.Rows(200, 5, 100, true);
  const BatchScores scores = ScoreAll(narrow.engine.get(), rows, {.in_flight_max = 16});
  time = {};
  ExpectOnline(&online, rows, scores);
  EXPECT_GT(narrow.metrics.Value("backstory_shed_total{reason=\"batch\"}"), 0) << "nothing was refused: no test";
}

TEST_F(BatchScorerTest, ADrainingEngineEndsTheCall) {
  Harness harness({{"1", Served(model_)}}, {}, 1);
  auto scorer = *BatchScorer::Create(harness.engine.get(), {});
  ASSERT_TRUE(harness.engine->Drain(1'000'000).ok());
  const Table table({TableRow{}});
  EXPECT_TRUE(absl::IsUnavailable(scorer->Score(table.view).status()));
}

TEST_F(BatchScorerTest, StopsWhenTold) {
  std::stop_source stop;
  model_->on_score = [&stop](auto) { stop.request_stop(); };
  Harness harness({{"1", Served(model_)}}, {}, 2);
  auto scorer = *BatchScorer::Create(harness.engine.get(), {.in_flight_max = 4});
  const Table table(random_.Rows(300, 5, 10, false));
  EXPECT_TRUE(absl::IsCancelled(scorer->Score(table.view, stop.get_token()).status()));
  EXPECT_LT(model_->segments_scored, 20u);
}

TEST_F(BatchScorerTest, AScoreThatIsNotFiniteEndsTheCall) {
  Harness harness({{"1", Served(model_)}}, {}, 2);
  auto scorer = *BatchScorer::Create(harness.engine.get(), {});
  model_->nan_scores = true;
  const Table table(random_.Rows(300, 5, 10, false));
  EXPECT_TRUE(absl::IsInternal(scorer->Score(table.view).status()));
}

TEST_F(BatchScorerTest, BadRowsNameColumnAndLimitAndCostTheOthersNothing) {
  Harness harness({{"1", Served(model_)}}, {}, 2);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<TableRow, std::pair<std::string, std::string>>> bad = {
      {{.user = ""}, {"user", "missing"}},
      {{.user = std::string(257, 'u')}, {"user", "257 bytes, the limit is 256"}},
      {{.time_us = 0}, {"time_us", "0, must be within 1..4611686018427387903 microseconds"}},
      {{.time_us = -5}, {"time_us", "-5, must be within 1.."}},
      {{.as_of_us = INT64_MAX}, {"as_of_us", "9223372036854775807, must be within 0..4611686018427387903"}},
      {{.known_by_us = INT64_MAX - 1}, {"known_by_us", "must be within 0.."}},
      {{.ns = "Shop"}, {"namespace", "must match [a-z0-9_-]{1,64}"}},
      {{.scene = std::string(65, 's')}, {"scene", "65 bytes, the limit is 64"}},
      {{.age = nan}, {"request_numbers.age", "nan is not finite"}},
      {{.device = std::string(257, 'd')}, {"request_texts.device", "257 bytes, the limit is 256"}},
      {{.bid = static_cast<float>(nan)}, {"candidate_numbers.bid", "nan is not finite"}},
      {{.source = std::string(300, 'x')}, {"candidate_texts.source", "300 bytes, the limit is 256"}},
  };
  std::vector<TableRow> rows;
  for (const auto& [row, expected] : bad) {
    rows.push_back({});
    rows.push_back(row);
  }
  const BatchScores scores = ScoreAll(harness.engine.get(), rows);
  ASSERT_EQ(scores.bad.size(), bad.size());
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(scores.bad[i].row, 2 * i + 1);
    EXPECT_EQ(scores.bad[i].column, bad[i].second.first);
    EXPECT_THAT(scores.bad[i].reason, HasSubstr(bad[i].second.second));
    EXPECT_EQ(scores.flags[2 * i + 1], kRowBad);
    EXPECT_TRUE(std::isnan(scores.scores[0].raw_logit[2 * i + 1]));
    EXPECT_EQ(scores.scores[0].raw_logit[2 * i], scores.scores[0].raw_logit[0]);
    EXPECT_EQ(scores.flags[2 * i] & kRowBad, 0);
  }
}

TEST_F(BatchScorerTest, ANullIsMissingWhateverItsValue) {
  Harness harness({{"1", Served(model_)}}, {}, 2);
  auto scorer = *BatchScorer::Create(harness.engine.get(), {});
  Table table({TableRow{}, TableRow{}, TableRow{}});
  const uint8_t bits[] = {0b1011'0100};  // from bit 4 on: there, there, not there
  table.view.times_us.valid = {bits, 4};
  auto scores = scorer->Score(table.view);
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_THAT(scores->bad, ElementsAre(BadBatchRow{2, "time_us", "missing"}));
  table.view.times_us.valid = {};
  table.view.items.valid = {bits, 2};  // there, not there, there
  scores = scorer->Score(table.view);
  EXPECT_THAT(scores->bad, ElementsAre(BadBatchRow{1, "item_id", "missing"}));
}

TEST_F(BatchScorerTest, ColumnsThatDoNotFitAreRefusedByName) {
  Harness harness({{"1", Served(model_)}}, {}, 1);
  auto scorer = *BatchScorer::Create(harness.engine.get(), {});
  const auto problem = [&scorer](const std::function<void(BatchRows*)>& change) {
    Table table({TableRow{}, TableRow{}});
    change(&table.view);
    return std::string(scorer->Score(table.view).status().message());
  };
  EXPECT_EQ(problem([](BatchRows* rows) { rows->users = {}; }), "column user: not given, but needed");
  EXPECT_EQ(problem([](BatchRows* rows) { rows->items.values = rows->items.values.first(1); }),
            "column item_id: 1 values for 2 rows");
  EXPECT_EQ(problem([](BatchRows* rows) { rows->times_us.values = {}; }), "column time_us: not given, but needed");
  EXPECT_EQ(problem([](BatchRows* rows) { rows->request_texts[0].name = "age"; }),
            "column request_texts.age: the name is given twice");
  EXPECT_EQ(problem([](BatchRows* rows) { rows->candidate_texts[0].name = ""; }),
            "column candidate_texts.: a name of 1 to 64 bytes needed");
  EXPECT_EQ(problem([](BatchRows* rows) { rows->candidate_texts[0].values = {}; }),
            "column candidate_texts.source: not given, but needed");
  EXPECT_EQ(problem([](BatchRows* rows) {
              const NumberFeature bid = rows->candidate_numbers[0];
              for (int i = 0; i < 64; ++i) {
                rows->candidate_numbers.push_back(bid);
                rows->candidate_numbers.back().name = "c" + std::to_string(i);
              }
            }),
            "66 candidate features, the limit is 64");
}

TEST_F(BatchScorerTest, OptionsAreChecked) {
  Harness harness({{"1", Served(model_)}}, {}, 1);
  const auto problem = [&harness](BatchOptions options) {
    return BatchScorer::Create(harness.engine.get(), std::move(options)).status();
  };
  EXPECT_THAT(problem({.ns = "No"}).message(), HasSubstr("namespace must match"));
  EXPECT_THAT(problem({.parameters = {{"history_row", "1"}}}).message(), HasSubstr("did you mean history_rows"));
  EXPECT_THAT(problem({.parameters = {{"cache_bytes", "1048576"}}}).message(), HasSubstr("cannot be set by a request"));
  EXPECT_TRUE(absl::IsNotFound(problem({.model = {"fake", "7", ""}})));
  EXPECT_TRUE(absl::IsNotFound(problem({.parameters = {{"model_version", "7"}}})));
  EXPECT_TRUE(absl::IsInvalidArgument(problem({.in_flight_max = 0})));
}

TEST_F(BatchScorerTest, ParametersOfRequestsCountAndAreReported) {
  Harness harness({{"1", Served(model_)}}, {}, 2);
  random_.FillStore(&harness, 1, 100);
  const std::vector<TableRow> rows = {{.user = "user0", .time_us = kNow}};
  const BatchScores all = ScoreAll(harness.engine.get(), rows);
  const BatchScores few = ScoreAll(harness.engine.get(), rows, {.parameters = {{"history_rows", "5"}}});
  EXPECT_GT(all.rows_visible[0], 10u);
  EXPECT_EQ(few.rows_visible[0], 10u) << "5 of each channel";
  EXPECT_THAT(few.parameters, ::testing::Contains(EffectiveParameter{"history_rows", "5", "request"}));
  EXPECT_THAT(all.parameters, ::testing::Contains(EffectiveParameter{"history_rows", "1000000", "default"}));
}

TEST_F(BatchScorerTest, RowsOfOneMomentShareARequestOfAtMostTenThousand) {
  Harness harness({{"1", Served(model_)}}, {}, 2);
  std::vector<TableRow> rows(25'001);
  for (size_t i = 0; i < rows.size(); ++i) rows[i].item = i % 97;
  size_t heard = 0;
  auto scorer = *BatchScorer::Create(harness.engine.get(), {});
  const Table table(rows);
  const auto scores = scorer->Score(table.view, {}, [&heard](size_t done) { heard = done; });
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ(scores->requests, 3u);
  EXPECT_EQ(heard, rows.size());
  EXPECT_EQ(scores->scores[0].raw_logit[0], scores->scores[0].raw_logit[97 * 250]);
}

TEST_F(BatchScorerTest, AnEmptyTableHasColumnsAndNoRows) {
  Harness harness({{"1", Served(model_)}}, {}, 1);
  const BatchScores scores = ScoreAll(harness.engine.get(), {});
  ASSERT_EQ(scores.scores.size(), 2u);
  EXPECT_EQ(scores.scores[1].task, "like");
  EXPECT_TRUE(scores.flags.empty());
}

}  // namespace
}  // namespace backstory::testing
