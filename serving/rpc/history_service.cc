// History on gRPC.
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "backstory/v1/history.grpc.pb.h"
#include "serving/rpc/stream_call.h"

namespace backstory::rpc {
namespace {

constexpr int kAppendStreamWindow = 32;

// Batches of one stream are committed and acknowledged in the order sent: while one commit runs, what arrives waits and
// then goes into the next one together. A message that is no batch waits with the others: its refusal keeps its place.
class AppendStreamCall final : public StreamCall {
 public:
  AppendStreamCall(const ServiceContext* service, grpc::CallbackServerContext* context)
      : StreamCall(service, Method::kAppendStream, context, kAppendStreamWindow) {}

 private:
  struct Slot {
    v1::AppendStreamRequest request;
    v1::AppendStreamResponse response;
  };
  struct Queue {
    std::mutex mutex;
    std::vector<std::unique_ptr<Slot>> waiting;  // guarded by mutex
    bool running = false;                        // guarded by mutex: a Commit will take what waits
  };

  void OnMessage(grpc::ByteBuffer bytes) override {
    auto slot = std::make_unique<Slot>();
    if (absl::Status status = ParseMessage(&bytes, &slot->request); !status.ok()) SetError(slot.get(), status);
    {
      std::lock_guard lock(queue_->mutex);
      queue_->waiting.push_back(std::move(slot));
      if (std::exchange(queue_->running, true)) return;
    }
    if (service_->blocking->Submit([this, queue = queue_] { Commit(*queue); })) return;
    std::vector<std::unique_ptr<Slot>> refused;
    {
      std::lock_guard lock(queue_->mutex);
      refused.swap(queue_->waiting);
      queue_->running = false;
    }
    for (auto& each : refused) {
      if (!each->response.has_error()) {
        each->response.set_batch_id(each->request.batch_id());
        SetError(each.get(), ShedStatus("too many calls wait for the store", 100));
      }
      Answer(*each);
    }
  }

  // Commits until nothing waits. This object lives as long as it owes a reply; `queue` a little longer, because the last
  // reply may end the stream before the queue was seen to be empty.
  void Commit(Queue& queue) {
    while (true) {
      std::vector<std::unique_ptr<Slot>> taken;
      {
        std::lock_guard lock(queue.mutex);
        taken.swap(queue.waiting);
        if (taken.empty()) {
          queue.running = false;
          return;
        }
      }
      std::vector<Handlers::StreamBatch> batches;
      batches.reserve(taken.size());
      for (auto& slot : taken) {
        if (!slot->response.has_error()) batches.push_back({&slot->request, &slot->response});
      }
      if (!batches.empty()) service_->handlers->AppendBatches(batches);
      for (auto& slot : taken) Answer(*slot);
    }
  }

  static void SetError(Slot* slot, const absl::Status& status) {
    auto* error = slot->response.mutable_error();
    error->set_code(ToGrpc(status).error_code());
    error->set_message(std::string(status.message()));
    error->set_retry_pushback_ms(RetryPushbackMs(status).value_or(0));
  }

  void Answer(const Slot& slot) {
    service_->metrics->StreamMessage(method_, slot.response.error().code());
    Reply(SerializeMessage(slot.response));
  }

  const std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
};

using Raw = v1::History::WithRawCallbackMethod_Append<
    v1::History::WithRawCallbackMethod_AppendStream<v1::History::WithRawCallbackMethod_Get<
        v1::History::WithRawCallbackMethod_Head<v1::History::WithRawCallbackMethod_Delete<
            v1::History::WithRawCallbackMethod_Merge<v1::History::WithRawCallbackMethod_Prefetch<
                v1::History::Service>>>>>>>;

class HistoryService final : public Raw {
 public:
  explicit HistoryService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* Append(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override {
    return Run<v1::AppendRequest, v1::AppendResponse>(Method::kAppend, context, in, out, &Handlers::Append);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* AppendStream(
      grpc::CallbackServerContext* context) override {
    auto* stream = new AppendStreamCall(service_, context);
    stream->Start();
    return stream;
  }
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                grpc::ByteBuffer* out) override {
    return Run<v1::GetHistoryRequest, v1::GetHistoryResponse>(Method::kGetHistory, context, in, out,
                                                              &Handlers::GetHistory);
  }
  grpc::ServerUnaryReactor* Head(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                 grpc::ByteBuffer* out) override {
    return Run<v1::HeadRequest, v1::HeadResponse>(Method::kHead, context, in, out, &Handlers::Head);
  }
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override {
    return Run<v1::DeleteRequest, v1::DeleteResponse>(Method::kDelete, context, in, out, &Handlers::Delete);
  }
  grpc::ServerUnaryReactor* Merge(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                  grpc::ByteBuffer* out) override {
    return Run<v1::MergeRequest, v1::MergeResponse>(Method::kMerge, context, in, out, &Handlers::Merge);
  }
  grpc::ServerUnaryReactor* Prefetch(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                     grpc::ByteBuffer* out) override {
    return RunAsync<v1::PrefetchRequest, v1::PrefetchResponse>(
        service_, Method::kPrefetch, context, in, out,
        [this](const v1::PrefetchRequest& request, const CallContext& call, v1::PrefetchResponse* response, Done done) {
          service_->handlers->Prefetch(request, call, response, std::move(done));
        });
  }

 private:
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Run(Method method, grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                grpc::ByteBuffer* out,
                                absl::Status (Handlers::*handle)(const Request&, Response*) const) {
    return RunBlocking<Request, Response>(
        service_, method, std::nullopt, context, in, out,
        [handlers = service_->handlers, handle](const Request& request, Response* response) {
          return (handlers->*handle)(request, response);
        });
  }

  const ServiceContext* const service_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeHistoryService(const ServiceContext* context) {
  return std::make_unique<HistoryService>(context);
}

}  // namespace backstory::rpc
