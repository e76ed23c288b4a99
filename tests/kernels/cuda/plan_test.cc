// The schedule of the Hopper attention kernel: a pure function, tested without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/attend.h"

namespace backstory::cuda {
namespace {

std::vector<Problem> Problems(const std::vector<std::pair<int, int>>& rows_and_pages) {
  std::vector<Problem> problems;
  int32_t row = 0, page = 0;
  for (const auto& [rows, pages] : rows_and_pages) {
    problems.push_back({.first_row = row, .rows = rows, .first_page = page, .pages = pages, .bias_stride = rows});
    row += rows + 3;
    page += pages;
  }
  return problems;
}

// The items each block does, by following `next` from its first.
std::vector<std::vector<WorkItem>> Walk(const AttendPlan& plan) {
  std::vector<std::vector<WorkItem>> blocks(plan.blocks);
  size_t seen = 0;
  for (int32_t block = 0; block < plan.blocks; ++block) {
    for (int32_t i = block;; i = plan.items[i].next) {
      blocks[block].push_back(plan.items[i]);
      ++seen;
      if (plan.items[i].next == 0) break;
      EXPECT_GE(plan.items[i].next, plan.blocks);
    }
  }
  EXPECT_EQ(seen, plan.items.size());
  return blocks;
}

const std::vector<std::vector<std::pair<int, int>>> kLoads = {{{1, 0}},
                                                              {{1, 1}},
                                                              {{1024, 32}},
                                                              {{256, 32}, {256, 32}},
                                                              {{100, 0}, {1, 500}, {300, 2}, {64, 16}, {7, 1}},
                                                              std::vector<std::pair<int, int>>(16, {1024, 32}),
                                                              {}};

TEST(AttendPlan, EveryPageOfEveryTileOnce) {
  for (const auto& load : kLoads) {
    for (int item_splits : {0, 1, 3}) {
      const std::vector<Problem> problems = Problems(load);
      const AttendPlan plan = PlanAttend(problems, {.heads = 3, .blocks = 132, .item_splits = item_splits});
      std::map<std::tuple<int, int>, std::vector<WorkItem>> tiles;  // by first row and head
      for (const auto& block : Walk(plan)) {
        for (const WorkItem& item : block) {
          if (item.rows > 0) tiles[{item.row, item.head}].push_back(item);
        }
      }
      size_t expected = 0;
      for (const Problem& p : problems) {
        for (int row = 0; row < p.rows; row += plan.tile_rows) {
          for (int head = 0; head < 3; ++head) {
            auto& items = tiles[{p.first_row + row, head}];
            ++expected;
            std::sort(items.begin(), items.end(), [](auto& a, auto& b) { return a.split_begin < b.split_begin; });
            int page = p.first_page, split = 0;
            for (const WorkItem& item : items) {
              EXPECT_EQ(item.rows, std::min(plan.tile_rows, p.rows - row));
              EXPECT_EQ(item.page_begin, page);
              EXPECT_EQ(item.split_begin, split);
              EXPECT_EQ(item.tile_items, static_cast<int>(items.size()));
              EXPECT_EQ(item.first_splits, items[0].split_end);
              page = item.page_end;
              split = item.split_end;
            }
            EXPECT_EQ(page, p.first_page + p.pages);
            ASSERT_FALSE(items.empty());
            EXPECT_EQ(split, items[0].splits);
          }
        }
      }
      EXPECT_EQ(tiles.size(), expected);
    }
  }
}

// What decides a row's bits is the same alone and in company.
TEST(AttendPlan, SplitsDependOnThePagesAlone) {
  const auto splits = [](const std::vector<std::pair<int, int>>& load) {
    std::set<std::tuple<int, int>> seen;
    for (const WorkItem& item : PlanAttend(Problems(load), {.heads = 2}).items) {
      if (item.rows > 0 && item.row < load[0].first) seen.insert({item.splits, item.split_pages});
    }
    return seen;
  };
  const auto alone = splits({{300, 100}});
  EXPECT_EQ(alone.size(), 1u);
  EXPECT_EQ(splits({{300, 100}, {1000, 7}, {5, 900}}), alone);
  EXPECT_EQ(splits({{1000, 100}}), alone);
}

TEST(AttendPlan, BlocksAreBalanced) {
  for (const auto& load : kLoads) {
    const AttendPlan plan = PlanAttend(Problems(load), {.heads = 4});
    int longest = 0, most = 0, total = 0;
    for (const auto& block : Walk(plan)) {
      int pages = 0;
      for (const WorkItem& item : block) {
        longest = std::max(longest, item.page_end - item.page_begin + 1);
        pages += item.rows > 0 ? item.page_end - item.page_begin + 1 : 0;
      }
      most = std::max(most, pages);
      total += pages;
    }
    EXPECT_LE(most, total / plan.blocks + longest);
  }
}

// Items that wait for each other must all be running: one to a block, and only where all are so.
TEST(AttendPlan, ItemsWaitOnlyWhereAllRunAtOnce) {
  for (const auto& load : kLoads) {
    const AttendPlan plan = PlanAttend(Problems(load), {.heads = 4});
    for (const WorkItem& item : plan.items) {
      if (item.together) {
        EXPECT_EQ(plan.items.size(), static_cast<size_t>(plan.blocks));
      }
      EXPECT_LE(item.splits, 8);  // the kernel's room for merging weights
    }
  }
}

TEST(AttendPlan, PartsAndCountersOfTilesAreTheirOwn) {
  for (const auto& load : kLoads) {
    const AttendPlan plan = PlanAttend(Problems(load), {.heads = 4, .item_splits = 1});
    std::map<int, std::tuple<int, int>> owner;
    for (const WorkItem& item : plan.items) {
      if (item.rows == 0 || item.tile_items == 1) continue;
      EXPECT_LT(item.tile_counter, plan.tile_counters);
      for (int part = 0; part < item.splits; ++part) {
        EXPECT_LT(item.first_part + part, plan.parts);
        const auto [at, fresh] = owner.insert({item.first_part + part, {item.row, item.head}});
        EXPECT_TRUE(fresh || at->second == std::make_tuple(item.row, item.head));
      }
    }
    EXPECT_EQ(owner.size(), static_cast<size_t>(plan.parts));
  }
}

TEST(CudaPlan, SplitsFillTheBlocksButNoMore) {
  EXPECT_EQ(SplitPages(8), 4);
  EXPECT_EQ(SplitPages(128), 32);
  EXPECT_EQ(SplitPages(8, 16), 1);      // 256 candidates, one user: eight splits
  EXPECT_EQ(SplitPages(32, 64), 16);    // 1,024 candidates: two
  EXPECT_EQ(SplitPages(32, 512), 32);   // eight users: one
  EXPECT_EQ(SplitPages(128, 512), 32);  // of a long history more, so that it does not hold up the others
  EXPECT_EQ(SplitPages(0, 16), 1);
}

}  // namespace
}  // namespace backstory::cuda
