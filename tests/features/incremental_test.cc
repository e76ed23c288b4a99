// Extending equals rebuilding, bit for bit: joins, views at an earlier time, tokens, summaries.
#include "features/incremental.h"

#include <gtest/gtest.h>

#include <random>

#include "features/user_summary.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

using testing::ClickConfig;
using testing::MakeHistory;
using testing::RandomHistory;

constexpr uint64_t kSeeds = 120;

void ExpectSameRows(std::span<const HistoryRow> found, std::span<const HistoryRow> wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_TRUE(found[i] == wanted[i]) << "row " << i;
}

void ExpectSameTokens(const std::vector<ChannelRows>& found, const std::vector<ChannelRows>& wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t c = 0; c < found.size(); ++c) {
    SCOPED_TRACE(c);
    EXPECT_EQ(found[c].tokens.rows, wanted[c].tokens.rows);
    EXPECT_EQ(found[c].closed, wanted[c].closed);
    EXPECT_EQ(found[c].time_us, wanted[c].time_us);
    EXPECT_EQ(found[c].event_id, wanted[c].event_id);
    EXPECT_EQ(found[c].action, wanted[c].action);
    EXPECT_EQ(found[c].tie, wanted[c].tie);
    ASSERT_EQ(found[c].tokens.sparse.size(), wanted[c].tokens.sparse.size());
    for (size_t f = 0; f < found[c].tokens.sparse.size(); ++f) {
      EXPECT_EQ(found[c].tokens.sparse[f].offsets, wanted[c].tokens.sparse[f].offsets) << "field " << f;
      EXPECT_EQ(found[c].tokens.sparse[f].ids, wanted[c].tokens.sparse[f].ids) << "field " << f;
    }
  }
}

// Deals the events into `parts` groups; mostly by arrival (near canonical order), some late by a lot.
std::vector<std::vector<Event>> Arrivals(std::mt19937_64& random, const std::vector<Event>& events, size_t parts) {
  std::vector<std::vector<Event>> groups(parts);
  for (size_t i = 0; i < events.size(); ++i) {
    const size_t due = i * parts / events.size();
    const size_t at = random() % 5 == 0 ? due + random() % (parts - due) : due;
    groups[at].push_back(events[i]);
  }
  return groups;
}

TEST(ExtendJoin, EqualsAFreshJoinInAnyOrderOfArrival) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    TokenizerConfig config = ClickConfig();
    config.open_rows = seed % 2 == 0 ? OpenRows::kHide : OpenRows::kAsKnown;
    const RandomHistory history = MakeHistory(random, 1 + random() % 150);
    JoinedHistory joined;
    TokenizedHistory tokens;
    std::vector<Event> so_far;
    int64_t now_us = 0;
    for (const auto& group : Arrivals(random, history.events, 1 + random() % 12)) {
      const std::vector<HistoryRow> before = joined.rows;
      const size_t first = ExtendJoin(group, config, &joined);
      so_far.insert(so_far.end(), group.begin(), group.end());
      std::sort(so_far.begin(), so_far.end(), CanonicalLess);
      const JoinedHistory fresh = JoinAll(so_far, config);
      ExpectSameRows(joined.rows, fresh.rows);
      ASSERT_EQ(joined.links, fresh.links);
      ASSERT_LE(first, std::min(before.size(), joined.rows.size()) + group.size());
      ExpectSameRows(std::span(joined.rows).first(std::min(first, before.size())),
                     std::span(before).first(std::min(first, before.size())));
      // The clock moves on between requests; open rows close.
      now_us = std::max(now_us, so_far.empty() ? 0 : so_far.back().time_us + int64_t(random() % 3000) * 1'000'000);
      UpdateTokens(joined.rows, first, now_us, history.Lookup(), config, &tokens);
      ExpectSameTokens(tokens.channels, TokenizeHistory(fresh.rows, now_us, history.Lookup(), config));
    }
  }
}

TEST(ExtendJoin, SaysThatNothingBeforeTheTailChanged) {
  std::mt19937_64 random(7);
  const TokenizerConfig config = ClickConfig();
  const RandomHistory history = MakeHistory(random, 300);
  JoinedHistory joined = JoinAll(history.events, config);
  Event newest = testing::RandomExposure(random, history.events.back().time_us + 1, 5, 0);
  const size_t rows = joined.rows.size();
  EXPECT_EQ(ExtendJoin({&newest, 1}, config, &joined), rows);
  EXPECT_EQ(ExtendJoin({}, config, &joined), rows + 1);
}

TEST(ExtendJoin, ALateExposureTakesBackTheActionsThatStoodAlone) {
  std::mt19937_64 random(3);
  const TokenizerConfig config = ClickConfig();
  Event exposure = testing::RandomExposure(random, 1'000'000'000, 10, 0);
  Event click = exposure;
  click.kind = EventKind::kAction;
  click.event_id = 11;
  click.exposure_id = 10;
  click.action = ActionType::kClick;
  click.time_us += 5;
  JoinedHistory joined;
  ExtendJoin({&click, 1}, config, &joined);
  ASSERT_EQ(joined.rows.size(), 1u);
  EXPECT_EQ(joined.rows[0].kind, EventKind::kAction);
  EXPECT_EQ(ExtendJoin({&exposure, 1}, config, &joined), 0u);
  ASSERT_EQ(joined.rows.size(), 1u);
  EXPECT_EQ(joined.rows[0].kind, EventKind::kExposure);
  EXPECT_TRUE(joined.rows[0].positive);
}

TEST(ViewAt, EqualsAJoinAsOfThatTime) {
  size_t copied = 0, visible = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const TokenizerConfig config = ClickConfig();
    const RandomHistory history = MakeHistory(random, 1 + random() % 200);
    const JoinedHistory joined = JoinAll(history.events, config);
    for (int trial = 0; trial < 20; ++trial) {
      const Event& near = history.events[random() % history.events.size()];
      const int64_t now_us = near.time_us + int64_t(random() % 3) - 1;
      const JoinedView view = ViewAt(joined, now_us, config);
      std::vector<HistoryRow> rows(joined.rows.begin(), joined.rows.begin() + static_cast<ptrdiff_t>(view.shared));
      rows.insert(rows.end(), view.rest.begin(), view.rest.end());
      ExpectSameRows(rows, JoinHistory(history.events, {.event_time_us = now_us}, config));
      copied += view.rest.size();
      visible += view.visible();
    }
    const JoinedView newest = ViewAt(joined, INT64_MAX, config);
    EXPECT_EQ(newest.shared, joined.rows.size());
    EXPECT_TRUE(newest.rest.empty());
  }
  EXPECT_LT(copied, visible / 2);  // most rows are shared, else the view is pointless
}

TEST(UpdateTokens, HidesOpenRowsUntilTheyClose) {
  std::mt19937_64 random(11);
  TokenizerConfig config = ClickConfig();
  config.open_rows = OpenRows::kHide;
  const Event exposure = testing::RandomExposure(random, 1'000'000'000, 10, 0);
  const auto rows = JoinHistory({&exposure, 1}, {}, config);
  const int64_t closes_us = exposure.time_us + config.label_window_us;
  EXPECT_EQ(TokenizeHistory(rows, closes_us - 1, nullptr, config)[0].tokens.rows, 0u);
  EXPECT_EQ(TokenizeHistory(rows, closes_us, nullptr, config)[0].tokens.rows, 1u);
  config.open_rows = OpenRows::kAsKnown;
  const auto shown = TokenizeHistory(rows, closes_us - 1, nullptr, config);
  EXPECT_EQ(shown[0].tokens.rows, 1u);
  EXPECT_EQ(shown[0].closed, 0u);
  EXPECT_EQ(TokenizeHistory(rows, closes_us, nullptr, config)[0].closed, 1u);
}

TEST(SummaryAccumulator, EqualsSummariseAtEveryRow) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const RandomHistory history = MakeHistory(random, 1 + random() % 200);
    const auto rows = JoinHistory(history.events, {}, ClickConfig());
    SummaryAccumulator past;
    for (const HistoryRow& row : rows) {
      const UserSummary wanted = Summarise(rows, row.time_us, row.tie, history.Lookup());
      ASSERT_EQ(past.At(rows, row.time_us, row.tie, history.Lookup()), wanted);
    }
  }
}

// What is known of the past at a time does not change when the future is stored: training equals serving.
TEST(Summarise, DoesNotSeeTheFuture) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const TokenizerConfig config = ClickConfig();
    const RandomHistory history = MakeHistory(random, 1 + random() % 100);
    const auto all = JoinHistory(history.events, {}, config);
    for (const HistoryRow& row : all) {
      const auto then = JoinHistory(history.events, {.event_time_us = row.time_us}, config);
      ASSERT_EQ(Summarise(all, row.time_us, row.tie, history.Lookup()),
                Summarise(then, row.time_us, row.tie, history.Lookup()));
    }
  }
}

}  // namespace
}  // namespace backstory
