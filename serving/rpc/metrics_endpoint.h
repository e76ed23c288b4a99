// The HTTP endpoint that Prometheus scrapes: GET /metrics.
#ifndef BACKSTORY_SERVING_RPC_METRICS_ENDPOINT_H_
#define BACKSTORY_SERVING_RPC_METRICS_ENDPOINT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "serving/engine/prometheus_metrics.h"

namespace backstory::rpc {

// Adds numbers of the process: process_resident_memory_bytes, process_open_fds, process_start_time_seconds,
// process_cpu_seconds_total and backstory_build_info.
class MetricsEndpoint {
 public:
  // `on_scrape` (may be empty) runs before each scrape, on the scraper's thread: it sets gauges that are read rather than
  // counted. `metrics` must outlive the endpoint.
  MetricsEndpoint(PrometheusMetrics* metrics, std::function<void()> on_scrape);
  ~MetricsEndpoint();

  // Port 0 = any free port; returns the port. UNAVAILABLE if the address cannot be bound.
  absl::StatusOr<int> Listen(const std::string& host, int port);
  void Stop();
  // What a scrape returns (text format 0.0.4).
  std::string Scrape() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;  // the exposer holds it weakly
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_METRICS_ENDPOINT_H_
