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

std::string Key(std::string_view name, const MetricLabels& labels) {
  std::string key(name);
  for (const auto& [label, value] : labels) key.append("\n").append(label).append("\t").append(value);
  return key;
}

}  // namespace

Counter* PrometheusMetrics::GetCounter(std::string_view name, std::string_view help, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Counter>& handle = counters_[Key(name, labels)];
  if (handle == nullptr) {
    auto& family = prometheus::BuildCounter().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
    handle = std::make_unique<CounterHandle>(&family.Add(labels));
  }
  return handle.get();
}

Gauge* PrometheusMetrics::GetGauge(std::string_view name, std::string_view help, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Gauge>& handle = gauges_[Key(name, labels)];
  if (handle == nullptr) {
    auto& family = prometheus::BuildGauge().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
    handle = std::make_unique<GaugeHandle>(&family.Add(labels));
  }
  return handle.get();
}

Histogram* PrometheusMetrics::GetHistogram(std::string_view name, std::string_view help,
                                           const std::vector<double>& bounds, const MetricLabels& labels) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Histogram>& handle = histograms_[Key(name, labels)];
  if (handle == nullptr) {
    auto& family = prometheus::BuildHistogram().Name(std::string(name)).Help(std::string(help)).Register(*registry_);
    handle = std::make_unique<HistogramHandle>(&family.Add(labels, bounds));
  }
  return handle.get();
}

}  // namespace backstory
