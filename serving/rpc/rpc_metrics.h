// Metrics of the RPC layer. Names follow gRPC's A66 where it names them; docs/reference/metrics.md lists them.
#ifndef BACKSTORY_SERVING_RPC_RPC_METRICS_H_
#define BACKSTORY_SERVING_RPC_RPC_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <string_view>

#include "serving/engine/metrics.h"

namespace backstory::rpc {

// Every method that is counted by name; the rest is "other".
enum class Method {
  kRank,
  kRankStream,
  kRecommend,
  kAppend,
  kAppendStream,
  kGetHistory,
  kHead,
  kDelete,
  kMerge,
  kPrefetch,
  kUpsertItems,
  kGetItems,
  kListModels,
  kLoadModel,
  kUnloadModel,
  kSetLabel,
  kSetCalibration,
  kCheckpoint,
  kVerify,
  kValidateExperiments,
  kApplyExperiments,
  kExperimentsStatus,
  kExplainAssignment,
  kOther,
};
inline constexpr size_t kMethodCount = static_cast<size_t>(Method::kOther) + 1;
std::string_view MethodName(Method method);  // "backstory.v1.Ranking/Rank"
std::string_view CodeName(int code);         // gRPC status code number -> "OK", ...

// Thread-safe. `metrics` must outlive it.
class RpcMetrics {
 public:
  explicit RpcMetrics(Metrics* metrics);

  void Started(Method method, size_t request_bytes);
  // `code` is a gRPC status code number, 0..16.
  void Ended(Method method, int code, double seconds, size_t response_bytes);
  // One request or batch inside a stream.
  void StreamMessage(Method method, int code);
  void SetReady(bool ready);

 private:
  static constexpr size_t kCodeCount = 17;
  struct PerMethod {
    Counter* started = nullptr;
    Gauge* in_flight = nullptr;
    std::atomic<int64_t> calls{0};
    Histogram* request_bytes = nullptr;
    Histogram* response_bytes = nullptr;
    // Made when first needed: most pairs of method and code never occur.
    std::array<std::atomic<Histogram*>, kCodeCount> duration{};
    std::array<std::atomic<Counter*>, kCodeCount> stream_messages{};
  };

  Metrics* const metrics_;
  std::array<PerMethod, kMethodCount> methods_;
  Gauge* ready_ = nullptr;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_RPC_METRICS_H_
