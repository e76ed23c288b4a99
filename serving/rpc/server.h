// Start here in serving/rpc: the gRPC server over an Engine. Two ports (data, admin) and a metrics endpoint; health says
// NOT_SERVING until SetServing(true) and is the first thing to change in a drain.
#ifndef BACKSTORY_SERVING_RPC_SERVER_H_
#define BACKSTORY_SERVING_RPC_SERVER_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/engine/engine.h"
#include "serving/engine/prometheus_metrics.h"
#include "serving/rpc/log.h"
#include "serving/rpc/server_config.h"

namespace backstory {
class ExposureLog;
}

namespace backstory::rpc {

class ExperimentControl;

class Server {
 public:
  // `config` is filled and has no problems. The others must outlive the server. Listens when it returns. Without
  // `experiments` the service Experiments does not exist; `exposures` (may be null) counts for its Status.
  // INVALID_ARGUMENT (roles, certificates), UNAVAILABLE (an address cannot be bound; names it).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config, Engine* engine, Clock* clock,
                                                       PrometheusMetrics* metrics, Log* log,
                                                       ExperimentControl* experiments = nullptr,
                                                       const ExposureLog* exposures = nullptr);
  ~Server();  // without a drain: cancels what runs

  int port() const;
  int admin_port() const;    // 0 = disabled
  int metrics_port() const;  // 0 = disabled

  // Every service's health, on both ports.
  void SetServing(bool serving);

  // Health first, then no new calls, then waits for those accepted (limits.drain_grace_s), then closes connections.
  // DEADLINE_EXCEEDED naming what was left. Call once.
  absl::Status Drain();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_SERVER_H_
