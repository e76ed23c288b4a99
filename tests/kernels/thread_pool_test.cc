#include "kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace backstory {
namespace {

TEST(ThreadPool, RunsEveryIndexOnce) {
  for (size_t threads : {1u, 2u, 5u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (size_t n : {0u, 1u, 2u, 3u, 100u}) {
      std::vector<std::atomic<int>> counts(n);
      pool.ParallelFor(n, [&](size_t i) { ++counts[i]; });
      for (auto& count : counts) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ManyCallersShareIt) {
  ThreadPool pool(3);
  std::atomic<size_t> total{0};
  std::vector<std::jthread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        std::atomic<size_t> mine{0};
        pool.ParallelFor(7, [&](size_t i) { mine += i + 1; });
        ASSERT_EQ(mine.load(), 28u);
        total += mine;
      }
    });
  }
  callers.clear();
  EXPECT_EQ(total.load(), 4u * 200u * 28u);
}

TEST(ThreadPool, LoopsMayNest) {
  ThreadPool pool(2);
  std::atomic<size_t> total{0};
  pool.ParallelFor(4, [&](size_t) { pool.ParallelFor(5, [&](size_t) { ++total; }); });
  EXPECT_EQ(total.load(), 20u);
}

TEST(ThreadPool, NullPoolRunsInTheCallingThread) {
  size_t total = 0;
  ParallelFor(nullptr, 5, [&](size_t i) { total += i; });
  EXPECT_EQ(total, 10u);
}

}  // namespace
}  // namespace backstory
