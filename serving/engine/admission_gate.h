// The engine's front gate: quotas, drain, the adaptive limit, and the degrade ladder, acting on the policies of
// admission.h. Thread-safe.
#ifndef BACKSTORY_SERVING_ENGINE_ADMISSION_GATE_H_
#define BACKSTORY_SERVING_ENGINE_ADMISSION_GATE_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/admission.h"
#include "serving/engine/engine.h"
#include "serving/engine/request_queue.h"

namespace backstory {

class AdmissionGate {
 public:
  AdmissionGate(const ParameterSet& parameters, const std::vector<NamespaceQuota>& quotas, int threads,
                const Clock* clock, Metrics* metrics);

  // UNAVAILABLE while draining; RESOURCE_EXHAUSTED naming the namespace's quota, with pushback.
  absl::Status CheckQuota(const std::string& ns);
  // Takes a slot: in flight from now until Leave. Returns how many others are in flight. UNAVAILABLE (draining, limit,
  // `ahead` requests that go first would take too long, BATCH and SHADOW under pressure), with pushback.
  absl::StatusOr<int64_t> Enter(JobClass job_class, size_t ahead, int64_t deadline_us);
  void Leave(JobClass job_class);
  // The status of a job that found the queue full or was displaced from it.
  absl::Status QueueFull(std::string_view reason, size_t waiting);

  // Looks at the queue and moves the ladder; returns the step.
  DegradeStep Observe(size_t waiting, size_t capacity);
  DegradeStep step() const;
  // A finished request: its whole latency, the part that a worker spent on it and on the `together` - 1 others of its
  // batch, and how many were in flight at its start.
  void Sample(int64_t latency_us, int64_t service_us, int64_t together, int64_t in_flight);
  // Whether a job is not worth starting (CannotFinish). One in 16 of those whose deadline has not passed is started all
  // the same: if none were, a few slow requests at first would refuse everybody with less patience for ever.
  bool Hopeless(int64_t deadline_us);

  void StartDrain();
  bool draining() const;
  // True once nothing is in flight; false after `timeout_us`.
  bool WaitIdle(int64_t timeout_us);
  int64_t in_flight() const;
  int64_t limit() const;

 private:
  absl::Status Shed(const std::string& reason, const std::string& message, size_t waiting);

  const Clock* const clock_;
  Metrics* const metrics_;
  const int threads_;
  const bool adaptive_;
  const int64_t limit_max_;
  const double wait_fraction_;
  const double batch_fraction_;
  const DegradeThresholds thresholds_;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  // All guarded by mutex_.
  std::map<std::string, TokenBucket> buckets_;
  GradientLimit gradient_;
  DegradeStep step_ = DegradeStep::kNone;
  bool draining_ = false;
  int64_t in_flight_ = 0;
  int64_t batch_in_flight_ = 0;
  // Of a worker's time, a request. The typical one is a geometric mean: a few cold users must not make everyone else's
  // expected wait look long.
  double mean_cost_us_ = 0;
  double typical_cost_us_ = 0;
  double fastest_service_us_ = 0;
  uint64_t hopeless_ = 0;  // jobs found so before their deadline
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_ADMISSION_GATE_H_
