// Counters, gauges and histograms behind a thin interface, so that the engine knows no exporter. Names follow
// Prometheus: prefix backstory_, base units (seconds, bytes), _total for counters, no ids in labels.
#ifndef BACKSTORY_SERVING_ENGINE_METRICS_H_
#define BACKSTORY_SERVING_ENGINE_METRICS_H_

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace backstory {

// Handles are owned by their Metrics and live as long as it does. All thread-safe and cheap enough for every request.
class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Add(double n = 1) = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe. The same name and labels give the same handle.
class Metrics {
 public:
  virtual ~Metrics() = default;
  virtual Counter* GetCounter(std::string_view name, std::string_view help, const MetricLabels& labels = {}) = 0;
  virtual Gauge* GetGauge(std::string_view name, std::string_view help, const MetricLabels& labels = {}) = 0;
  // `bounds`: upper bucket bounds, ascending; those of the first call for a name count.
  virtual Histogram* GetHistogram(std::string_view name, std::string_view help, const std::vector<double>& bounds,
                                  const MetricLabels& labels = {}) = 0;
};

// Bucket bounds used by every latency histogram of the engine, in seconds (0.1 ms .. 10 s).
const std::vector<double>& LatencyBoundsSeconds();

// Keeps values in memory: for tests, tools, and an engine without an exporter.
class MemoryMetrics : public Metrics {
 public:
  MemoryMetrics();
  ~MemoryMetrics() override;
  Counter* GetCounter(std::string_view name, std::string_view help, const MetricLabels& labels = {}) override;
  Gauge* GetGauge(std::string_view name, std::string_view help, const MetricLabels& labels = {}) override;
  Histogram* GetHistogram(std::string_view name, std::string_view help, const std::vector<double>& bounds,
                          const MetricLabels& labels = {}) override;
  // Sum of a counter, value of a gauge, or number of observations of a histogram; 0 if it was never used.
  // Key: name, or name{label="value",...} with labels in order.
  double Value(std::string_view key) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_METRICS_H_
