#include "serving/rpc/metrics_endpoint.h"

#include <prometheus/exposer.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "serving/rpc/build_info.h"

namespace backstory::rpc {
namespace {

prometheus::MetricFamily OneValue(const std::string& name, const std::string& help, prometheus::MetricType type,
                                  double value) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  prometheus::ClientMetric metric;
  (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  family.metric.push_back(std::move(metric));
  return family;
}

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double OpenFiles() {
  std::error_code error;
  double count = 0;
  for (auto it = std::filesystem::directory_iterator("/proc/self/fd", error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    ++count;
  }
  return count;
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

struct MetricsEndpoint::Impl : public prometheus::Collectable {
  PrometheusMetrics* metrics = nullptr;
  std::function<void()> on_scrape;
  double start_s = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::unique_ptr<prometheus::Exposer> exposer;

  std::vector<prometheus::MetricFamily> Collect() const override {
    if (on_scrape) on_scrape();
    std::vector<prometheus::MetricFamily> families = metrics->registry()->Collect();
    using Type = prometheus::MetricType;
    families.push_back(OneValue("process_resident_memory_bytes", "Resident memory", Type::Gauge, ResidentBytes()));
    families.push_back(OneValue("process_open_fds", "Open file descriptors", Type::Gauge, OpenFiles()));
    families.push_back(
        OneValue("process_start_time_seconds", "Start time since the Unix epoch", Type::Gauge, start_s));
    families.push_back(OneValue("process_cpu_seconds_total", "User and system time", Type::Counter, CpuSeconds()));
    return families;
  }
};

MetricsEndpoint::MetricsEndpoint(PrometheusMetrics* metrics, std::function<void()> on_scrape)
    : impl_(std::make_shared<Impl>()) {
  impl_->metrics = metrics;
  impl_->on_scrape = std::move(on_scrape);
  metrics
      ->GetGauge("backstory_build_info", "1, labelled with the build",
                 {{"version", std::string(kBuildVersion)}, {"type", std::string(kBuildType)}})
      ->Set(1);
}

MetricsEndpoint::~MetricsEndpoint() { Stop(); }

absl::StatusOr<int> MetricsEndpoint::Listen(const std::string& host, int port) {
  try {
    impl_->exposer = std::make_unique<prometheus::Exposer>(absl::StrCat(host, ":", port), 1);
    impl_->exposer->RegisterCollectable(impl_);
    const auto ports = impl_->exposer->GetListeningPorts();
    if (!ports.empty()) return ports.front();
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("metrics cannot listen on ", host, ":", port, ": ", e.what()));
  }
  return absl::UnavailableError(absl::StrCat("metrics cannot listen on ", host, ":", port));
}

void MetricsEndpoint::Stop() { impl_->exposer.reset(); }

std::string MetricsEndpoint::Scrape() const { return prometheus::TextSerializer().Serialize(impl_->Collect()); }

}  // namespace backstory::rpc
