// Hit, copy or compute: the decision and the fits behind it, without a card.
#include <gtest/gtest.h>

#include "models/grab/cuda/state_cost.h"

namespace backstory::grab {
namespace {

HistoryWork Whole(size_t rows, size_t first = 0) {
  const size_t from[] = {first, first}, to[] = {rows, rows};
  return WorkOf(from, to);
}

// grab-512, two channels, as an H100 might be: 0.2 ms + 0.16 us a row + what makes 21 ms of 16,384 rows; 50 GB/s.
const StateCosts kCosts{.compute = {2e-4, 1.6e-7, 3e-11}, .copy = {2e-5, 1 / 50e9}};
constexpr double kRowBytes = 8192;

TEST(StateCost, WorkIsWhatIsMissingOverWhatIsBefore) {
  const size_t first[] = {0, 100}, rows[] = {10, 110};
  const HistoryWork work = WorkOf(first, rows);
  EXPECT_EQ(work.rows, 20);
  EXPECT_EQ(work.pairs, 100 + 110.0 * 110 - 100.0 * 100);
  EXPECT_EQ(kCosts.compute.Seconds({}), 0) << "nothing to do costs nothing, not even the fixed part";
  EXPECT_EQ(kCosts.copy.Seconds(0), 0);
}

TEST(StateCost, FitsFindTheConstantsOfExactTimes) {
  std::vector<ComputeSample> samples;
  for (size_t rows : {256, 1024, 4096, 16384}) samples.push_back({Whole(rows), kCosts.compute.Seconds(Whole(rows))});
  const ComputeCost fit = FitCompute(samples);
  EXPECT_NEAR(fit.a, kCosts.compute.a, 1e-9);
  EXPECT_NEAR(fit.b, kCosts.compute.b, 1e-12);
  EXPECT_NEAR(fit.c, kCosts.compute.c, 1e-16);
  const CopySample copies[] = {{1e6, kCosts.copy.Seconds(1e6)}, {64e6, kCosts.copy.Seconds(64e6)}};
  const CopyCost copy = FitCopy(copies);
  EXPECT_NEAR(copy.fixed, kCosts.copy.fixed, 1e-10);
  EXPECT_NEAR(copy.per_byte, kCosts.copy.per_byte, 1e-16);
}

// Measured times are not exact; a fit that bends down would promise negative times beyond its samples.
TEST(StateCost, FitsNeverGoBelowZero) {
  const ComputeSample noisy[] = {{Whole(256), 4e-4}, {Whole(1024), 3.9e-4}, {Whole(4096), 1.4e-3}};
  const ComputeCost fit = FitCompute(noisy);
  EXPECT_GE(fit.a, 0);
  EXPECT_GE(fit.b, 0);
  EXPECT_GE(fit.c, 0);
  for (const ComputeSample& s : noisy) EXPECT_NEAR(fit.Seconds(s.work), s.seconds, 0.35 * s.seconds);
  const ComputeSample one[] = {{Whole(1000), 1e-3}};
  EXPECT_NEAR(FitCompute(one).Seconds(Whole(1000)), 1e-3, 1e-9);
  const CopySample shrinking[] = {{1e6, 2e-3}, {2e6, 1e-3}};
  EXPECT_GE(FitCopy(shrinking).per_byte, 0);
}

StateOffer Evicted(size_t rows) {
  return {.after_card = Whole(rows),
          .on_host = true,
          .after_host = {},
          .host_bytes = 2 * kRowBytes * static_cast<double>(rows)};
}

TEST(StateCost, WhatIsThereIsAHit) {
  const StateChoice hit = ChooseStateSource({}, kCosts, {.copy_bytes = 1e9, .compute_seconds = 1});
  EXPECT_EQ(hit.source, StateSource::kCard);
  EXPECT_EQ(hit.seconds, 0) << "no queue matters";
}

TEST(StateCost, WithoutHostPagesRowsAreComputed) {
  const StateChoice append = ChooseStateSource({.after_card = Whole(4096, 4095)}, kCosts, {.compute_seconds = 0.01});
  EXPECT_EQ(append.source, StateSource::kTokens);
  EXPECT_NEAR(append.seconds, 0.01 + kCosts.compute.Seconds(Whole(4096, 4095)), 1e-12);
}

TEST(StateCost, ShortHistoriesAreCopiedOrComputedAsTheConstantsSay) {
  // With these constants copying wins everywhere: 0.19 ms against 0.38 at 512 rows.
  for (size_t rows : {512, 4096, 16384}) {
    EXPECT_EQ(ChooseStateSource(Evicted(rows), kCosts, {}).source, StateSource::kHost) << rows;
  }
  // At prefill's floor (performance.md section 4) computing wins up to where the square takes over.
  const StateCosts floor{.compute = {0, 4e-8, 4e-12}, .copy = kCosts.copy};
  EXPECT_EQ(ChooseStateSource(Evicted(512), floor, {}).source, StateSource::kTokens);
  EXPECT_EQ(ChooseStateSource(Evicted(4096), floor, {}).source, StateSource::kTokens);
  EXPECT_EQ(ChooseStateSource(Evicted(131072), floor, {}).source, StateSource::kHost);
}

TEST(StateCost, WhatHistoriesReallyTakeCorrectsTheFit) {
  double slowness = 1;
  for (int i = 0; i < 200; ++i) slowness = Corrected(slowness, slowness * 2e-3, 3e-3);
  EXPECT_NEAR(slowness, 1.5, 1e-6);
  EXPECT_NEAR(Corrected(1, 1e-3, 1), 1.3, 1e-12) << "one page fault is no trend";
  EXPECT_NEAR(Corrected(1, 1, 1e-9), 0.925, 1e-12);
  EXPECT_EQ(Corrected(1.2, 0, 1e-3), 1.2);
  EXPECT_NEAR(Times(1.5, kCosts.compute).Seconds(Whole(777)), 1.5 * kCosts.compute.Seconds(Whole(777)), 1e-12);
}

TEST(StateCost, QueuesTurnTheChoice) {
  const StateOffer offer = Evicted(4096);
  EXPECT_EQ(ChooseStateSource(offer, kCosts, {}).source, StateSource::kHost);
  EXPECT_EQ(ChooseStateSource(offer, kCosts, {.copy_bytes = 5e9}).source, StateSource::kTokens);
  EXPECT_EQ(ChooseStateSource(offer, kCosts, {.copy_bytes = 5e9, .compute_seconds = 1}).source, StateSource::kHost);
}

// Pages of the host do not cover the newest rows: those are computed behind the copy, and wait for their turn.
TEST(StateCost, ATailIsComputedEitherWay) {
  StateOffer offer = Evicted(8192);
  offer.after_host = Whole(8192, 8100);
  const StateChoice choice = ChooseStateSource(offer, kCosts, {.compute_seconds = 1e-3});
  EXPECT_EQ(choice.source, StateSource::kHost);
  EXPECT_NEAR(choice.seconds, kCosts.copy.Seconds(offer.host_bytes) + 1e-3 + kCosts.compute.Seconds(offer.after_host),
              1e-12);
  EXPECT_NEAR(choice.other_seconds, 1e-3 + kCosts.compute.Seconds(offer.after_card), 1e-12);
}

}  // namespace
}  // namespace backstory::grab
