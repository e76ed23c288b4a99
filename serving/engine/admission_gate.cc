#include "serving/engine/admission_gate.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "serving/engine/shed.h"

namespace backstory {
namespace {

constexpr uint64_t kHopelessTried = 16;

bool IsBatch(JobClass job_class) { return job_class == JobClass::kBatch || job_class == JobClass::kShadow; }

}  // namespace

AdmissionGate::AdmissionGate(const ParameterSet& parameters, const std::vector<NamespaceQuota>& quotas, int threads,
                             const Clock* clock, Metrics* metrics)
    : clock_(clock),
      metrics_(metrics),
      threads_(threads),
      adaptive_(parameters.Bool("concurrency_adaptive")),
      limit_max_(parameters.Int("concurrency_limit_max")),
      wait_fraction_(parameters.Real("queue_wait_fraction")),
      batch_fraction_(parameters.Real("batch_limit_fraction")),
      thresholds_{parameters.Real("degrade_queue_fill"), parameters.Real("shed_batch_queue_fill")},
      gradient_(parameters.Int("concurrency_limit_min"), parameters.Int("concurrency_limit_max")) {
  for (const NamespaceQuota& quota : quotas) {
    const double burst = quota.burst > 0 ? quota.burst : quota.requests_per_s;
    buckets_.emplace(quota.ns, TokenBucket(quota.requests_per_s, burst, clock->MonotonicMicros()));
  }
}

absl::Status AdmissionGate::Shed(const std::string& reason, const std::string& message, size_t waiting) {
  metrics_->GetCounter("backstory_shed_total", "Requests refused, by reason", {{"reason", reason}})->Add();
  return ShedStatus(message, PushbackMs(waiting, static_cast<int64_t>(mean_cost_us_), threads_));
}

absl::Status AdmissionGate::CheckQuota(const std::string& ns) {
  std::lock_guard lock(mutex_);
  if (draining_) return Shed("draining", "server is draining", 0);
  const auto bucket = buckets_.find(ns);
  const int64_t now_us = clock_->MonotonicMicros();
  if (bucket == buckets_.end() || bucket->second.Take(now_us)) return absl::OkStatus();
  metrics_->GetCounter("backstory_shed_total", "Requests refused, by reason", {{"reason", "quota"}})->Add();
  return WithPushback(absl::ResourceExhaustedError(absl::StrCat("quota of namespace ", ns, " is used up")),
                      std::max<int64_t>(1, bucket->second.WaitMs(now_us)));
}

absl::StatusOr<int64_t> AdmissionGate::Enter(JobClass job_class, size_t ahead, int64_t deadline_us) {
  std::lock_guard lock(mutex_);
  if (draining_) return Shed("draining", "server is draining", ahead);
  const int64_t limit = adaptive_ ? gradient_.limit() : limit_max_;
  if (in_flight_ >= limit) {
    return Shed("limit", absl::StrCat("overloaded: ", in_flight_, " requests in flight, the limit is ", limit), ahead);
  }
  if (WaitsTooLong(clock_->MonotonicMicros(), deadline_us, ahead, typical_cost_us_, threads_, wait_fraction_)) {
    return Shed("wait",
                absl::StrCat("overloaded: ", ahead, " requests go first, longer than queue_wait_fraction ",
                             wait_fraction_, " of the time to the deadline"),
                ahead);
  }
  if (IsBatch(job_class)) {
    if (step_ == DegradeStep::kShedBatch) return Shed("batch", "overloaded: BATCH and SHADOW are shed", ahead);
    const int64_t share = std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(limit) * batch_fraction_));
    if (batch_in_flight_ >= share) {
      return Shed("batch", absl::StrCat("BATCH and SHADOW have their share of ", share, " requests in flight"), ahead);
    }
    ++batch_in_flight_;
  }
  return in_flight_++;
}

void AdmissionGate::Leave(JobClass job_class) {
  std::lock_guard lock(mutex_);
  assert(in_flight_ > 0);
  if (IsBatch(job_class)) --batch_in_flight_;
  if (--in_flight_ == 0) idle_.notify_all();
}

absl::Status AdmissionGate::QueueFull(std::string_view reason, size_t waiting) {
  std::lock_guard lock(mutex_);
  return Shed(std::string(reason), absl::StrCat("overloaded: the queue of ", waiting, " requests is full"), waiting);
}

DegradeStep AdmissionGate::Observe(size_t waiting, size_t capacity) {
  std::lock_guard lock(mutex_);
  Pressure pressure;
  // What may wait is bounded by the queue and by the limit of requests in flight, whichever is lower.
  const int64_t limit = adaptive_ ? gradient_.limit() : limit_max_;
  const int64_t bound = std::max<int64_t>(1, std::min<int64_t>(static_cast<int64_t>(capacity), limit));
  pressure.queue_fill = static_cast<double>(waiting) / static_cast<double>(bound);
  const DegradeStep next = NextDegradeStep(step_, pressure, thresholds_);
  if (next != step_) {
    metrics_->GetGauge("backstory_degrade_step", "0 full quality, 1 shorter histories, 2 BATCH and SHADOW shed")
        ->Set(static_cast<double>(next));
  }
  return step_ = next;
}

DegradeStep AdmissionGate::step() const {
  std::lock_guard lock(mutex_);
  return step_;
}

void AdmissionGate::Sample(int64_t latency_us, int64_t service_us, int64_t together, int64_t in_flight) {
  std::lock_guard lock(mutex_);
  gradient_.Sample(latency_us, service_us, in_flight);
  const double service = static_cast<double>(service_us);
  const double cost = service / static_cast<double>(std::max<int64_t>(1, together));
  mean_cost_us_ = mean_cost_us_ == 0 ? cost : mean_cost_us_ * 0.95 + cost * 0.05;
  const double positive = std::max(1.0, cost);
  typical_cost_us_ = typical_cost_us_ == 0 ? positive : typical_cost_us_ * std::pow(positive / typical_cost_us_, 0.05);
  // Rises slowly when nothing quick is seen, so that one lucky sample does not keep hopeless work alive for ever.
  fastest_service_us_ = fastest_service_us_ == 0 ? service : std::min(service, fastest_service_us_ * 1.01);
}

bool AdmissionGate::Hopeless(int64_t deadline_us) {
  std::lock_guard lock(mutex_);
  const int64_t now_us = clock_->MonotonicMicros();
  if (!CannotFinish(now_us, deadline_us, static_cast<int64_t>(fastest_service_us_))) return false;
  return now_us >= deadline_us || ++hopeless_ % kHopelessTried != 0;
}

void AdmissionGate::StartDrain() {
  std::lock_guard lock(mutex_);
  draining_ = true;
}

bool AdmissionGate::draining() const {
  std::lock_guard lock(mutex_);
  return draining_;
}

bool AdmissionGate::WaitIdle(int64_t timeout_us) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::chrono::microseconds(timeout_us), [this] { return in_flight_ == 0; });
}

int64_t AdmissionGate::in_flight() const {
  std::lock_guard lock(mutex_);
  return in_flight_;
}

int64_t AdmissionGate::limit() const {
  std::lock_guard lock(mutex_);
  return adaptive_ ? gradient_.limit() : limit_max_;
}

}  // namespace backstory
