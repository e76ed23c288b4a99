#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <utility>

#include "kernels/cuda/attend.h"

namespace backstory::cuda {
namespace {

constexpr int kWarpsOfTile = 8;  // 16 query rows each

constexpr int kSplitsMax = 8;  // of a tile: their merging weights fit in shared memory at d_h 64

// What an item costs beside its pages, in pages: loading Q, filling the pipeline, writing O.
constexpr int kItemPages = 1;

int Cost(const WorkItem& item) { return item.page_end - item.page_begin + kItemPages; }

int SplitPagesOf(const Problem& problem, const PlanOptions& options) {
  const int wanted =
      options.split_pages > 0 ? options.split_pages : SplitPages(problem.pages, options.tiles, options.blocks);
  return std::max(wanted, (problem.pages + kSplitsMax - 1) / kSplitsMax);
}
int Splits(int pages, int split_pages) { return std::max(1, (pages + split_pages - 1) / split_pages); }
int Tiles(const Problem& problem, int tile_rows) { return (problem.rows + tile_rows - 1) / tile_rows; }

// Splits per item that let the blocks finish soonest, by the longest block if all items were alike, the average and
// half an item otherwise. Fewest items among equals.
int ItemSplits(std::span<const Problem> problems, const PlanOptions& options, int tile_rows) {
  if (options.item_splits > 0) return options.item_splits;
  int most = 1;
  for (const Problem& p : problems) most = std::max(most, Splits(p.pages, SplitPagesOf(p, options)));
  int best = most;
  double best_pages = 0;
  for (int size = most; size >= 1; --size) {
    int64_t items = 0, pages = 0;
    int longest = 0, shortest = INT32_MAX;
    for (const Problem& p : problems) {
      const int split_pages = SplitPagesOf(p, options), splits = Splits(p.pages, split_pages);
      const int64_t tiles = int64_t{options.heads} * Tiles(p, tile_rows), per_tile = (splits + size - 1) / size;
      items += tiles * per_tile;
      pages += tiles * (p.pages + per_tile * kItemPages);
      const int cost = std::min(size * split_pages, p.pages) + kItemPages;
      longest = std::max(longest, cost);
      shortest = std::min(shortest, splits % size == 0 || splits <= size ? cost : 0);
    }
    const double waves = static_cast<double>(items) / options.blocks;
    const double average = static_cast<double>(pages) / options.blocks;
    const double expected = longest == shortest ? std::ceil(waves) * longest
                                                : std::max(average + longest / 2.0, static_cast<double>(longest));
    if (size == most || expected < best_pages) best = size, best_pages = expected;
  }
  return best;
}

void AppendItems(const Problem& problem, int item_splits, const PlanOptions& options, AttendPlan* plan) {
  const int split_pages = SplitPagesOf(problem, options), splits = Splits(problem.pages, split_pages);
  const int tiles = Tiles(problem, plan->tile_rows);
  const bool shared = splits > item_splits;
  for (int head = 0; head < options.heads; ++head) {
    for (int split = 0; split < splits; split += item_splits) {
      for (int tile = 0; tile < tiles; ++tile) {
        const int32_t row = tile * plan->tile_rows, at = head * tiles + tile, page = split * split_pages;
        const int end = std::min(split + item_splits, splits);
        plan->items.push_back({.bias = problem.bias + int64_t{head} * problem.segments * problem.bias_stride + row,
                               .bias_stride = problem.bias_stride,
                               .self_segment = problem.self_segment,
                               .row = problem.first_row + row,
                               .rows = std::min(plan->tile_rows, problem.rows - row),
                               .head = head,
                               .page_begin = problem.first_page + page,
                               .page_end = problem.first_page + std::min(end * split_pages, problem.pages),
                               .split_pages = static_cast<int16_t>(std::min(split_pages, INT16_MAX)),
                               .split_begin = static_cast<int16_t>(split),
                               .split_end = static_cast<int16_t>(end),
                               .splits = static_cast<int16_t>(splits),
                               .first_splits = static_cast<int16_t>(std::min(item_splits, splits)),
                               .tile_item = static_cast<int16_t>(split / item_splits),
                               .tile_items = static_cast<int16_t>((splits + item_splits - 1) / item_splits),
                               .first_part = shared ? plan->parts + at * splits : 0,
                               .tile_counter = shared ? plan->tile_counters + at : 0});
      }
    }
  }
  if (shared) {
    plan->parts += options.heads * tiles * splits;
    plan->tile_counters += options.heads * tiles;
  }
}

// Longest first onto the least loaded block; blocks without work get an item of no rows.
std::vector<WorkItem> Schedule(const std::vector<WorkItem>& items, int blocks) {
  std::vector<int32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return Cost(items[a]) > Cost(items[b]); });
  using Load = std::pair<int64_t, int32_t>;  // pages so far, block
  std::priority_queue<Load, std::vector<Load>, std::greater<Load>> least;
  for (int32_t block = 0; block < blocks; ++block) least.push({0, block});
  std::vector<WorkItem> scheduled(blocks);
  std::vector<int32_t> last(blocks);
  std::iota(last.begin(), last.end(), 0);
  for (int32_t item : order) {
    const auto [load, block] = least.top();
    least.pop();
    least.push({load + Cost(items[item]), block});
    if (scheduled[last[block]].rows == 0) {
      scheduled[block] = items[item];
      continue;
    }
    scheduled[last[block]].next = static_cast<int32_t>(scheduled.size());
    last[block] = static_cast<int32_t>(scheduled.size());
    scheduled.push_back(items[item]);
  }
  return scheduled;
}

}  // namespace

int TileRows(int) { return 16 * kWarpsOfTile; }

int SplitPages(int pages, int tiles, int blocks) {
  constexpr int kPagesMax = 32;
  if (tiles <= 0) return std::max(4, (pages + 3) / 4);
  const int splits = std::clamp(blocks / tiles, 1, kSplitsMax);
  return std::clamp((pages + splits - 1) / splits, 1, kPagesMax);
}

AttendPlan PlanAttend(std::span<const Problem> problems, const PlanOptions& options) {
  AttendPlan plan;
  plan.blocks = options.blocks;
  plan.tile_rows = TileRows(options.d_h);
  const int item_splits = ItemSplits(problems, options, plan.tile_rows);
  for (const Problem& problem : problems) AppendItems(problem, item_splits, options, &plan);
  if (plan.items.size() <= static_cast<size_t>(options.blocks)) {
    for (WorkItem& item : plan.items) item.together = 1;
  }
  plan.items = Schedule(plan.items, options.blocks);
  return plan;
}

size_t PartBytes(const AttendPlan& plan, int d_h) {
  return static_cast<size_t>(plan.parts) * plan.tile_rows * (d_h + 8) * sizeof(float);
}

size_t CounterBytes(const AttendPlan& plan, int) {
  return static_cast<size_t>(plan.tile_counters) * kWarpsOfTile * sizeof(uint32_t);
}

}  // namespace backstory::cuda
