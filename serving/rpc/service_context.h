// What every gRPC service of a server shares, and the factories of the services.
#ifndef BACKSTORY_SERVING_RPC_SERVICE_CONTEXT_H_
#define BACKSTORY_SERVING_RPC_SERVICE_CONTEXT_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_set>

#include "serving/rpc/deadline.h"
#include "serving/rpc/executor.h"
#include "serving/rpc/handlers.h"
#include "serving/rpc/log.h"
#include "serving/rpc/roles.h"
#include "serving/rpc/rpc_metrics.h"

namespace backstory::rpc {

class StreamCall;

// Counts what was let in and closes the door for a drain. Thread-safe.
class Gate {
 public:
  bool Enter();  // false: draining
  void Leave();
  // A stream that wants to hear of the drain. False: draining already.
  bool Open(StreamCall* stream);
  void Close(StreamCall* stream);
  // Lets nothing in from now on, tells the streams, and waits until everything let in has left. False on timeout.
  bool Drain(std::chrono::milliseconds timeout);
  int64_t inside() const;
  int64_t refused() const;  // calls turned away since the drain began

 private:
  mutable std::mutex mutex_;
  std::condition_variable empty_;
  int64_t inside_ = 0;                       // guarded by mutex_
  int64_t refused_ = 0;                      // guarded by mutex_
  bool draining_ = false;                    // guarded by mutex_
  std::unordered_set<StreamCall*> streams_;  // guarded by mutex_
};

// Everything must outlive the services.
struct ServiceContext {
  const Handlers* handlers = nullptr;
  const Clock* clock = nullptr;
  RpcMetrics* metrics = nullptr;
  Log* log = nullptr;
  const RoleTable* roles = nullptr;
  DeadlinePolicy deadlines;
  size_t message_bytes_max = SIZE_MAX;  // limits.max_message_bytes
  Executor* blocking = nullptr;
  Gate* gate = nullptr;
};

std::unique_ptr<grpc::Service> MakeRankingService(const ServiceContext* context);
std::unique_ptr<grpc::Service> MakeRetrievalService(const ServiceContext* context);
std::unique_ptr<grpc::Service> MakeHistoryService(const ServiceContext* context);
std::unique_ptr<grpc::Service> MakeCatalogService(const ServiceContext* context);
std::unique_ptr<grpc::Service> MakeModelsService(const ServiceContext* context);
std::unique_ptr<grpc::Service> MakeStoreService(const ServiceContext* context);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_SERVICE_CONTEXT_H_
