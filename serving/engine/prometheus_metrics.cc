#include "serving/engine/prometheus_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

namespace backstory {
namespace {

class CounterHandle : public Counter {
 public:
  explicit CounterHandle(prometheus::Counter* counter) : counter_(counter) {}
  void Add(double n) override { counter_->Increment(n); }

 private:
  prometheus::Counter* const counter_;
};

class GaugeHandle : public Gauge {
 public:
  explicit GaugeHandle(prometheus::Gauge* gauge) : gauge_(gauge) {}
  void Set(double value) override { gauge_->Set(value); }

 private:
  prometheus::Gauge* const gauge_;
};

class HistogramHandle : public Histogram {
 public:
  explicit HistogramHandle(prometheus::Histogram* histogram) : histogram_(histogram) {}
  void Observe(double value) override { histogram_->Observe(value); }

 private:
  prometheus::Histogram* const histogram_;
};

template <typename Handle, typename Base, typename Metric>
Base* Keep(Metric* metric, std::vector<std::unique_ptr<Base>>* handles) {
  handles->push_back(std::make_unique<Handle>(metric));
  return handles->back().get();
}

}  // namespace

// prometheus-cpp gives the same family and the same metric for the same name and labels; a second handle costs 16
// bytes.
Counter* PrometheusMetrics::GetCounter(std::string_view name, std::string_view help, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  auto& family = prometheus::BuildCounter().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
  return Keep<CounterHandle>(&family.Add(labels), &counters_);
}

Gauge* PrometheusMetrics::GetGauge(std::string_view name, std::string_view help, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  auto& family = prometheus::BuildGauge().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
  return Keep<GaugeHandle>(&family.Add(labels), &gauges_);
}

Histogram* PrometheusMetrics::GetHistogram(std::string_view name, std::string_view help,
                                           const std::vector<double>& bounds, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  auto& family = prometheus::BuildHistogram().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
  return Keep<HistogramHandle>(&family.Add(labels, bounds), &histograms_);
}

}  // namespace backstory
