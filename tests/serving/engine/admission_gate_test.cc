// Who is refused at the gate for the wait that is expected, and who is not.
#include "serving/engine/admission_gate.h"

#include <gtest/gtest.h>

#include "serving/engine/metrics.h"
#include "serving/engine/shed.h"

namespace backstory {
namespace {

constexpr int64_t kMs = 1000;

class AdmissionGateTest : public testing::Test {
 protected:
  absl::Status Enter(size_t ahead, int64_t deadline_us = 100 * kMs) {
    const absl::StatusOr<int64_t> in_flight = gate_.Enter(JobClass::kOnline, ahead, deadline_us);
    if (in_flight.ok()) gate_.Leave(JobClass::kOnline);
    return in_flight.status();
  }
  void Served(int requests, int64_t service_us, int64_t together = 1) {
    for (int i = 0; i < requests; ++i) gate_.Sample(service_us, service_us, together, 0);
  }

  ManualClock clock_;
  MemoryMetrics metrics_;
  AdmissionGate gate_{ParameterSet(), {}, /*threads=*/2, &clock_, &metrics_};
};

TEST_F(AdmissionGateTest, RefusesWhatWouldWaitForOverHalfOfItsTime) {
  EXPECT_TRUE(Enter(100).ok()) << "nothing was measured yet";
  Served(200, 10 * kMs);
  EXPECT_TRUE(Enter(9).ok());
  const absl::Status refused = Enter(11);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(refused.message().find("11 requests go first"), std::string::npos) << refused;
  EXPECT_NE(refused.message().find("queue_wait_fraction 0.5"), std::string::npos) << refused;
  EXPECT_EQ(RetryPushbackMs(refused), 55) << "what the queue takes to drain";
  EXPECT_EQ(metrics_.Value("backstory_shed_total{reason=\"wait\"}"), 1);
  EXPECT_TRUE(Enter(11, INT64_MAX).ok()) << "no deadline";
  clock_.Advance(60 * kMs);
  EXPECT_FALSE(Enter(5).ok()) << "40 ms are left, 25 would be waited";
}

TEST_F(AdmissionGateTest, ABatchSharesItsTime) {
  Served(200, 80 * kMs, /*together=*/8);  // 10 ms each
  EXPECT_TRUE(Enter(9).ok());
  EXPECT_FALSE(Enter(11).ok());
}

TEST_F(AdmissionGateTest, AFewColdUsersDoNotMakeEverybodyLookSlow) {
  Served(200, 2 * kMs);
  Served(5, 500 * kMs);  // an arithmetic mean would now be 115 ms a request
  EXPECT_TRUE(Enter(4).ok());
  Served(200, 500 * kMs);  // but if all are slow, that is what a request costs
  EXPECT_FALSE(Enter(1).ok());
}

TEST_F(AdmissionGateTest, HopelessWorkIsNotStartedButTriedNowAndThen) {
  EXPECT_FALSE(gate_.Hopeless(1)) << "nothing was measured yet";
  Served(1, 5'000 * kMs);  // the first user of the day, cold, with a patient caller
  int started = 0;
  for (int i = 0; i < 200; ++i) started += gate_.Hopeless(clock_.MonotonicMicros() + 1'000 * kMs) ? 0 : 1;
  EXPECT_GE(started, 1) << "else nobody with a second of patience is ever served again";
  EXPECT_LE(started, 20);
  Served(1, 5 * kMs);
  EXPECT_FALSE(gate_.Hopeless(clock_.MonotonicMicros() + 1'000 * kMs));
  for (int i = 0; i < 200; ++i) EXPECT_TRUE(gate_.Hopeless(clock_.MonotonicMicros())) << "its deadline has passed";
}

}  // namespace
}  // namespace backstory
