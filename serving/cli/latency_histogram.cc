#include "serving/cli/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace backstory {

LatencyHistogram::LatencyHistogram() : buckets_(static_cast<size_t>(kPowersMax - kSubBits + 1) << kSubBits) {}

size_t LatencyHistogram::BucketOf(uint64_t us) {
  if (us < (uint64_t{1} << kSubBits)) return us;
  const int power = std::min(static_cast<int>(std::bit_width(us)) - 1, kPowersMax - 1);
  const int shift = power - kSubBits;
  const uint64_t sub = std::min<uint64_t>((us >> shift) - (uint64_t{1} << kSubBits), (uint64_t{1} << kSubBits) - 1);
  return (static_cast<size_t>(shift + 1) << kSubBits) + sub;
}

int64_t LatencyHistogram::UpperBoundOf(size_t bucket) {
  const size_t group = bucket >> kSubBits, sub = bucket & ((size_t{1} << kSubBits) - 1);
  if (group == 0) return static_cast<int64_t>(sub);
  const int shift = static_cast<int>(group) - 1;
  return static_cast<int64_t>((((size_t{1} << kSubBits) + sub + 1) << shift) - 1);
}

void LatencyHistogram::Add(int64_t us) {
  us = std::max<int64_t>(us, 0);
  ++buckets_[std::min(BucketOf(static_cast<uint64_t>(us)), buckets_.size() - 1)];
  ++count_;
  max_us_ = std::max(max_us_, us);
  sum_us_ += static_cast<double>(us);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  for (size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  max_us_ = std::max(max_us_, other.max_us_);
  sum_us_ += other.sum_us_;
}

int64_t LatencyHistogram::QuantileUs(double quantile) const {
  if (count_ == 0) return 0;
  const auto rank = std::max<uint64_t>(1, static_cast<uint64_t>(std::ceil(quantile * static_cast<double>(count_))));
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= rank) return std::min(UpperBoundOf(i), max_us_);
  }
  return max_us_;
}

}  // namespace backstory
