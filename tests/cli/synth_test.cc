// Synthetic users: the same bytes for the same options, labelled, and as the real set in what they are fitted to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "features/event_rules.h"
#include "features/io/import_file.h"
#include "serving/cli/synth_files.h"
#include "serving/cli/synth_user.h"

namespace backstory {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Content(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class SynthFiles : public ::testing::Test {
 protected:
  SynthFiles()
      : directory_(std::filesystem::temp_directory_path() / ("backstory_synth_" + std::to_string(::getpid()))) {}
  ~SynthFiles() override { std::filesystem::remove_all(directory_); }
  std::filesystem::path Make(const SynthOptions& options, uint64_t users, const std::string& name) {
    const auto counts = WriteSynthFiles(options, users, directory_ / name, nullptr);
    EXPECT_TRUE(counts.ok()) << counts.status();
    return directory_ / name;
  }
  std::filesystem::path directory_;
};

TEST_F(SynthFiles, SameOptionsSameBytesOtherSeedOtherBytes) {
  SynthOptions options;
  options.lengths = *ParseLengths("200-800");
  const auto a = Make(options, 5, "a"), b = Make(options, 5, "b");
  EXPECT_EQ(Content(a / "events.csv"), Content(b / "events.csv"));
  EXPECT_EQ(Content(a / "items.csv"), Content(b / "items.csv"));
  options.seed = 2;
  EXPECT_NE(Content(a / "events.csv"), Content(Make(options, 5, "c") / "events.csv"));
}

// Frozen: another value means that every data set made before can no longer be made again.
TEST(Synth, FirstUserOfSeedOneIsFrozen) {
  SynthOptions options;
  options.lengths = *ParseLengths("100");
  const SynthWorld world(options);
  const SynthUser user = MakeSynthUser(world, options, 0);
  uint64_t digest = 0;
  for (const Event& event : user.events) digest = digest * 1099511628211u + (DerivedEventId(event) ^ event.event_id);
  EXPECT_EQ(digest, 12977612658049887102u);
}

TEST_F(SynthFiles, AreLabelledAndReadWithoutABadRow) {
  SynthOptions options;
  options.lengths = *ParseLengths("300");
  const auto made = Make(options, 8, "d");
  EXPECT_THAT(Content(made / "events.csv"), StartsWith("# SYNTHETIC"));
  EXPECT_THAT(Content(made / "items.csv"), StartsWith("# SYNTHETIC"));
  std::vector<BadRow> bad;
  const auto events = ReadEventFile(made / "events.csv", {}, &bad);
  ASSERT_TRUE(events.ok()) << events.status();
  EXPECT_TRUE(bad.empty());
  std::map<std::string, std::vector<Event>> of_user;
  for (const ImportedEvent& row : *events) of_user[row.user].push_back(row.event);
  ASSERT_EQ(of_user.size(), 8u);
  const SynthWorld world(options);
  for (uint64_t i = 0; i < 8; ++i) {
    const SynthUser user = MakeSynthUser(world, options, i);
    EXPECT_EQ(of_user[user.user], user.events);  // the file says all there is
    EXPECT_THAT(user.user, HasSubstr("synthetic"));
  }
  const auto items = ReadItemFile(made / "items.csv", {}, &bad);
  ASSERT_TRUE(items.ok() && bad.empty());
  EXPECT_EQ(*items, world.items());
}

TEST(Synth, EventsKeepTheRulesOfEvents) {
  SynthOptions options;
  options.lengths = *ParseLengths("1000-3000");
  const SynthWorld world(options);
  for (uint64_t i = 0; i < 10; ++i) {
    SynthUser user = MakeSynthUser(world, options, i);
    EXPECT_GE(user.events.size(), 1000u);
    EXPECT_LE(user.events.size(), 3000u + 2);  // the last exposure may bring a click and a dwell time
    std::map<uint64_t, Event> shown;
    for (const Event& event : user.events) {
      ASSERT_TRUE(ValidateEvent(event).ok()) << ValidateEvent(event);
      ASSERT_LE(event.time_us, options.end_us + 7 * 3600 * int64_t{1'000'000});
      if (event.kind == EventKind::kExposure) shown[event.event_id] = event;
    }
    for (const Event& event : user.events) {
      if (event.kind != EventKind::kAction) continue;
      const auto exposure = shown.find(event.exposure_id);
      ASSERT_NE(exposure, shown.end());
      EXPECT_EQ(exposure->second.item_id, event.item_id);
      EXPECT_GT(event.time_us, exposure->second.time_us);
    }
    const std::vector<Event> before = user.events;
    const CanonicalCounts counts = CanonicalHistory(&user.events);
    EXPECT_EQ(counts.duplicates + counts.conflicts, 0u);
    EXPECT_EQ(user.events, before);
  }
}

TEST(Synth, LongHistoriesFitIntoTheirSpan) {
  SynthOptions options;
  options.lengths = *ParseLengths("100000");
  options.span_days_max = 400;
  const SynthUser user = MakeSynthUser(SynthWorld(options), options, 3);
  EXPECT_GE(user.events.size(), 100'000u);
  const double days = static_cast<double>(user.events.back().time_us - user.events.front().time_us) / 86400e6;
  EXPECT_LT(days, 700);
  EXPECT_GT(days, 100);
}

// What the tables claim, measured on made users. Bounds are about three standard errors of this sample.
TEST(Synth, IsFittedToTheRealSet) {
  SynthOptions options;
  options.lengths = *ParseLengths("1500");
  options.span_days_max = 36500;
  const SynthWorld world(options);
  std::map<uint64_t, std::string> first_genre;
  for (const Item& item : world.items()) first_genre[item.item_id] = item.categories[0];
  std::vector<double> within;
  uint64_t gaps = 0, same_second = 0, between = 0, shown = 0, clicked = 0, late = 0;
  std::map<int, std::pair<uint64_t, uint64_t>> repeats;  // distance -> {same genre, pairs}
  std::map<std::string, uint64_t> genres;
  for (uint64_t i = 0; i < 60; ++i) {
    const SynthUser user = MakeSynthUser(world, options, i);
    std::vector<const Event*> exposures;
    std::map<uint64_t, int64_t> time_of;
    for (const Event& event : user.events) {
      if (event.kind == EventKind::kExposure) {
        exposures.push_back(&event);
        time_of[event.event_id] = event.time_us;
      }
    }
    for (const Event& event : user.events) {
      if (event.action != ActionType::kClick) continue;
      ++clicked;
      late += event.time_us - time_of[event.exposure_id] >= 300'000'000;
    }
    shown += exposures.size();
    for (size_t e = 1; e < exposures.size(); ++e) {
      const int64_t gap_sec = (exposures[e]->time_us - exposures[e - 1]->time_us) / 1'000'000;
      ++gaps;
      same_second += gap_sec == 0;
      between += gap_sec > 1800;
      if (gap_sec > 0 && gap_sec <= 1800) within.push_back(static_cast<double>(gap_sec));
    }
    for (const Event* e : exposures) ++genres[first_genre[e->item_id]];
    for (int k : {1, 5, 20, 100}) {
      for (size_t e = static_cast<size_t>(k); e < exposures.size(); ++e) {
        repeats[k].first +=
            first_genre[exposures[e]->item_id] == first_genre[exposures[e - static_cast<size_t>(k)]->item_id];
        ++repeats[k].second;
      }
    }
  }
  const auto share = [](uint64_t part, uint64_t whole) {
    return static_cast<double>(part) / static_cast<double>(whole);
  };
  std::sort(within.begin(), within.end());
  EXPECT_NEAR(share(same_second, gaps), 0.158, 0.02);
  EXPECT_NEAR(share(between, gaps), 0.065, 0.02);
  EXPECT_NEAR(within[within.size() / 2], 13, 1);
  EXPECT_NEAR(within[within.size() * 9 / 10], 79, 4);
  EXPECT_NEAR(share(repeats[1].first, repeats[1].second), 0.312, 0.03);
  EXPECT_NEAR(share(repeats[5].first, repeats[5].second), 0.285, 0.03);
  EXPECT_NEAR(share(repeats[20].first, repeats[20].second), 0.257, 0.03);
  EXPECT_NEAR(share(repeats[100].first, repeats[100].second), 0.228, 0.03);
  EXPECT_NEAR(share(genres["Action"], shown), 0.304, 0.04);
  EXPECT_NEAR(share(clicked, shown), options.click_rate, 0.03);
  EXPECT_NEAR(share(late, clicked), 0.1, 0.02);
}

TEST(Lengths, ParseAndRefuse) {
  EXPECT_EQ(ParseLengths("5")->low, 5u);
  EXPECT_EQ(ParseLengths("5")->high, 5u);
  EXPECT_EQ(ParseLengths("5-70")->high, 70u);
  EXPECT_TRUE(ParseLengths("movielens")->movielens);
  for (const char* bad : {"", "0", "x", "5-", "-5", "7-5", "1-10000001", "5-6-7"})
    EXPECT_FALSE(ParseLengths(bad).ok()) << bad;
}

}  // namespace
}  // namespace backstory
