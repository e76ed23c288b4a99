// Policies: one situation, one decision.
#include "serving/engine/admission.h"

#include <gtest/gtest.h>

namespace backstory {
namespace {

constexpr int64_t kSecond = 1'000'000;

TEST(TokenBucketTest, GivesItsBurstThenItsRate) {
  TokenBucket bucket(10, 3, 0);
  EXPECT_TRUE(bucket.Take(0));
  EXPECT_TRUE(bucket.Take(0));
  EXPECT_TRUE(bucket.Take(0));
  EXPECT_FALSE(bucket.Take(0));
  EXPECT_EQ(bucket.WaitMs(0), 100);
  EXPECT_FALSE(bucket.Take(kSecond / 10 - 1));
  EXPECT_TRUE(bucket.Take(kSecond / 10));
  // A long pause fills it to the burst and no further.
  EXPECT_EQ(bucket.WaitMs(100 * kSecond), 0);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.Take(100 * kSecond));
  EXPECT_FALSE(bucket.Take(100 * kSecond));
}

TEST(TokenBucketTest, TimeThatRunsBackGivesNothing) {
  TokenBucket bucket(1, 1, 10 * kSecond);
  EXPECT_TRUE(bucket.Take(10 * kSecond));
  EXPECT_FALSE(bucket.Take(0));
  EXPECT_FALSE(bucket.Take(10 * kSecond));
  EXPECT_TRUE(bucket.Take(11 * kSecond));
}

// Latency within three service times is no queueing, however dear a request is.
TEST(GradientLimitTest, AShortQueueKeepsTheLimitUp) {
  GradientLimit limit(10, 200);
  for (int i = 0; i < 100; ++i) limit.Sample(15'000, 5000, limit.limit());
  for (int i = 0; i < 100; ++i) limit.Sample(150'000, 50'000, limit.limit());
  EXPECT_EQ(limit.limit(), 200);
}

// Latency of twenty service times: the limit falls, stays down as long as that lasts, but never below its minimum.
TEST(GradientLimitTest, QueueingShrinksTheLimit) {
  GradientLimit limit(10, 200);
  int64_t last = limit.limit();
  for (int i = 0; i < 40; ++i) {
    limit.Sample(100'000, 5000, limit.limit());
    EXPECT_LE(limit.limit(), last);
    last = limit.limit();
  }
  EXPECT_LT(last, 20);
  for (int i = 0; i < 10'000; ++i) limit.Sample(100'000, 5000, limit.limit());
  EXPECT_LT(limit.limit(), 20);
  EXPECT_GE(limit.limit(), 10);
}

TEST(GradientLimitTest, RecoversWhenLatencyDoes) {
  GradientLimit limit(10, 200);
  for (int i = 0; i < 100; ++i) limit.Sample(100'000, 5000, limit.limit());
  for (int i = 0; i < 200; ++i) limit.Sample(6000, 5000, limit.limit());
  EXPECT_EQ(limit.limit(), 200);
}

// A slow answer while little is in flight (the machine was busy with something else) says nothing about the limit.
TEST(GradientLimitTest, IdleSamplesDoNotCount) {
  GradientLimit limit(10, 200);
  for (int i = 0; i < 100; ++i) limit.Sample(500'000, 5000, 1);
  EXPECT_EQ(limit.limit(), 200);
}

TEST(WaitTest, RefusesWhatWouldWaitForTooMuchOfItsTime) {
  // Ten requests of 10 ms on two workers are 50 ms of waiting; half of 100 ms may be waited.
  EXPECT_FALSE(WaitsTooLong(0, 100'000, 10, 10'000, 2, 0.5));
  EXPECT_TRUE(WaitsTooLong(0, 100'000, 11, 10'000, 2, 0.5));
  EXPECT_TRUE(WaitsTooLong(1, 100'000, 10, 10'000, 2, 0.5));
  EXPECT_FALSE(WaitsTooLong(0, 100'000, 20, 10'000, 2, 1));
  EXPECT_FALSE(WaitsTooLong(0, 100'000, 0, 10'000, 2, 0));  // nobody goes first
  EXPECT_FALSE(WaitsTooLong(0, 100'000, 1000, 0, 2, 0.5));  // nothing has been measured yet
  EXPECT_TRUE(WaitsTooLong(200'000, 100'000, 1, 10'000, 2, 1));
  EXPECT_FALSE(WaitsTooLong(0, INT64_MAX, 1'000'000, 1e9, 1, 0));  // no deadline
}

TEST(DegradeTest, ClimbsAtOnceAndComesDownStepByStep) {
  const DegradeThresholds t{0.5, 0.75};
  using enum DegradeStep;
  struct {
    DegradeStep now;
    double fill;
    DegradeStep next;
  } const cases[] = {
      {kNone, 0.49, kNone},
      {kNone, 0.5, kShortHistory},
      {kNone, 0.75, kShedBatch},
      {kShortHistory, 0.25, kShortHistory},
      {kShortHistory, 0.24, kNone},
      {kShortHistory, 0.75, kShedBatch},
      {kShedBatch, 0.74, kShedBatch},
      {kShedBatch, 0.38, kShedBatch},
      {kShedBatch, 0.37, kShortHistory},
      {kShedBatch, 0.0, kShortHistory},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(NextDegradeStep(c.now, {c.fill}, t), c.next) << static_cast<int>(c.now) << " at " << c.fill;
  }
}

TEST(CannotFinishTest, PassedOrTooClose) {
  EXPECT_TRUE(CannotFinish(100, 100, 0));
  EXPECT_FALSE(CannotFinish(100, 101, 0));
  EXPECT_TRUE(CannotFinish(100, 149, 50));
  EXPECT_FALSE(CannotFinish(100, 150, 50));
  EXPECT_FALSE(CannotFinish(100, INT64_MAX, 50));
}

TEST(PushbackTest, IsTheDrainTimeWithinBounds) {
  EXPECT_EQ(PushbackMs(0, 5000, 2), 10);
  EXPECT_EQ(PushbackMs(100, 5000, 2), 250);
  EXPECT_EQ(PushbackMs(1'000'000, 5000, 2), 10'000);
}

}  // namespace
}  // namespace backstory
