#include "serving/engine/admission.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace backstory {
namespace {

constexpr double kRounding = 1e-9;  // a token that lacks only this is a whole one

}  // namespace

TokenBucket::TokenBucket(double rate_per_s, double burst, int64_t now_us)
    : rate_per_s_(rate_per_s), burst_(std::max(1.0, burst)), tokens_(burst_), filled_us_(now_us) {
  assert(rate_per_s > 0);
}

double TokenBucket::Filled(int64_t now_us) const {
  const double elapsed_s = static_cast<double>(std::max<int64_t>(0, now_us - filled_us_)) * 1e-6;
  return std::min(burst_, tokens_ + elapsed_s * rate_per_s_);
}

bool TokenBucket::Take(int64_t now_us) {
  tokens_ = Filled(now_us);
  filled_us_ = std::max(filled_us_, now_us);
  if (tokens_ < 1 - kRounding) return false;
  tokens_ = std::max(0.0, tokens_ - 1);
  return true;
}

int64_t TokenBucket::WaitMs(int64_t now_us) const {
  const double missing = 1 - Filled(now_us);
  return missing <= kRounding ? 0 : static_cast<int64_t>(std::ceil(missing / rate_per_s_ * 1e3));
}

GradientLimit::GradientLimit(int64_t min, int64_t max)
    : min_(static_cast<double>(min)), max_(static_cast<double>(std::max(min, max))), limit_(max_) {}

void GradientLimit::Sample(int64_t latency_us, int64_t service_us, int64_t in_flight) {
  const auto average = [](double sample, double* mean) {
    *mean = *mean == 0 ? sample : *mean + (sample - *mean) * kAverage;
  };
  average(std::max<double>(1, static_cast<double>(latency_us)), &latency_us_);
  average(std::max<double>(1, static_cast<double>(service_us)), &service_us_);
  if (static_cast<double>(in_flight) < limit_ / 2) return;
  const double gradient = std::clamp(kTolerance * service_us_ / latency_us_, 0.5, 1.0);
  const double wanted = limit_ * gradient + std::sqrt(limit_);
  limit_ = std::clamp(limit_ * (1 - kSmoothing) + wanted * kSmoothing, min_, max_);
}

DegradeStep NextDegradeStep(DegradeStep now, const Pressure& pressure, const DegradeThresholds& thresholds) {
  if (pressure.queue_fill >= thresholds.shed_batch) return DegradeStep::kShedBatch;
  if (now == DegradeStep::kShedBatch && pressure.queue_fill >= thresholds.shed_batch / 2) return now;
  if (pressure.queue_fill >= thresholds.short_history) return DegradeStep::kShortHistory;
  if (now == DegradeStep::kShedBatch) return DegradeStep::kShortHistory;
  if (now == DegradeStep::kShortHistory && pressure.queue_fill >= thresholds.short_history / 2) return now;
  return DegradeStep::kNone;
}

bool CannotFinish(int64_t now_us, int64_t deadline_us, int64_t fastest_service_us) {
  return now_us >= deadline_us || deadline_us - now_us < fastest_service_us;
}

bool WaitsTooLong(int64_t now_us, int64_t deadline_us, size_t ahead, double cost_us, int threads, double fraction) {
  if (deadline_us == INT64_MAX) return false;
  const double wait_us = static_cast<double>(ahead) * cost_us / std::max(1, threads);
  return wait_us > fraction * static_cast<double>(std::max<int64_t>(0, deadline_us - now_us));
}

int64_t PushbackMs(size_t waiting, int64_t mean_service_us, int threads) {
  const double drain_us = static_cast<double>(waiting) * static_cast<double>(mean_service_us) / std::max(1, threads);
  return std::clamp<int64_t>(static_cast<int64_t>(drain_us / 1e3), 10, 10'000);
}

}  // namespace backstory
