// One unary call, from bytes to bytes. Requests are parsed here rather than by gRPC's generated code, which would
// answer malformed bytes with an empty UNIMPLEMENTED.
#ifndef BACKSTORY_SERVING_RPC_CALL_H_
#define BACKSTORY_SERVING_RPC_CALL_H_

#include <google/protobuf/arena.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "serving/engine/shed.h"
#include "serving/rpc/grpc_status.h"
#include "serving/rpc/service_context.h"

namespace backstory::rpc {

Caller CallerOf(const grpc::CallbackServerContext& context);
CallContext MakeCallContext(const ServiceContext& service, const grpc::CallbackServerContext& context);
// BATCH and SHADOW work without a deadline of its own may take the cap instead of the default.
CallContext WithPatience(const ServiceContext& service, const grpc::CallbackServerContext& context,
                         v1::Criticality criticality, CallContext call);
// What Rank, Recommend and each request of RankStream need beyond a valid message: parameter overrides ask for a role.
absl::Status CheckOverrides(const ServiceContext& service, const Caller& caller, bool overrides, Method method);

// INVALID_ARGUMENT naming what to lower if an answer is larger than the server may send; gRPC would break it off
// without a word about either.
absl::Status CheckAnswerSize(const ServiceContext& service, Method method, const google::protobuf::Message& answer);

// Bookkeeping of one call: gate, metrics, log line of a failure, pushback trailer. Leaves the gate when destroyed.
class CallScope {
 public:
  CallScope(const ServiceContext* service, Method method, grpc::CallbackServerContext* context, size_t request_bytes);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  // UNAVAILABLE if the server drains; the call then ends without having entered.
  absl::Status Enter();
  // Exactly once, before Finish.
  grpc::Status End(const absl::Status& status, size_t response_bytes);

 private:
  const ServiceContext* const service_;
  const Method method_;
  grpc::CallbackServerContext* const context_;
  const int64_t start_us_;
  bool entered_ = false;
};

// Owns request and response until gRPC is done with the call; deletes itself then.
template <typename Request, typename Response>
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const ServiceContext* service, Method method, grpc::CallbackServerContext* context,
            const grpc::ByteBuffer* in, grpc::ByteBuffer* out)
      : service_(service),
        method_(method),
        call_context_(MakeCallContext(*service, *context)),
        scope_(service, method, context, in->Length()),
        request_(google::protobuf::Arena::CreateMessage<Request>(&arena_)),
        response_(google::protobuf::Arena::CreateMessage<Response>(&arena_)),
        out_(out) {}

  const CallContext& call_context() const { return call_context_; }
  const Request& request() const { return *request_; }
  Response* response() { return response_; }

  absl::Status Begin(const grpc::ByteBuffer* in) {
    if (auto s = scope_.Enter(); !s.ok()) return s;
    grpc::ByteBuffer bytes(*in);
    return ParseMessage(&bytes, request_);
  }
  void End(absl::Status status) {
    if (status.ok()) status = CheckAnswerSize(*service_, method_, *response_);
    if (status.ok()) *out_ = SerializeMessage(*response_);
    const grpc::Status final_status = scope_.End(status, status.ok() ? out_->Length() : 0);
    Finish(final_status);
  }
  void OnCancel() override { call_context_.cancel->Cancel(); }
  void OnDone() override { delete this; }

 private:
  const ServiceContext* const service_;
  const Method method_;
  const CallContext call_context_;
  CallScope scope_;
  google::protobuf::Arena arena_;
  Request* const request_;
  Response* const response_;
  grpc::ByteBuffer* const out_;
};

// `handle(request, response) -> absl::Status` blocks: it runs on the executor. `role`: what the caller must have.
template <typename Request, typename Response, typename Handle>
grpc::ServerUnaryReactor* RunBlocking(const ServiceContext* service, Method method, std::optional<Role> role,
                                      grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                      grpc::ByteBuffer* out, Handle handle) {
  auto* call = new UnaryCall<Request, Response>(service, method, context, in, out);
  absl::Status status = call->Begin(in);
  if (status.ok() && role.has_value()) status = service->roles->Require(CallerOf(*context), *role, MethodName(method));
  if (!status.ok()) {
    call->End(status);
    return call;
  }
  const bool taken = service->blocking->Submit([call, service, handle] {
    if (call->call_context().cancel->cancelled())
      return call->End(absl::CancelledError("the client cancelled the call"));
    if (service->clock->MonotonicMicros() > call->call_context().deadline_us) {
      return call->End(absl::DeadlineExceededError("the deadline passed before the call was begun"));
    }
    call->End(handle(call->request(), call->response()));
  });
  if (!taken) call->End(ShedStatus("too many calls wait for the store", 100));
  return call;
}

// `handle(request, call context, response, done)` does not block and calls `done` once, from any thread.
template <typename Request, typename Response, typename Handle>
grpc::ServerUnaryReactor* RunAsync(const ServiceContext* service, Method method, grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* in, grpc::ByteBuffer* out, Handle handle) {
  auto* call = new UnaryCall<Request, Response>(service, method, context, in, out);
  if (absl::Status status = call->Begin(in); !status.ok()) {
    call->End(status);
    return call;
  }
  handle(call->request(), call->call_context(), call->response(), [call](absl::Status status) { call->End(status); });
  return call;
}

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_CALL_H_
