// A log-linear latency histogram: constant memory, relative error below 1 %, mergeable.
#ifndef BACKSTORY_SERVING_CLI_LATENCY_HISTOGRAM_H_
#define BACKSTORY_SERVING_CLI_LATENCY_HISTOGRAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace backstory {

// Microseconds from 0 to about an hour; larger values count as the largest bucket. Values below 128 are exact, above that
// each power of two has 128 buckets. Not thread-safe.
class LatencyHistogram {
 public:
  LatencyHistogram();
  void Add(int64_t us);
  void Merge(const LatencyHistogram& other);

  uint64_t count() const { return count_; }
  int64_t max_us() const { return max_us_; }
  double mean_us() const { return count_ == 0 ? 0 : sum_us_ / static_cast<double>(count_); }
  // Upper bound of the bucket that holds the value of this rank, 0 < quantile <= 1; 0 if empty. Never above max_us().
  int64_t QuantileUs(double quantile) const;

 private:
  static constexpr int kSubBits = 7;
  static constexpr int kPowersMax = 32;
  static size_t BucketOf(uint64_t us);
  static int64_t UpperBoundOf(size_t bucket);

  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  int64_t max_us_ = 0;
  double sum_us_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_LATENCY_HISTOGRAM_H_
