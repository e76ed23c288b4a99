// Masks, ranks and buckets as runs against the conventions written out row by row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "features/token.h"
#include "models/grab/key_runs.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

using Visible = std::map<size_t, std::pair<uint32_t, uint32_t>>;  // row -> rank, bucket

Visible Unroll(std::span<const KeyRun> runs) {
  Visible visible;
  size_t end = 0;
  for (const KeyRun& run : runs) {
    EXPECT_GE(run.begin, end) << "runs must be ascending and disjoint";
    EXPECT_LT(run.begin, run.end);
    for (uint32_t j = run.begin; j < run.end; ++j) visible[j] = {run.rank - (j - run.begin), run.time};
    end = run.end;
  }
  return visible;
}

uint32_t Formula(int64_t age_us, int n_time) {
  const double seconds = std::max(1.0, static_cast<double>(age_us) / 1e6);
  return static_cast<uint32_t>(std::min(n_time - 1.0, std::floor(std::log(seconds) / 0.301)));
}

TEST(TimeBuckets, AgreeWithTheFormulaAtEveryEdge) {
  for (int n_time : {2, 30, 64, 200}) {
    const TimeBuckets buckets(n_time);
    EXPECT_EQ(buckets.Bucket(0), 0u);
    EXPECT_EQ(buckets.Bucket(1'351'209), 0u);
    EXPECT_EQ(buckets.Bucket(1'351'210), Formula(1'351'210, n_time));
    for (uint32_t b = 1; b < buckets.count() && buckets.edge(b) != INT64_MAX; ++b) {
      for (int64_t age : {buckets.edge(b) - 1, buckets.edge(b), buckets.edge(b) + 1}) {
        EXPECT_EQ(buckets.Bucket(age), Formula(age, n_time)) << age;
      }
    }
    Random random(1);
    for (int i = 0; i < 2000; ++i) {
      const int64_t age = static_cast<int64_t>(std::exp(std::min(random.Normal() * 9 + 12, 43.0f)));  // below 2^63
      EXPECT_EQ(buckets.Bucket(age), Formula(age, n_time)) << age;
    }
    EXPECT_EQ(buckets.Bucket(INT64_MAX), Formula(INT64_MAX, n_time));
  }
}

TEST(WindowUs, SaturatesInsteadOfOverflowing) {
  EXPECT_EQ(WindowUs(3), 3'000'000);
  EXPECT_EQ(WindowUs(1'000'000'000'000), 1'000'000'000'000'000'000);
  EXPECT_EQ(WindowUs(INT64_MAX), INT64_MAX);
}

struct History {
  ChannelRows rows;
  std::vector<int32_t> previous;
  RowIndex index() const { return {rows.time_us, rows.tie, previous}; }
};

History Make(size_t n, uint64_t seed) {
  Random random(seed);
  History h{RandomHistory(SmallConfig({}), n, &random), {}};
  for (size_t i = 0; i < n; ++i) {
    int32_t at = static_cast<int32_t>(i) - 1;
    while (at >= 0 && h.rows.tie[static_cast<size_t>(at)] != h.rows.tie[i]) --at;
    h.previous.push_back(at);
  }
  return h;
}

const Windows kWindows[] = {
    {}, {.rows = 7}, {.age_us = 400'000'000}, {.rows = 30, .age_us = 90'000'000'000}, {.rows = 1}};

TEST(HistoryRuns, AreTheMaskRowByRow) {
  constexpr int kTime = 30;
  const TimeBuckets buckets(kTime);
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const History h = Make(150, seed);
    for (const Windows& w : kWindows) {
      for (auto [first, last] : {std::pair<size_t, size_t>{0, 150}, {149, 150}, {64, 96}, {10, 10}}) {
        const RunLists lists = HistoryRuns(h.index(), first, last, w, buckets);
        ASSERT_EQ(lists.of_row.size(), last - first);
        for (size_t i = first; i < last; ++i) {
          Visible want;
          for (size_t j = 0; j <= i; ++j) {
            const int64_t age = h.rows.time_us[i] - h.rows.time_us[j];
            if (j != i && (h.rows.tie[i] == h.rows.tie[j] || static_cast<int64_t>(i - j) > w.rows || age > w.age_us))
              continue;
            want[j] = {static_cast<uint32_t>(i - j), Formula(age, kTime)};
          }
          ASSERT_EQ(Unroll(lists.of_row[i - first]), want) << "row " << i;
        }
      }
    }
  }
}

TEST(CandidateRuns, AreTheMaskRowByRow) {
  constexpr int kTime = 30;
  const TimeBuckets buckets(kTime);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const size_t n = random.Below(160);
    const History h = Make(n, seed);
    for (const Windows& w : kWindows) {
      const size_t visible = random.Below(n + 1), first = random.Below(visible + 1) / 2;
      const int64_t now =
          n == 0 ? 5 : h.rows.time_us[random.Below(n)] + static_cast<int64_t>(random.Below(3)) * 1'000'000'000;
      const int64_t tie = n == 0 || random.Chance(0.3) ? CandidateTokens::kNoTie : h.rows.tie[random.Below(n)];
      Visible want;
      uint32_t rank = 0;
      for (size_t j = visible; j-- > first;) {
        const int64_t age = now - h.rows.time_us[j];
        if (age <= 0 || h.rows.tie[j] == tie || age > w.age_us) continue;
        if (static_cast<int64_t>(++rank) > w.rows) break;
        want[j] = {rank, Formula(age, kTime)};
      }
      ASSERT_EQ(Unroll(CandidateRuns(h.index(), first, visible, now, tie, w, buckets)), want);
    }
  }
}

}  // namespace
}  // namespace backstory::grab
