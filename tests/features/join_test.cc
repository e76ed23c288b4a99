// How actions find their exposures, and what a row says afterwards.
#include <gtest/gtest.h>

#include <random>

#include "features/tokenizer.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

using testing::ClickConfig;
using testing::kSecondUs;

constexpr int64_t kStart = 1'000'000 * kSecondUs;

Event Shown(uint64_t id, int64_t seconds, uint64_t item, uint64_t request = 0) {
  Event event;
  event.event_id = id;
  event.time_us = kStart + seconds * kSecondUs;
  event.item_id = item;
  event.request_id = request;
  return event;
}

Event Clicked(uint64_t id, int64_t seconds, uint64_t item, uint64_t exposure, ActionType type = ActionType::kClick,
              float value = 0) {
  Event event = Shown(id, seconds, item);
  event.kind = EventKind::kAction;
  event.action = type;
  event.value = value;
  event.exposure_id = exposure;
  return event;
}

std::vector<HistoryRow> Join(std::vector<Event> events, int64_t as_of_seconds = 1'000'000) {
  std::sort(events.begin(), events.end(), CanonicalLess);
  return JoinHistory(events, {.event_time_us = kStart + as_of_seconds * kSecondUs}, ClickConfig());
}

TEST(Join, ALateClickChangesItsExposureAndMakesNoRow) {
  const auto rows = Join({Shown(1, 0, 7), Shown(2, 10, 8), Clicked(3, 1700, 7, 1)});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].action, ActionType::kClick);
  EXPECT_EQ(rows[0].action_class, 2);
  EXPECT_TRUE(rows[0].labelled && rows[0].positive);
  EXPECT_EQ(rows[0].time_us, kStart);
  EXPECT_EQ(rows[1].action, ActionType::kNone);
  EXPECT_EQ(rows[1].action_class, 1);
  EXPECT_TRUE(rows[1].labelled);
  EXPECT_FALSE(rows[1].positive);
}

TEST(Join, TheWindowIsHalfOpen) {
  EXPECT_EQ(Join({Shown(1, 0, 7), Clicked(2, 1799, 7, 1)}).size(), 1u);
  EXPECT_EQ(Join({Shown(1, 0, 7), Clicked(2, 0, 7, 1)}).size(), 1u);
  const auto at_the_end = Join({Shown(1, 0, 7), Clicked(2, 1800, 7, 1)});
  ASSERT_EQ(at_the_end.size(), 2u);
  EXPECT_FALSE(at_the_end[0].positive);
  EXPECT_TRUE(at_the_end[1].positive);  // a lone click is a positive of its own
  EXPECT_EQ(at_the_end[1].kind, EventKind::kAction);
}

TEST(Join, AnActionBeforeItsExposureStandsAlone) {
  EXPECT_EQ(Join({Shown(1, 100, 7), Clicked(2, 99, 7, 1)}).size(), 2u);
}

TEST(Join, AnActionOfEqualTimeButSmallerIdJoins) {
  const auto rows = Join({Shown(9, 100, 7), Clicked(2, 100, 7, 9)});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(rows[0].positive);
}

TEST(Join, MissingExposureAndOtherItemStandAlone) {
  EXPECT_EQ(Join({Clicked(2, 100, 7, 1)}).size(), 1u);
  EXPECT_EQ(Join({Shown(1, 0, 7), Clicked(2, 100, 8, 1)}).size(), 2u);
  EXPECT_EQ(Join({Shown(1, 0, 7), Clicked(2, 100, 7, 0)}).size(), 2u);
  // An action does not join an action.
  EXPECT_EQ(Join({Clicked(1, 0, 7, 0), Clicked(2, 100, 7, 1)}).size(), 2u);
}

TEST(Join, TheEarliestRuleWinsNotTheEarliestAction) {
  const auto rows = Join({Shown(1, 0, 7), Clicked(2, 5, 7, 1), Clicked(3, 60, 7, 1, ActionType::kDwell, 55),
                          Clicked(4, 90, 7, 1, ActionType::kDwell, 31)});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].action, ActionType::kDwell);
  EXPECT_EQ(rows[0].value, 55);  // the first of equals
  EXPECT_EQ(rows[0].action_class, 3);
  EXPECT_TRUE(rows[0].positive);  // the click still labels it
}

TEST(Join, AnActionWithoutARuleLeavesTheRowWithoutAction) {
  const auto rows = Join({Shown(1, 0, 7), Clicked(2, 5, 7, 1, ActionType::kDwell, 3)});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].action, ActionType::kNone);
  EXPECT_EQ(rows[0].action_class, 1);
}

TEST(Join, LabelsByValue) {
  TokenizerConfig config = ClickConfig();
  config.label = {.action = ActionType::kRating, .min_value = 4, .unlabelled_is_negative = false};
  config.actions = {{.action = ActionType::kRating, .min_value = 4, .action_class = 1}};
  const std::vector<Event> events = {Clicked(1, 0, 7, 0, ActionType::kRating, 3.5f),
                                     Clicked(2, 1, 7, 0, ActionType::kRating, 4.0f), Shown(3, 2, 7)};
  const auto rows = JoinHistory(events, {}, config);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_TRUE(rows[0].labelled && !rows[0].positive);
  EXPECT_TRUE(rows[1].labelled && rows[1].positive);
  EXPECT_FALSE(rows[2].labelled);
  EXPECT_EQ(rows[0].action_class, 0);
  EXPECT_EQ(rows[1].action_class, 1);
}

TEST(Join, AsOfIsStrict) {
  const std::vector<Event> events = {Shown(1, 0, 7), Shown(2, 100, 8), Clicked(3, 200, 7, 1)};
  EXPECT_EQ(Join(events, 0).size(), 0u);
  EXPECT_EQ(Join(events, 100).size(), 1u);
  EXPECT_EQ(Join(events, 101).size(), 2u);
  EXPECT_FALSE(Join(events, 200)[0].positive);  // the click at 200 is invisible at 200
  EXPECT_TRUE(Join(events, 201)[0].positive);
}

TEST(Join, KnownByHidesWhatWasIngestedLater) {
  std::vector<Event> events = {Shown(1, 0, 7), Clicked(2, 10, 7, 1)};
  events[0].ingest_time_us = 5;
  events[1].ingest_time_us = 9;
  EXPECT_FALSE(JoinHistory(events, {.known_by_us = 8}, ClickConfig())[0].positive);
  EXPECT_TRUE(JoinHistory(events, {.known_by_us = 9}, ClickConfig())[0].positive);
  EXPECT_TRUE(JoinHistory(events, {.known_by_us = 4}, ClickConfig()).empty());
}

TEST(Join, ClosingTimesNeverDecrease) {
  const auto rows = Join({Shown(1, 0, 7), Clicked(2, 10, 9, 0), Shown(3, 20, 8)});
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].closed_us, kStart + 1800 * kSecondUs);
  EXPECT_EQ(rows[1].closed_us, kStart + 1800 * kSecondUs);  // final alone, but not in a closed prefix
  EXPECT_EQ(rows[2].closed_us, kStart + 1820 * kSecondUs);
}

TEST(TieKey, SameRequestElseSameTime) {
  EXPECT_EQ(TieKey(5, 1), TieKey(5, 2));
  EXPECT_NE(TieKey(5, 1), TieKey(6, 1));
  EXPECT_EQ(TieKey(0, 77), TieKey(0, 77));
  EXPECT_NE(TieKey(0, 77), TieKey(0, 78));
  EXPECT_NE(TieKey(77, 77), TieKey(0, 77));
  for (uint64_t request : {uint64_t{1}, UINT64_MAX, uint64_t{1} << 63}) {
    EXPECT_GE(TieKey(request, 0), 0);
    EXPECT_TRUE(IsRequestTie(TieKey(request, 0)));
  }
  EXPECT_GE(TieKey(0, INT64_MAX), 0);
  EXPECT_FALSE(IsRequestTie(TieKey(0, 0)));
  EXPECT_FALSE(IsRequestTie(CandidateTokens::kNoTie));
}

// Every event ends in exactly one place, whatever the history.
TEST(Join, ConservesEvents) {
  const uint64_t seed = 20260101;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 50; ++round) {
    const testing::RandomHistory history = testing::MakeHistory(random, 1 + random() % 200);
    const auto rows = JoinHistory(history.events, {}, ClickConfig());
    size_t exposures = 0, lone = 0;
    for (const HistoryRow& row : rows) (row.kind == EventKind::kExposure ? exposures : lone) += 1;
    size_t shown = 0, joined = 0;
    for (const Event& event : history.events) {
      if (event.kind == EventKind::kExposure) {
        ++shown;
        continue;
      }
      for (const Event& other : history.events) {
        const int64_t delay = event.time_us - other.time_us;
        joined += other.kind == EventKind::kExposure && other.event_id == event.exposure_id &&
                  other.item_id == event.item_id && delay >= 0 && delay < ClickConfig().label_window_us;
      }
    }
    EXPECT_EQ(exposures, shown);
    EXPECT_EQ(lone, history.events.size() - shown - joined);
    EXPECT_TRUE(std::is_sorted(rows.begin(), rows.end(), [](const HistoryRow& a, const HistoryRow& b) {
      return std::pair(a.time_us, a.event_id) < std::pair(b.time_us, b.event_id);
    }));
  }
}

}  // namespace
}  // namespace backstory
