#include "serving/engine/request_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace backstory {
namespace {

std::unique_ptr<Job> Make(uint64_t id, JobClass job_class, int64_t deadline_us = INT64_MAX, const void* key = nullptr) {
  auto job = std::make_unique<Job>();
  job->id = id;
  job->job_class = job_class;
  job->deadline_us = deadline_us;
  job->batch_key = key;
  return job;
}

bool Push(RequestQueue* queue, std::unique_ptr<Job> job) { return queue->Push(job).accepted; }

uint64_t PopId(RequestQueue* queue, int64_t now_us = 0) {
  const RequestQueue::PopResult result = queue->TryPopAny(now_us);
  return result.job == nullptr ? 0 : result.job->id;
}

TEST(RequestQueueTest, ServesClassesInOrderAndEachInTurn) {
  RequestQueue queue(100, 100);
  const JobClass order[] = {JobClass::kRefresh, JobClass::kShadow, JobClass::kBatch, JobClass::kPrefetch,
                            JobClass::kOnline};
  uint64_t id = 0;
  for (JobClass job_class : order) {
    Push(&queue, Make(++id, job_class));
    Push(&queue, Make(++id, job_class));
  }
  std::vector<uint64_t> served;
  while (const uint64_t next = PopId(&queue)) served.push_back(next);
  EXPECT_EQ(served, (std::vector<uint64_t>{9, 10, 7, 8, 5, 6, 3, 4, 1, 2}));
}

// Full: ONLINE takes the place of the newest of the least important; equals and betters stay.
TEST(RequestQueueTest, AFullQueueDisplacesTheLessImportant) {
  RequestQueue queue(4, 0);
  Push(&queue, Make(1, JobClass::kOnline));
  Push(&queue, Make(2, JobClass::kBatch));
  Push(&queue, Make(3, JobClass::kShadow));
  Push(&queue, Make(4, JobClass::kShadow));
  std::vector<uint64_t> displaced;
  for (uint64_t id = 5; id <= 7; ++id) {
    auto job = Make(id, JobClass::kOnline);
    RequestQueue::PushResult result = queue.Push(job);
    ASSERT_TRUE(result.accepted);
    displaced.push_back(result.displaced->id);
  }
  EXPECT_EQ(displaced, (std::vector<uint64_t>{4, 3, 2}));
  auto job = Make(8, JobClass::kOnline);
  RequestQueue::PushResult result = queue.Push(job);
  EXPECT_FALSE(result.accepted);
  EXPECT_EQ(result.displaced, nullptr);
  ASSERT_NE(job, nullptr);  // still the caller's
  EXPECT_EQ(job->id, 8u);
  EXPECT_EQ(queue.Waiting(), 4u);
}

TEST(RequestQueueTest, RefreshesHaveTheirOwnBound) {
  RequestQueue queue(1, 2);
  EXPECT_TRUE(Push(&queue, Make(1, JobClass::kRefresh)));
  EXPECT_TRUE(Push(&queue, Make(2, JobClass::kRefresh)));
  EXPECT_FALSE(Push(&queue, Make(3, JobClass::kRefresh)));
  EXPECT_TRUE(Push(&queue, Make(4, JobClass::kOnline)));
  EXPECT_EQ(queue.Waiting(), 1u);
  EXPECT_EQ(queue.WaitingRefreshes(), 2u);
}

TEST(RequestQueueTest, ExpiredJobsComeBackApart) {
  RequestQueue queue(10, 0);
  Push(&queue, Make(1, JobClass::kOnline, 100));
  Push(&queue, Make(2, JobClass::kOnline, 101));
  Push(&queue, Make(3, JobClass::kBatch, 50));
  RequestQueue::PopResult result = queue.TryPopAny(100);
  ASSERT_NE(result.job, nullptr);
  EXPECT_EQ(result.job->id, 2u);
  ASSERT_EQ(result.expired.size(), 1u);
  EXPECT_EQ(result.expired[0]->id, 1u);
  result = queue.TryPopAny(100);
  EXPECT_EQ(result.job, nullptr);
  ASSERT_EQ(result.expired.size(), 1u);
}

// Over half full the newest goes first: the old ones are likely to be late already.
TEST(RequestQueueTest, NewestFirstUnderPressure) {
  RequestQueue queue(4, 0);
  Push(&queue, Make(1, JobClass::kOnline));
  Push(&queue, Make(2, JobClass::kOnline));
  EXPECT_EQ(PopId(&queue), 1u);  // half full: in order
  Push(&queue, Make(3, JobClass::kOnline));
  Push(&queue, Make(4, JobClass::kOnline));
  EXPECT_EQ(PopId(&queue), 4u);
  EXPECT_EQ(PopId(&queue), 2u);
}

TEST(RequestQueueTest, BatchesTakeOnlyTheNextOfTheirKey) {
  RequestQueue queue(100, 0);
  const int a = 0, b = 0;
  Push(&queue, Make(1, JobClass::kOnline, INT64_MAX, &a));
  Push(&queue, Make(2, JobClass::kOnline, INT64_MAX, &b));
  Push(&queue, Make(3, JobClass::kOnline, INT64_MAX, &a));
  EXPECT_EQ(queue.TryPop(&b, 0).job, nullptr);
  EXPECT_EQ(queue.TryPop(&a, 0).job->id, 1u);
  EXPECT_EQ(queue.TryPop(&a, 0).job, nullptr);  // 2 is next and of another key
  EXPECT_EQ(queue.TryPop(&b, 0).job->id, 2u);
}

TEST(RequestQueueTest, RemoveTakesAWaitingJobBack) {
  RequestQueue queue(10, 0);
  Push(&queue, Make(1, JobClass::kOnline));
  Push(&queue, Make(2, JobClass::kBatch));
  EXPECT_EQ(queue.Remove(2)->id, 2u);
  EXPECT_EQ(queue.Remove(2), nullptr);
  EXPECT_EQ(queue.Waiting(), 1u);
}

TEST(RequestQueueTest, CloseHandsBackWhatWaitsAndRefusesMore) {
  RequestQueue queue(10, 10);
  Push(&queue, Make(1, JobClass::kOnline));
  Push(&queue, Make(2, JobClass::kRefresh));
  EXPECT_EQ(queue.Close().size(), 2u);
  EXPECT_FALSE(Push(&queue, Make(3, JobClass::kOnline)));
  EXPECT_TRUE(queue.Pop([] { return int64_t{0}; }).closed);
}

// Many producers, many consumers, some cancelling: every job ends in exactly one place.
TEST(RequestQueueTest, NothingIsLostOrDoubledAcrossThreads) {
  RequestQueue queue(64, 64);
  constexpr uint64_t kPerThread = 2000;
  std::atomic<uint64_t> consumed{0}, refused{0}, removed{0}, displaced{0};
  std::vector<std::thread> consumers, producers;
  for (int i = 0; i < 2; ++i) {
    consumers.emplace_back([&] {
      while (true) {
        RequestQueue::PopResult next = queue.Pop([] { return int64_t{0}; });
        if (next.job != nullptr) ++consumed;
        if (next.closed) return;
      }
    });
  }
  for (uint64_t t = 0; t < 3; ++t) {
    producers.emplace_back([&, t] {
      for (uint64_t i = 0; i < kPerThread; ++i) {
        const uint64_t id = t * kPerThread + i + 1;
        auto job = Make(id, static_cast<JobClass>(i % kJobClasses));
        RequestQueue::PushResult result = queue.Push(job);
        if (result.displaced != nullptr) ++displaced;
        if (!result.accepted) {
          ++refused;
        } else if (i % 7 == 0 && queue.Remove(id) != nullptr) {
          ++removed;
        }
      }
    });
  }
  for (std::thread& thread : producers) thread.join();
  while (queue.Waiting() + queue.WaitingRefreshes() > 0) std::this_thread::yield();
  const uint64_t left = queue.Close().size();
  for (std::thread& thread : consumers) thread.join();
  EXPECT_EQ(consumed + refused + removed + displaced + left, 3 * kPerThread);
  EXPECT_GT(consumed, 0u);
}

TEST(RequestQueueTest, AJobPutBackIsNextOfItsClassAndNotReadyIfLong) {
  RequestQueue queue(10, 1);
  for (uint64_t id : {1, 2, 3}) {
    auto job = Make(id, JobClass::kOnline, INT64_MAX, this);
    ASSERT_TRUE(queue.Push(job).accepted);
  }
  auto batch = Make(4, JobClass::kBatch, INT64_MAX, this);
  ASSERT_TRUE(queue.Push(batch).accepted);
  auto alone = Make(5, JobClass::kOnline);
  ASSERT_TRUE(queue.Push(alone).accepted);
  std::unique_ptr<Job> first = queue.TryPopReady(0).job;
  ASSERT_EQ(first->id, 1u);
  ASSERT_TRUE(queue.PutBack(first));
  first = queue.TryPopReady(0).job;
  ASSERT_EQ(first->id, 1u);
  first->is_long = true;
  ASSERT_TRUE(queue.PutBack(first));
  EXPECT_EQ(queue.TryPopReady(0).job->id, 2u);
  EXPECT_EQ(queue.TryPopReady(0).job->id, 3u);
  EXPECT_EQ(queue.TryPopReady(0).job, nullptr) << "neither BATCH nor what shares no batch is for a worker amid other work";
  EXPECT_EQ(queue.Waiting(), 3u);
  first = queue.TryPopAny(0).job;
  EXPECT_EQ(first->id, 1u);
  queue.Close();
  EXPECT_FALSE(queue.PutBack(first));
  EXPECT_EQ(first->id, 1u);
}

}  // namespace
}  // namespace backstory
