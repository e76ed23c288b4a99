// The load generator's own arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <random>
#include <thread>

#include "serving/cli/latency_histogram.h"
#include "serving/cli/open_loop.h"

namespace backstory {
namespace {

TEST(LatencyHistogram, QuantilesAreWithinOnePercentOfExactOnes) {
  const uint64_t seed = 20'240'101;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  LatencyHistogram histogram;
  std::vector<int64_t> values;
  for (int i = 0; i < 20'000; ++i) {
    const auto us = static_cast<int64_t>(std::exp(static_cast<double>(random() % 20'000) / 1'000.0));
    values.push_back(us);
    histogram.Add(us);
  }
  std::sort(values.begin(), values.end());
  for (double q : {0.001, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(values.size())));
    const auto exact = static_cast<double>(values[rank - 1]);
    const auto got = static_cast<double>(histogram.QuantileUs(q));
    EXPECT_GE(got, exact);
    EXPECT_LE(got, exact * 1.01 + 1) << "quantile " << q;
  }
  EXPECT_EQ(histogram.max_us(), values.back());
}

TEST(LatencyHistogram, EdgesAndMerge) {
  LatencyHistogram empty;
  EXPECT_EQ(empty.QuantileUs(0.5), 0);
  LatencyHistogram a, b;
  a.Add(-5);
  a.Add(127);
  b.Add(128);
  b.Add(int64_t{1} << 40);
  a.Merge(b);
  EXPECT_EQ(a.count(), 4u);
  EXPECT_EQ(a.QuantileUs(0.25), 0);
  EXPECT_EQ(a.QuantileUs(0.5), 127);
  EXPECT_EQ(a.QuantileUs(0.75), 128);
  EXPECT_EQ(a.max_us(), int64_t{1} << 40);
}

TEST(OpenLoop, ArrivalsAreAPoissonProcess) {
  const auto arrivals = PoissonArrivalsUs(1'000, 100, 7);
  EXPECT_EQ(arrivals, PoissonArrivalsUs(1'000, 100, 7));
  EXPECT_NE(arrivals, PoissonArrivalsUs(1'000, 100, 8));
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  // 100,000 expected, standard deviation 316; gaps have mean and deviation 1 ms.
  EXPECT_NEAR(static_cast<double>(arrivals.size()), 100'000, 5 * 316);
  double sum = 0, squares = 0;
  for (size_t i = 1; i < arrivals.size(); ++i) {
    const double gap = static_cast<double>(arrivals[i] - arrivals[i - 1]);
    sum += gap;
    squares += gap * gap;
  }
  const double n = static_cast<double>(arrivals.size() - 1), mean = sum / n;
  EXPECT_NEAR(mean, 1'000, 20);
  EXPECT_NEAR(std::sqrt(squares / n - mean * mean), 1'000, 30);
}

// A server that stalls once: a closed loop would record one slow request, an open loop all that should have started.
TEST(OpenLoop, AStallIsChargedToEveryRequestThatShouldHaveStarted) {
  std::vector<std::function<void(std::string)>> held;
  size_t answered_at = 0;
  const LoadResult result = RunOpenLoop(1'000, 0.2, 0, 3, 10'000, [&](size_t i, std::function<void(std::string)> done) {
    held.push_back(std::move(done));
    answered_at = i;
    if (i + 1 == PoissonArrivalsUs(1'000, 0.2, 3).size()) {
      for (auto& each : held) each("");
    }
  });
  EXPECT_EQ(result.ok, answered_at + 1);
  // Arrivals lie evenly in 200 ms and all are answered at its end, so the median waited for about half of it.
  EXPECT_GT(result.latency.QuantileUs(0.5), 60'000);
}

// Five requests are held until all arrivals are over (or later: the sums below do not depend on it).
TEST(OpenLoop, OverflowAndErrorsAreCounted) {
  std::mutex mutex;
  bool released = false;
  std::vector<std::function<void(std::string)>> held;
  std::thread releaser;
  const LoadResult result = RunOpenLoop(2'000, 0.1, 0, 1, 5, [&](size_t, std::function<void(std::string)> done) {
    std::unique_lock lock(mutex);
    if (released) {
      lock.unlock();
      return done("UNAVAILABLE");
    }
    held.push_back(std::move(done));
    if (held.size() < 5) return;
    releaser = std::thread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      std::lock_guard own(mutex);
      released = true;
      for (auto& each : held) each("UNAVAILABLE");
    });
  });
  releaser.join();
  EXPECT_EQ(result.arrivals, PoissonArrivalsUs(2'000, 0.1, 1).size());
  EXPECT_EQ(result.ok, 0u);
  EXPECT_GE(result.errors.at("UNAVAILABLE"), 5u);
  EXPECT_GE(result.errors.at("generator overflow"), 1u);
  EXPECT_EQ(result.errors.at("UNAVAILABLE") + result.errors.at("generator overflow"), result.arrivals);
}

// A server whose p99 crosses the objective at 130 requests a second.
TEST(Knee, IsFoundByDoublingAndNarrowing) {
  const auto measure = [](double rate) {
    LoadResult result;
    result.arrivals = result.ok = 100;
    for (int i = 0; i < 100; ++i) result.latency.Add(rate <= 130 ? 1'000 : 90'000);
    return result;
  };
  const KneeReport report = FindKnee(10, 10'000, 50, 4, measure);
  EXPECT_GE(report.knee_per_s, 120);
  EXPECT_LE(report.knee_per_s, 130);
  EXPECT_EQ(FindKnee(1'000, 10'000, 50, 4, measure).knee_per_s, 0);
  const auto failing = [&](double rate) {
    LoadResult result = measure(rate);
    result.ok = 98;
    return result;
  };
  EXPECT_EQ(FindKnee(10, 10'000, 50, 4, failing).knee_per_s, 0);
}

}  // namespace
}  // namespace backstory
