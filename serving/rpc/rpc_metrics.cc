#include "serving/rpc/rpc_metrics.h"

#include <iterator>
#include <string>
#include <vector>

namespace backstory::rpc {
namespace {

// The latency buckets of A66, and its size buckets in powers of four.
const std::vector<double>& SecondsBounds() {
  static const auto* bounds = new std::vector<double>{
      0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013,
      0.016,   0.02,    0.025,  0.03,   0.04,   0.05,   0.065, 0.08,  0.1,   0.13,  0.16,  0.2,   0.25,  0.3,  0.4,
      0.5,     0.65,    0.8,    1,      2,      5,      10,    20,    50,    100};
  return *bounds;
}
const std::vector<double>& BytesBounds() {
  static const auto* bounds =
      new std::vector<double>{256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864};
  return *bounds;
}

constexpr std::string_view kDuration = "grpc_server_call_duration_seconds";
constexpr std::string_view kStreamMessages = "backstory_rpc_stream_messages_total";

}  // namespace

std::string_view MethodName(Method method) {
  constexpr std::string_view kNames[] = {"backstory.v1.Ranking/Rank",       "backstory.v1.Ranking/RankStream",
                                         "backstory.v1.Retrieval/Recommend",
                                         "backstory.v1.History/Append",     "backstory.v1.History/AppendStream",
                                         "backstory.v1.History/Get",        "backstory.v1.History/Head",
                                         "backstory.v1.History/Delete",     "backstory.v1.History/Merge",
                                         "backstory.v1.History/Prefetch",   "backstory.v1.Catalog/Upsert",
                                         "backstory.v1.Catalog/Get",        "backstory.v1.Models/List",
                                         "backstory.v1.Models/Load",        "backstory.v1.Models/Unload",
                                         "backstory.v1.Models/SetLabel",    "backstory.v1.Models/SetCalibration",
                                         "backstory.v1.Store/Checkpoint",   "backstory.v1.Store/Verify",
                                         "backstory.v1.Experiments/Validate", "backstory.v1.Experiments/Apply",
                                         "backstory.v1.Experiments/Status", "backstory.v1.Experiments/Explain",
                                         "other"};
  static_assert(std::size(kNames) == kMethodCount);
  return kNames[static_cast<size_t>(method)];
}

std::string_view CodeName(int code) {
  constexpr std::string_view kNames[] = {
      "OK",           "CANCELLED", "UNKNOWN",     "INVALID_ARGUMENT", "DEADLINE_EXCEEDED",  "NOT_FOUND",
      "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
      "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",        "UNAUTHENTICATED"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : kNames[2];
}

RpcMetrics::RpcMetrics(Metrics* metrics) : metrics_(metrics) {
  for (size_t m = 0; m < kMethodCount; ++m) {
    const MetricLabels labels{{"grpc_method", std::string(MethodName(static_cast<Method>(m)))}};
    PerMethod& per = methods_[m];
    per.started = metrics->GetCounter("grpc_server_call_started_total", "Calls that reached a handler", labels);
    per.in_flight = metrics->GetGauge("backstory_rpc_in_flight_calls", "Calls being handled", labels);
    per.request_bytes = metrics->GetHistogram("grpc_server_call_rcvd_total_message_size_bytes",
                                              "Serialised request size, uncompressed", BytesBounds(), labels);
    per.response_bytes = metrics->GetHistogram("grpc_server_call_sent_total_message_size_bytes",
                                               "Serialised response size, uncompressed", BytesBounds(), labels);
  }
  ready_ = metrics->GetGauge("backstory_ready", "1 while the health service answers SERVING");
}

void RpcMetrics::Started(Method method, size_t request_bytes) {
  PerMethod& per = methods_[static_cast<size_t>(method)];
  per.started->Add();
  per.in_flight->Set(static_cast<double>(per.calls.fetch_add(1) + 1));
  if (request_bytes > 0) per.request_bytes->Observe(static_cast<double>(request_bytes));
}

void RpcMetrics::Ended(Method method, int code, double seconds, size_t response_bytes) {
  PerMethod& per = methods_[static_cast<size_t>(method)];
  per.in_flight->Set(static_cast<double>(per.calls.fetch_sub(1) - 1));
  if (response_bytes > 0) per.response_bytes->Observe(static_cast<double>(response_bytes));
  auto& slot = per.duration[code >= 0 && code < static_cast<int>(kCodeCount) ? code : 2];
  Histogram* histogram = slot.load(std::memory_order_acquire);
  if (histogram == nullptr) {
    histogram = metrics_->GetHistogram(
        kDuration, "Time from the handler's start to its final status", SecondsBounds(),
        {{"grpc_method", std::string(MethodName(method))}, {"grpc_status", std::string(CodeName(code))}});
    slot.store(histogram, std::memory_order_release);
  }
  histogram->Observe(seconds);
}

void RpcMetrics::StreamMessage(Method method, int code) {
  PerMethod& per = methods_[static_cast<size_t>(method)];
  auto& slot = per.stream_messages[code >= 0 && code < static_cast<int>(kCodeCount) ? code : 2];
  Counter* counter = slot.load(std::memory_order_acquire);
  if (counter == nullptr) {
    counter = metrics_->GetCounter(
        kStreamMessages, "Requests or batches inside streams, by the status of each",
        {{"grpc_method", std::string(MethodName(method))}, {"grpc_status", std::string(CodeName(code))}});
    slot.store(counter, std::memory_order_release);
  }
  counter->Add();
}

void RpcMetrics::SetReady(bool ready) { ready_->Set(ready ? 1 : 0); }

}  // namespace backstory::rpc
