// The Hopper attention kernel against double precision: odd shapes, every page kind, splits, batches. Skipped without a
// GPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "tests/kernels/cuda/attend_problem.h"
#include "tests/kernels/cuda/on_card.h"

namespace backstory::cuda {
namespace {

constexpr uint32_t kPoison = 0x7fc12345;  // a NaN; its halves are bf16 NaNs or odd values

struct Result {
  std::vector<uint32_t> o;  // raw words
  std::vector<float> lse;
  double O(const HostCase& c, int64_t row, int64_t column) const {
    const int64_t at = row * c.width + column;
    if (c.shape.o_is_float) return std::bit_cast<float>(o[at]);
    return FromBf16(static_cast<uint16_t>(o[at / 2] >> (at % 2 * 16)));
  }
};

int Multiprocessors() {
  int count = 0;
  Ok(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// Launches `times` times, poisoning the output before each.
Result RunCase(const HostCase& c, int times = 1) {
  const CaseShape& s = c.shape;
  const AttendPlan plan = PlanAttend(c.problems, {.heads = s.heads,
                                                  .d_h = s.d_h,
                                                  .blocks = Multiprocessors(),
                                                  .split_pages = s.split_pages,
                                                  .item_splits = s.item_splits});
  const OnCard q(c.q), self_k(c.self_k), self_v(c.self_v), k_pool(c.k_pool), v_pool(c.v_pool);
  const OnCard bias(c.bias);
  const OnCard pages(c.pages);
  const OnCard items(plan.items);
  const OnCard parts(std::vector<uint32_t>(PartBytes(plan, s.d_h) / 4, kPoison));
  const OnCard counters(std::vector<uint32_t>(CounterBytes(plan, s.d_h) / 4, 0));
  const std::vector<uint32_t> poison_o(c.total_rows * c.width / (s.o_is_float ? 1 : 2), kPoison);
  const std::vector<float> poison_lse(c.total_rows * s.heads, std::bit_cast<float>(kPoison));
  Result result;
  for (int i = 0; i < times; ++i) {
    const OnCard o(poison_o);
    const OnCard lse(poison_lse);
    const AttendArgs args{.heads = s.heads,
                          .kv_heads = s.kv_heads,
                          .d_h = s.d_h,
                          .scale = c.scale,
                          .total_rows = c.total_rows,
                          .q = q.data(),
                          .q_stride = c.width,
                          .self_k = s.self ? self_k.data() : nullptr,
                          .self_v = s.self ? self_v.data() : nullptr,
                          .self_stride = c.kv_width,
                          .k_pool = k_pool.data(),
                          .v_pool = v_pool.data(),
                          .page_stride = c.kv_width * kPageRows,
                          .pool_pages = c.pool_pages,
                          .bias = bias.data(),
                          .pages = pages.data(),
                          .items = items.data(),
                          .blocks = plan.blocks,
                          .o = o.data(),
                          .o_is_float = s.o_is_float,
                          .o_stride = c.width,
                          .lse = lse.data(),
                          .parts = parts.data(),
                          .counters = counters.data()};
    const char* wrong = Attend(args, nullptr);
    EXPECT_EQ(wrong, nullptr) << wrong;
    Ok(cudaDeviceSynchronize());
    result = {o.Read(), lse.Read()};
  }
  for (uint32_t counter : counters.Read()) EXPECT_EQ(counter, 0u) << "a counter was not reset";
  return result;
}

// The largest |error| / bound over the checked rows; also that nothing was left unwritten and nobody else's row
// touched.
double WorstRatio(const HostCase& c, const Result& got, int rows_checked = 1 << 30) {
  std::vector<bool> owned(c.total_rows, false);
  struct Job {
    const Problem* problem;
    int row, head;
  };
  std::vector<Job> jobs;
  Random random(7);
  for (const Problem& problem : c.problems) {
    for (int row = 0; row < problem.rows; ++row) owned[problem.first_row + row] = true;
    for (int head = 0; head < c.shape.heads; ++head) {
      for (int i = 0; i < std::min(problem.rows, rows_checked); ++i) {
        const bool all = problem.rows <= rows_checked;
        jobs.push_back({&problem, all ? i : static_cast<int>(random.Below(problem.rows)), head});
      }
    }
  }
  for (int64_t row = 0; row < c.total_rows; ++row) {
    const int64_t words = c.width / (c.shape.o_is_float ? 1 : 2);
    for (int64_t w = 0; w < words && !owned[row]; ++w) {
      if (got.o[row * words + w] != kPoison) ADD_FAILURE() << "row " << row << " of nobody was written";
    }
    for (int64_t x = 0; x < c.width && owned[row]; ++x) {
      if (!std::isfinite(got.O(c, row, x))) {
        ADD_FAILURE() << "o[" << row << "][" << x << "] is " << got.O(c, row, x);
        return INFINITY;
      }
    }
  }
  std::vector<double> worst(std::max(1u, std::thread::hardware_concurrency()), 0);
  std::atomic<size_t> at = 0;
  std::vector<std::thread> threads;
  for (double& mine : worst) {
    threads.emplace_back([&] {
      for (size_t i = at++; i < jobs.size(); i = at++) {
        const auto& [problem, row, head] = jobs[i];
        const Answer want = Reference(c, *problem, row, head);
        const int64_t out = problem->first_row + row;
        for (int x = 0; x < c.shape.d_h; ++x) {
          mine = std::max(mine, std::abs(got.O(c, out, head * c.shape.d_h + x) - want.o[x]) / want.o_bound[x]);
        }
        const float lse = got.lse[out * c.shape.heads + head];
        if (std::isinf(want.lse)) {
          if (lse != -INFINITY) mine = INFINITY;
        } else {
          mine = std::max(mine, std::abs(lse - want.lse) / want.lse_bound);
          if (std::isnan(lse)) mine = INFINITY;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return *std::max_element(worst.begin(), worst.end());
}

class CudaAttend : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0, major = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
    Ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    if (major != 9) GTEST_SKIP() << "no GPU of compute capability 9.0";
  }
};

void ExpectRight(const CaseShape& shape, uint64_t seed, int rows_checked = 1 << 30) {
  const HostCase c = MakeCase(shape, seed);
  const double worst = WorstRatio(c, RunCase(c), rows_checked);
  EXPECT_LT(worst, 1);
  std::string what;
  for (const UserShape& user : shape.users)
    what += std::to_string(user.rows) + "x" + std::to_string(user.history) + " ";
  printf("  d_h %d, %s: worst error %.3f of the bound\n", shape.d_h, what.substr(0, 60).c_str(), worst);
}

TEST_F(CudaAttend, SmallShapes) {
  for (int d_h : {64, 128}) {
    for (int history : {0, 1, 127, 128, 129, 300}) {
      for (int rows : {1, 7, 64, 129}) ExpectRight({.users = {{rows, history}}, .d_h = d_h}, rows * 1000 + history);
    }
  }
}

TEST_F(CudaAttend, OddShapes) {
  for (int d_h : {64, 128}) {
    for (int history : {0, 1, 127, 128, 129, 4096}) {
      for (int rows : {1, 7, 64, 255, 256, 1024}) {
        ExpectRight({.users = {{rows, history}}, .d_h = d_h}, rows * 1000 + history, 40);
      }
    }
  }
}

TEST_F(CudaAttend, UsersOfDifferentLengths) {
  for (int d_h : {64, 128}) {
    const std::vector<UserShape> users = {{100, 0}, {1, 5000}, {300, 129}, {64, 2048}, {7, 1}, {130, 700}};
    for (int split_pages : {0, 1, 3, 1000}) {
      for (int item_splits : {0, 1, 3}) {
        ExpectRight(
            {.users = users, .d_h = d_h, .split_pages = split_pages, .item_splits = item_splits, .short_pages = true},
            split_pages, 60);
      }
    }
    ExpectRight({.users = users, .heads = 4, .kv_heads = 2, .d_h = d_h, .o_is_float = false}, 11, 60);
    ExpectRight({.users = users, .heads = 4, .kv_heads = 1, .d_h = d_h, .self = false}, 12, 60);
    ExpectRight({.users = users, .d_h = d_h, .bias = false}, 13, 60);
    ExpectRight({.users = users, .d_h = d_h, .magnitude = 4}, 14, 60);
  }
}

TEST_F(CudaAttend, EmptyHistoryIsTheSelfKey) {
  HostCase c = MakeCase({.users = {{70, 0}}}, 3);
  const Result with = RunCase(c);
  for (int row = 0; row < 70; ++row) {
    for (int x = 0; x < c.width; ++x) {
      const int64_t out = c.problems[0].first_row + row;
      ASSERT_EQ(with.O(c, out, x), FromBf16(c.self_v[out * c.width + x]));
    }
  }
  c.shape.self = false;
  const Result without = RunCase(c);
  for (int row = 0; row < 70; ++row) {
    ASSERT_EQ(without.O(c, c.problems[0].first_row + row, 5), 0);
    ASSERT_EQ(without.lse[(c.problems[0].first_row + row) * 2], -INFINITY);
  }
}

// A row's bits depend on its own inputs and page list alone: alone or among others, first or last in its tile.
TEST_F(CudaAttend, BitsDoNotDependOnTheBatch) {
  for (int d_h : {64, 128}) {
    HostCase c = MakeCase({.users = {{200, 4000}, {1024, 900}, {500, 16000}, {333, 4000}}, .d_h = d_h}, 21);
    const Result together = RunCase(c);
    for (size_t i = 0; i < c.problems.size(); ++i) {
      HostCase alone = c;
      Problem& problem = alone.problems[0];
      problem = c.problems[i];
      const int skip = problem.rows / 3 / 4 * 4;  // other rows in the tile too
      problem.first_row += skip;
      problem.rows -= skip;
      problem.bias += skip;
      alone.problems.resize(1);
      const Result single = RunCase(alone);
      const int64_t from = problem.first_row * c.width, count = problem.rows * c.width;
      EXPECT_EQ(std::memcmp(&together.o[from], &single.o[from], count * 4), 0) << "user " << i;
    }
  }
}

// Nor on how the splits are dealt out.
TEST_F(CudaAttend, BitsDoNotDependOnTheSchedule) {
  for (int d_h : {64, 128}) {
    HostCase c = MakeCase({.users = {{256, 4096}, {70, 3000}}, .d_h = d_h, .split_pages = 3, .item_splits = 1}, 22);
    const Result single = RunCase(c), thrice = RunCase(c, 3);
    EXPECT_EQ(std::memcmp(single.o.data(), thrice.o.data(), single.o.size() * 4), 0);
    for (int item_splits : {2, 3, 100}) {
      c.shape.item_splits = item_splits;
      const Result got = RunCase(c);
      EXPECT_EQ(std::memcmp(single.o.data(), got.o.data(), single.o.size() * 4), 0) << item_splits;
      for (size_t i = 0; i < got.lse.size(); ++i) {
        EXPECT_EQ(std::bit_cast<uint32_t>(single.lse[i]), std::bit_cast<uint32_t>(got.lse[i])) << item_splits;
      }
    }
  }
}

// The bound is worth something: small damage to the problem exceeds it.
TEST_F(CudaAttend, DamageExceedsTheBound) {
  const HostCase c = MakeCase({.users = {{64, 1000}}}, 23);
  const Result got = RunCase(c);
  ASSERT_LT(WorstRatio(c, got), 1);
  HostCase damaged = c;
  for (PageEntry& entry : damaged.pages) entry.boundary += entry.boundary > 1 ? -1 : 0;
  EXPECT_GT(WorstRatio(damaged, got), 1) << "a boundary off by one row";
  damaged = c;
  damaged.pages.back().valid -= 1;
  EXPECT_GT(WorstRatio(damaged, got), 1) << "a row too few";
  damaged = c;
  damaged.shape.self = false;
  EXPECT_GT(WorstRatio(damaged, got), 1) << "no self key";
}

}  // namespace
}  // namespace backstory::cuda
