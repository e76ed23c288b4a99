#include "serving/cli/held_out.h"

#include <gtest/gtest.h>

namespace backstory {
namespace {

ImportedEvent Rating(const std::string& user, uint64_t id, int64_t time_us, uint64_t item, float value) {
  Event e;
  e.kind = EventKind::kAction;
  e.event_id = id;
  e.time_us = time_us;
  e.item_id = item;
  e.action = ActionType::kRating;
  e.value = value;
  return {user, e};
}

const LabelRule kLike{.action = ActionType::kRating, .min_value = 4};

TEST(HeldOut, CutsByTimeAfterSorting) {
  std::vector<ImportedEvent> events;
  for (int i = 9; i >= 0; --i) events.push_back(Rating("u", 100 + i, 1000 + i, i, 5));
  const auto users = SplitByTime(events, kLike, 0.8);
  ASSERT_EQ(users.size(), 1u);
  EXPECT_EQ(users[0].held_out, 8u);
  EXPECT_EQ(users[0].events[8].event.time_us, 1008);
}

TEST(HeldOut, ATieGroupIsHeldOutWhole) {
  std::vector<ImportedEvent> events;
  for (int i = 0; i < 10; ++i) events.push_back(Rating("u", 100 + i, i < 6 ? 1000 + i : 2000, i, 5));
  EXPECT_EQ(SplitByTime(events, kLike, 0.8)[0].held_out, 6u);
  // One group only: nothing is left to train on, everything is held out.
  for (auto& e : events) e.event.time_us = 1;
  EXPECT_EQ(SplitByTime(events, kLike, 0.8)[0].held_out, 0u);
}

TEST(HeldOut, PointEightOfTenIsEightDespiteRounding) {
  std::vector<ImportedEvent> events;
  for (int i = 0; i < 10; ++i) events.push_back(Rating("u", 100 + i, 1000 + i, i, 5));
  EXPECT_EQ(SplitByTime(events, kLike, 0.7 + 0.1)[0].held_out, 8u);
}

TEST(HeldOut, ItemRatesCountOtherUsersStrictlyBefore) {
  const std::vector<ImportedEvent> events = {Rating("a", 1, 10, 7, 5), Rating("b", 2, 10, 7, 1),
                                             Rating("c", 3, 20, 7, 5)};
  const auto users = SplitByTime(events, kLike, 0.5);
  EXPECT_DOUBLE_EQ(users[0].events[0].item_rate, 0.5);  // nothing before time 10
  EXPECT_DOUBLE_EQ(users[1].events[0].item_rate, 0.5);  // the same moment does not count
  EXPECT_DOUBLE_EQ(users[2].events[0].item_rate, (1 + 10.0) / 22);
}

TEST(HeldOut, ShowcasesHaveBothOutcomes) {
  std::vector<ImportedEvent> events;
  for (int i = 0; i < 20; ++i) {
    events.push_back(Rating("mixed", 100 + i, i, i, i % 2 ? 5 : 1));
    events.push_back(Rating("fan", 200 + i, i, i, 5));
  }
  const auto users = SplitByTime(events, kLike, 0.5);
  const auto shown = Showcase(users, 3, 2);
  ASSERT_EQ(shown.size(), 1u);
  EXPECT_EQ(users[shown[0]].user, "mixed");
  const auto chosen = ShowcaseEvents(users[shown[0]], 2);
  EXPECT_EQ(chosen.size(), 4u);
  for (size_t i : chosen) EXPECT_GE(i, users[shown[0]].held_out);
}

}  // namespace
}  // namespace backstory
