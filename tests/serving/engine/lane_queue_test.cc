// Batches of a model with lanes. Runs under the thread sanitizer.
#include "serving/engine/lane_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::ElementsAre;

class LaneQueueTest : public ::testing::Test {
 protected:
  LaneQueueTest() { model_->lane_count = 1; }
  std::unique_ptr<RankJob> Job(uint64_t id, size_t candidates = 10, int64_t deadline_us = INT64_MAX) {
    auto job = std::make_unique<RankJob>();
    job->id = id;
    job->deadline_us = deadline_us;
    job->rank.served = served_;
    job->rank.query.candidates.item_ids.resize(candidates);
    return job;
  }
  static std::vector<uint64_t> Ids(const std::vector<std::unique_ptr<RankJob>>& jobs) {
    std::vector<uint64_t> ids;
    for (const auto& job : jobs) ids.push_back(job->id);
    return ids;
  }
  LaneQueue::Batch Take(int64_t now_us = 0) { return queue_.Take(served_.get(), now_us); }

  const std::shared_ptr<FakeModel> model_ = std::make_shared<FakeModel>(FakeConfig());
  const std::shared_ptr<const ServedModel> served_ = Served(model_);
  LaneQueue queue_{3, 100};
};

TEST_F(LaneQueueTest, WhatWaitsGoesTogetherUpToTheLimits) {
  EXPECT_TRUE(queue_.Put(Job(1)));
  EXPECT_THAT(Ids(Take().jobs), ElementsAre(1));
  for (uint64_t id = 2; id <= 4; ++id) EXPECT_FALSE(queue_.Put(Job(id)));
  EXPECT_THAT(Ids(Take().jobs), ElementsAre(2, 3, 4));  // three requests
  EXPECT_FALSE(queue_.Put(Job(5)));
  EXPECT_FALSE(queue_.Put(Job(6, 80)));
  EXPECT_FALSE(queue_.Put(Job(7, 500)));
  EXPECT_THAT(Ids(Take().jobs), ElementsAre(5, 6));  // 90 candidates
  EXPECT_THAT(Ids(Take().jobs), ElementsAre(7));     // alone, whatever its size
  EXPECT_TRUE(Take().empty());
  EXPECT_TRUE(queue_.Put(Job(9)));  // the lane is free again
}

TEST_F(LaneQueueTest, AsManyScoreAsThereAreLanes) {
  model_->lane_count = 2;
  EXPECT_TRUE(queue_.Put(Job(1)));
  EXPECT_TRUE(queue_.Put(Job(2)));
  EXPECT_FALSE(queue_.Put(Job(3)));
}

TEST_F(LaneQueueTest, VersionsHaveLanesOfTheirOwn) {
  EXPECT_TRUE(queue_.Put(Job(1)));
  const auto other = Served(model_, "2");
  auto job = Job(2);
  job->rank.served = other;
  EXPECT_TRUE(queue_.Put(std::move(job)));
  EXPECT_THAT(Ids(queue_.Take(other.get(), 0).jobs), ElementsAre(2));
  EXPECT_THAT(Ids(Take().jobs), ElementsAre(1));
}

TEST_F(LaneQueueTest, WhoseDeadlineHasPassedIsNotScored) {
  EXPECT_TRUE(queue_.Put(Job(1, 10, 50)));
  EXPECT_FALSE(queue_.Put(Job(2, 10, 51)));
  const LaneQueue::Batch batch = Take(50);
  EXPECT_THAT(Ids(batch.jobs), ElementsAre(2));
  EXPECT_THAT(Ids(batch.expired), ElementsAre(1));
}

TEST_F(LaneQueueTest, NobodyPreparesFarAhead) {
  for (const size_t candidates : {size_t{10}, size_t{50}}) {  // three requests, or 100 candidates, are a pass
    EXPECT_TRUE(queue_.Put(Job(1)));
    EXPECT_EQ(Take().jobs.size(), 1u);
    const size_t fit = candidates == 10 ? 3 : 2;
    for (uint64_t id = 2; id < 2 + fit; ++id) EXPECT_FALSE(queue_.Put(Job(id, candidates)));
    std::atomic<bool> entered{false};
    std::thread next([&] {
      EXPECT_FALSE(queue_.Put(Job(9, candidates)));
      entered = true;
    });
    EXPECT_FALSE(entered);
    EXPECT_EQ(Take().jobs.size(), fit);
    next.join();
    EXPECT_THAT(Ids(Take().jobs), ElementsAre(9));
    EXPECT_TRUE(Take().empty());
  }
}

// All that come while the only lane is busy are one call of the model, whole, and their answers are those of single
// calls.
TEST(LanesTest, RequestsThatWaitForALaneAreOneCall) {
  auto model = std::make_shared<FakeModel>(FakeConfig());
  model->lane_count = 1;
  Harness harness({{"1", Served(model)}}, {{"micro_batch_candidates", "1"}}, 4);
  model->scores = 0;
  model->segments_scored = 0;
  std::mutex busy;
  model->on_score = [&](auto) { std::lock_guard lock(busy); };
  std::atomic<int> answered{0};
  std::vector<absl::StatusOr<RankReply>> replies(7, absl::UnknownError("none"));
  const auto send = [&](size_t i) {
    harness.engine->Rank(Query("user" + std::to_string(i), {i + 1, 2, 3}, kNow),
                         [&, i](absl::StatusOr<RankReply> reply) {
                           replies[i] = std::move(reply);
                           ++answered;
                         });
  };
  busy.lock();
  send(0);
  while (model->scores == 0) std::this_thread::yield();
  for (size_t i = 1; i < 7; ++i) send(i);
  // The other three workers prepare all six: none of them waits for the lane.
  const auto prepared = [&] { return harness.metrics.Value("backstory_stage_seconds{stage=\"features\"}"); };
  while (prepared() < 7) std::this_thread::yield();
  while (harness.engine->Stats().queued > 0) std::this_thread::yield();
  busy.unlock();
  while (answered < 7) std::this_thread::yield();
  EXPECT_LE(model->scores, 5);  // the first, and at most one more for each worker that was still on its way; alone: 7
  EXPECT_EQ(model->segments_scored, 7u);
  Harness single(&harness, {{"1", Served(std::make_shared<FakeModel>(FakeConfig()))}});
  for (size_t i = 0; i < 7; ++i) {
    ASSERT_TRUE(replies[i].ok()) << replies[i].status();
    const auto expected = single.Rank(Query("user" + std::to_string(i), {i + 1, 2, 3}, kNow));
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(replies[i]->scores[0].raw_logit, expected->scores[0].raw_logit);
  }
}

// Appends between requests of few users: prepared requests pin states that others want to extend.
TEST(LanesTest, NeitherWaitsForTheOther) {
  auto model = std::make_shared<FakeModel>(FakeConfig());
  model->lane_count = 2;
  std::atomic<int> inside{0}, most{0};
  model->on_score = [&](auto) {
    const int now = ++inside;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    --inside;
  };
  Harness harness({{"1", Served(model)}},
                  {{"queue_requests", "10000"}, {"concurrency_limit_max", "10000"}, {"concurrency_adaptive", "false"}},
                  6);
  constexpr int kCallers = 3, kCalls = 200;
  std::atomic<int> answered{0};
  std::atomic<uint64_t> next_event{1};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kCallers; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < kCalls; ++i) {
        const std::string user = "user" + std::to_string(random() % 3);
        const Event event = Shown(next_event++, kNow - static_cast<int64_t>(random() % 1000) * kSecond, random() % 50);
        EXPECT_TRUE(harness.engine->Append({"default", user}, std::span(&event, 1), Durability::kSynced).ok());
        harness.engine->Rank(Query(user), [&](absl::StatusOr<RankReply> reply) {
          EXPECT_TRUE(reply.ok()) << reply.status();
          ++answered;
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(harness.engine->Drain(60 * kSecond).ok());
  EXPECT_EQ(answered, kCallers * kCalls);
  EXPECT_LE(most, 2);
}

}  // namespace
}  // namespace backstory::testing
