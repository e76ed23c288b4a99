#include "serving/engine/metrics.h"

#include <atomic>
#include <mutex>

namespace backstory {
namespace {

// A plain atomic double; fetch_add on doubles is C++20.
class MemoryCounter : public Counter {
 public:
  void Add(double n) override { value_.fetch_add(n, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class MemoryGauge : public Gauge {
 public:
  void Set(double value) override { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class MemoryHistogram : public Histogram {
 public:
  void Observe(double) override { count_.fetch_add(1, std::memory_order_relaxed); }
  double value() const { return static_cast<double>(count_.load(std::memory_order_relaxed)); }

 private:
  std::atomic<uint64_t> count_{0};
};

std::string Key(std::string_view name, const MetricLabels& labels) {
  std::string key(name);
  if (labels.empty()) return key;
  char separator = '{';
  for (const auto& [label, value] : labels) {
    key += separator + label + "=\"" + value + "\"";
    separator = ',';
  }
  return key + "}";
}

template <typename T>
T* GetOrMake(std::map<std::string, std::unique_ptr<T>, std::less<>>* all, const std::string& key) {
  auto& slot = (*all)[key];
  if (slot == nullptr) slot = std::make_unique<T>();
  return slot.get();
}

}  // namespace

const std::vector<double>& LatencyBoundsSeconds() {
  static const std::vector<double> bounds{0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02,
                                          0.03,   0.05,   0.1,    0.2,   0.5,   1,     2,     5,      10};
  return bounds;
}

struct MemoryMetrics::Impl {
  mutable std::mutex mutex;
  std::map<std::string, std::unique_ptr<MemoryCounter>, std::less<>> counters;      // guarded by mutex
  std::map<std::string, std::unique_ptr<MemoryGauge>, std::less<>> gauges;          // guarded by mutex
  std::map<std::string, std::unique_ptr<MemoryHistogram>, std::less<>> histograms;  // guarded by mutex
};

MemoryMetrics::MemoryMetrics() : impl_(std::make_unique<Impl>()) {}
MemoryMetrics::~MemoryMetrics() = default;

Counter* MemoryMetrics::GetCounter(std::string_view name, std::string_view, const MetricLabels& labels) {
  std::lock_guard lock(impl_->mutex);
  return GetOrMake(&impl_->counters, Key(name, labels));
}

Gauge* MemoryMetrics::GetGauge(std::string_view name, std::string_view, const MetricLabels& labels) {
  std::lock_guard lock(impl_->mutex);
  return GetOrMake(&impl_->gauges, Key(name, labels));
}

Histogram* MemoryMetrics::GetHistogram(std::string_view name, std::string_view, const std::vector<double>&,
                                       const MetricLabels& labels) {
  std::lock_guard lock(impl_->mutex);
  return GetOrMake(&impl_->histograms, Key(name, labels));
}

double MemoryMetrics::Value(std::string_view key) const {
  std::lock_guard lock(impl_->mutex);
  if (const auto it = impl_->counters.find(key); it != impl_->counters.end()) return it->second->value();
  if (const auto it = impl_->gauges.find(key); it != impl_->gauges.end()) return it->second->value();
  if (const auto it = impl_->histograms.find(key); it != impl_->histograms.end()) return it->second->value();
  return 0;
}

}  // namespace backstory
