// Metrics kept in a prometheus-cpp registry, ready to be exposed.
#ifndef BACKSTORY_SERVING_ENGINE_PROMETHEUS_METRICS_H_
#define BACKSTORY_SERVING_ENGINE_PROMETHEUS_METRICS_H_

#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "serving/engine/metrics.h"

namespace backstory {

// Thread-safe. Register registry() with an exposer; the registry may outlive this object, handles may not.
class PrometheusMetrics : public Metrics {
 public:
  PrometheusMetrics() : registry_(std::make_shared<prometheus::Registry>()) {}
  Counter* GetCounter(std::string_view name, std::string_view help, const MetricLabels& labels = {}) override;
  Gauge* GetGauge(std::string_view name, std::string_view help, const MetricLabels& labels = {}) override;
  Histogram* GetHistogram(std::string_view name, std::string_view help, const std::vector<double>& bounds,
                          const MetricLabels& labels = {}) override;
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  std::mutex mutex_;
  // By name and labels, so that asking for the same metric again and again costs no memory.
  std::map<std::string, std::unique_ptr<Counter>> counters_;      // guarded by mutex_
  std::map<std::string, std::unique_ptr<Gauge>> gauges_;          // guarded by mutex_
  std::map<std::string, std::unique_ptr<Histogram>> histograms_;  // guarded by mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_PROMETHEUS_METRICS_H_
