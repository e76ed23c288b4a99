// What events must look like, what a set of them means, and counts strictly before a moment.
#include "features/event_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "features/item_counts.h"
#include "features/item_rules.h"
#include "features/utf8.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;

Event Good() {
  Event event;
  event.event_id = 1;
  return event;
}

TEST(ValidateEvent, BothSidesOfEveryLimit) {
  const auto refused = [](const std::function<void(Event*)>& spoil) {
    Event event = Good();
    spoil(&event);
    return std::string(ValidateEvent(event).message());
  };
  const auto accepted = [](const std::function<void(Event*)>& change) {
    Event event = Good();
    change(&event);
    return ValidateEvent(event).ok();
  };
  EXPECT_TRUE(accepted([](Event*) {}));
  EXPECT_THAT(refused([](Event* e) { e->event_id = 0; }), HasSubstr("event_id"));
  EXPECT_THAT(refused([](Event* e) { e->time_us = -1; }), HasSubstr("time_us"));
  EXPECT_TRUE(accepted([](Event* e) { e->time_us = EventLimits::kTimeUsMax; }));
  EXPECT_THAT(refused([](Event* e) { e->time_us = EventLimits::kTimeUsMax + 1; }), HasSubstr("time_us"));
  EXPECT_THAT(refused([](Event* e) { e->kind = EventKind{9}; }), HasSubstr("kind"));
  EXPECT_THAT(refused([](Event* e) { e->kind = EventKind::kAction; }), HasSubstr("action"));
  EXPECT_THAT(refused([](Event* e) { e->action = ActionType::kClick; }), HasSubstr("action"));
  EXPECT_THAT(refused([](Event* e) { e->value = NAN; }), HasSubstr("value"));
  EXPECT_THAT(refused([](Event* e) { e->value = INFINITY; }), HasSubstr("value"));
  EXPECT_TRUE(accepted([](Event* e) { e->scene = std::string(64, 'x'); }));
  EXPECT_THAT(refused([](Event* e) { e->scene = std::string(65, 'x'); }), HasSubstr("limit 64"));
  EXPECT_THAT(refused([](Event* e) { e->scene = "\xFF"; }), HasSubstr("UTF-8"));
  EXPECT_TRUE(accepted([](Event* e) { e->context.assign(32, {"n", "v"}); }));
  EXPECT_THAT(refused([](Event* e) { e->context.assign(33, {"n", "v"}); }), HasSubstr("limit 32"));
  EXPECT_THAT(refused([](Event* e) { e->context = {{"", "v"}}; }), HasSubstr("context.name"));
  EXPECT_THAT(refused([](Event* e) { e->context = {{std::string(65, 'n'), "v"}}; }), HasSubstr("context.name"));
  EXPECT_TRUE(accepted([](Event* e) { e->context = {{"n", std::string(256, 'v')}}; }));
  EXPECT_THAT(refused([](Event* e) { e->context = {{"n", std::string(257, 'v')}}; }), HasSubstr("limit 256"));
  EXPECT_TRUE(accepted([](Event* e) { e->embedding_ids.assign(16, 1); }));
  EXPECT_THAT(refused([](Event* e) { e->embedding_ids.assign(17, 1); }), HasSubstr("limit 16"));
}

TEST(ValidateItem, BothSidesOfEveryLimit) {
  const auto check = [](const std::function<void(Item*)>& change) {
    Item item{.item_id = 1};
    change(&item);
    return std::string(ValidateItem(item).message());
  };
  EXPECT_EQ(check([](Item* i) { i->categories.assign(64, "c"); }), "");
  EXPECT_THAT(check([](Item* i) { i->categories.assign(65, "c"); }), HasSubstr("limit 64"));
  EXPECT_THAT(check([](Item* i) { i->categories = {""}; }), HasSubstr("categories"));
  EXPECT_THAT(check([](Item* i) { i->categories = {"\xC0\x80"}; }), HasSubstr("UTF-8"));
  EXPECT_THAT(check([](Item* i) { i->sid.assign(17, 1); }), HasSubstr("limit 16"));
  EXPECT_THAT(check([](Item* i) { i->year = -1; }), HasSubstr("year"));
  EXPECT_THAT(check([](Item* i) { i->year = 10000; }), HasSubstr("year"));
  EXPECT_EQ(check([](Item* i) { i->title = std::string(512, 't'); }), "");
  EXPECT_THAT(check([](Item* i) { i->title = std::string(513, 't'); }), HasSubstr("limit 512"));
  EXPECT_THAT(check([](Item* i) { i->text = std::string(8193, 't'); }), HasSubstr("limit 8192"));
  EXPECT_THAT(check([](Item* i) { i->numbers["price"] = NAN; }), HasSubstr("numbers.price"));
  EXPECT_THAT(check([](Item* i) { i->strings[""] = "x"; }), HasSubstr("strings"));
}

TEST(Utf8, WellFormedOnly) {
  for (const char* good : {"", "ascii", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x8E\xAC", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsUtf8(good)) << good;
  }
  for (const char* bad : {"\x80", "\xC3", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF5\x80\x80\x80", "\xE2\x82", "a\xFF"}) {
    EXPECT_FALSE(IsUtf8(bad)) << bad;
  }
}

TEST(DerivedEventId, DependsOnEveryCanonicalField) {
  const Event base = Good();
  std::vector<uint64_t> ids = {DerivedEventId(base)};
  const auto add = [&](const std::function<void(Event*)>& change) {
    Event event = base;
    change(&event);
    ids.push_back(DerivedEventId(event));
  };
  add([](Event* e) { e->kind = EventKind::kAction; });
  add([](Event* e) { e->time_us = 1; });
  add([](Event* e) { e->item_id = 1; });
  add([](Event* e) { e->request_id = 1; });
  add([](Event* e) { e->position = 1; });
  add([](Event* e) { e->scene = "s"; });
  add([](Event* e) { e->action = ActionType::kClick; });
  add([](Event* e) { e->value = 1; });
  add([](Event* e) { e->exposure_id = 1; });
  add([](Event* e) { e->context = {{"a", "bc"}}; });
  add([](Event* e) { e->context = {{"ab", "c"}}; });
  add([](Event* e) { e->embedding_ids = {1}; });
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
  Event other = base;
  other.event_id = 99;
  other.ingest_time_us = 5;
  EXPECT_EQ(DerivedEventId(other), DerivedEventId(base));
}

// Replays and reorderings end in the same history, byte for byte.
TEST(CanonicalHistory, IgnoresOrderAndRepetition) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<Event> events = testing::MakeHistory(random, 1 + random() % 150).events;
    for (size_t i = 0, n = events.size(); i < n; ++i) {  // corrections and deletions
      if (random() % 6 != 0) continue;
      Event revised = events[i];
      revised.revision = 1 + static_cast<uint32_t>(random() % 3);
      revised.tombstone = random() % 3 == 0;
      revised.item_id = 500 + revised.revision;
      revised.time_us += 1'000'000 * static_cast<int64_t>(revised.revision);
      events.push_back(revised);
    }
    std::vector<Event> once = events, thrice = events;
    for (int copy = 0; copy < 2; ++copy) thrice.insert(thrice.end(), events.begin(), events.end());
    std::shuffle(thrice.begin(), thrice.end(), random);
    EXPECT_EQ(CanonicalHistory(&once).conflicts, 0u);
    CanonicalHistory(&thrice);
    EXPECT_TRUE(once == thrice);
    EXPECT_TRUE(std::is_sorted(once.begin(), once.end(), CanonicalLess));
  }
}

TEST(CanonicalHistory, RevisionsConflictsTombstones) {
  Event first = Good(), other = first, revised = first, gone = first;
  other.item_id = 5;  // same revision, other content
  revised.revision = 2;
  revised.item_id = 6;
  gone.revision = 3;
  gone.tombstone = true;
  std::vector<Event> events = {first, other, first};
  CanonicalCounts counts = CanonicalHistory(&events);
  EXPECT_EQ(counts.conflicts, 1u);
  EXPECT_EQ(counts.duplicates, 1u);
  EXPECT_EQ(events, std::vector<Event>({first}));
  events = {first, revised};
  CanonicalHistory(&events);
  EXPECT_EQ(events, std::vector<Event>({revised}));
  events = {gone, first, revised};
  EXPECT_EQ(CanonicalHistory(&events).tombstones, 1u);
  EXPECT_TRUE(events.empty());
}

TEST(ItemCountIndex, CountsStrictlyBeforeTheBucket) {
  ItemCountIndex index;
  constexpr int64_t kHour = 3'600'000'000;
  Event event = Good();
  event.item_id = 3;
  event.time_us = 2 * kHour - 1;
  index.Add(event);
  event.kind = EventKind::kAction;
  event.action = ActionType::kRating;
  event.value = 4.5f;
  event.time_us = 2 * kHour;
  index.Add(event);
  index.Seal();
  EXPECT_EQ(index.CountsBefore(3, 2 * kHour - 1, kHour).exposures, 0u);
  EXPECT_EQ(index.CountsBefore(3, 2 * kHour, kHour).exposures, 1u);
  EXPECT_TRUE(index.CountsBefore(3, 3 * kHour - 1, kHour).cells.empty());
  ASSERT_EQ(index.CountsBefore(3, 3 * kHour, kHour).cells.size(), 1u);
  EXPECT_EQ(index.CountsBefore(3, 3 * kHour, kHour).cells[0].value_bin, 9);
  EXPECT_EQ(index.CountsBefore(3, 3 * kHour, 2 * kHour).exposures, 1u);
  EXPECT_TRUE(index.CountsBefore(3, 3 * kHour, 2 * kHour).cells.empty());
  EXPECT_EQ(index.CountsBefore(4, INT64_MAX, kHour).exposures, 0u);
}

TEST(ItemCountIndex, EqualsCountingOneByOne) {
  const uint64_t seed = 99;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::vector<Event> events = testing::MakeHistory(random, 3000).events;
  ItemCountIndex index;
  for (const Event& event : events) index.Add(event);
  index.Seal();
  for (int trial = 0; trial < 300; ++trial) {
    const Event& near = events[random() % events.size()];
    const int64_t granularity_us = 1 + static_cast<int64_t>(random() % 7'200'000'000);
    const int64_t cut = near.time_us / granularity_us * granularity_us;
    uint64_t exposures = 0, actions = 0;
    for (const Event& event : events) {
      if (event.item_id != near.item_id || event.time_us >= cut) continue;
      ++(event.kind == EventKind::kExposure ? exposures : actions);
    }
    const ItemCounts counts = index.CountsBefore(near.item_id, near.time_us, granularity_us);
    uint64_t cells = 0;
    for (const auto& cell : counts.cells) cells += cell.count;
    EXPECT_EQ(counts.exposures, exposures);
    EXPECT_EQ(cells, actions);
  }
}

}  // namespace
}  // namespace backstory
