// Which pages a candidate sees, as entries and folded rows: against the plain list of visible rows, their ranks and time
// buckets.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "models/grab/cuda/visible_pages.h"

namespace backstory::grab {
namespace {

struct Seen {
  uint32_t position = 0, time = 0;
  bool operator==(const Seen&) const = default;
};

TEST(CudaPages, EveryVisibleRowIsSeenOnceWithItsPositionAndTimeBucket) {
  std::mt19937_64 random(1);
  const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const TimeBuckets buckets(40);
  size_t direct = 0, split = 0, folded = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const size_t rows = below(1500), n_pos = 1 + below(trial % 3 == 0 ? 4 : 300);
    std::vector<int64_t> time, tie;
    std::vector<int32_t> previous(rows, -1);
    int64_t now = 1'000'000'000;
    const int64_t gap = 1 + static_cast<int64_t>(below(trial % 2 == 0 ? 100 : 2'000'000'000));
    for (size_t i = 0; i < rows; ++i) {
      time.push_back(now += static_cast<int64_t>(below(static_cast<size_t>(gap))));
      tie.push_back(static_cast<int64_t>(i % 97 == 5 ? 1'000'000 : i));
    }
    const RowIndex index{time, tie, previous};
    const size_t visible = rows == 0 ? 0 : rows - below(std::min<size_t>(rows, 200)), first = below(visible / 3 + 1);
    const Windows windows{trial % 5 == 0 ? int64_t{300} : INT64_MAX, INT64_MAX};
    const auto runs =
        CandidateRuns(index, first, visible, now + 1, trial % 4 == 0 ? 1'000'000 : -1, windows, buckets);
    std::map<uint32_t, Seen> want;
    for (const KeyRun& run : runs) {
      for (uint32_t j = run.begin; j < run.end; ++j) {
        want[j] = {std::min<uint32_t>(run.rank - (j - run.begin), static_cast<uint32_t>(n_pos) - 1), run.time};
      }
    }
    const VisiblePages pages = FindVisiblePages(runs, rows, n_pos);
    std::map<uint32_t, Seen> got;
    for (const cuda::PageEntry& e : pages.direct) {
      const size_t begin = static_cast<size_t>(e.page) * 128;
      ASSERT_EQ(static_cast<size_t>(e.valid), std::min<size_t>(128, rows - begin)) << "no row may hide in the page";
      for (int j = 0; j < e.valid; ++j) {
        const int segment = j < e.boundary ? e.segment_below : e.segment_above;
        ASSERT_TRUE(got.try_emplace(static_cast<uint32_t>(begin) + j,
                                    Seen{static_cast<uint32_t>(n_pos) - 1, static_cast<uint32_t>(segment)})
                        .second);
      }
      ++direct;
      split += e.boundary > 0;
    }
    for (const VisiblePages::Fold& f : pages.folded) {
      ASSERT_TRUE(got.try_emplace(f.row, Seen{f.position, f.time}).second);
    }
    folded += pages.folded.size();
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [row, seen] : want) ASSERT_EQ(got.at(row), seen) << "row " << row;
    ASSERT_TRUE(std::is_sorted(pages.folded.begin(), pages.folded.end(),
                               [](const auto& a, const auto& b) { return a.row < b.row; }));
  }
  EXPECT_GT(direct, 100u);
  EXPECT_GT(split, 10u);
  EXPECT_GT(folded, 1000u);
}

// What DESIGN section 5 promises of an even event rate.
TEST(CudaPages, AnEvenHistoryFoldsLittle) {
  const TimeBuckets buckets(64);
  std::vector<int64_t> time, tie;
  for (int64_t i = 0; i < 4096; ++i) time.push_back(i * 3'600'000'000), tie.push_back(i);
  const std::vector<int32_t> previous(4096, -1);
  const auto runs = CandidateRuns({time, tie, previous}, 0, 4096, time.back() + 1, -1, {}, buckets);
  const VisiblePages pages = FindVisiblePages(runs, 4096, 256);
  EXPECT_EQ(pages.pages(), 32u);
  EXPECT_LE(pages.folded.size(), 4u * 128);
}

}  // namespace
}  // namespace backstory::grab
