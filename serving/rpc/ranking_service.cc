// Ranking on gRPC.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "backstory/v1/ranking.grpc.pb.h"
#include "serving/rpc/stream_call.h"

namespace backstory::rpc {
namespace {

constexpr int kRankStreamWindow = 64;

void ErrorToWire(const absl::Status& status, v1::Error* error) {
  error->set_code(ToGrpc(status).error_code());
  error->set_message(std::string(status.message()));
  error->set_retry_pushback_ms(RetryPushbackMs(status).value_or(0));
}

class RankStreamCall final : public StreamCall {
 public:
  RankStreamCall(const ServiceContext* service, grpc::CallbackServerContext* context)
      : StreamCall(service, Method::kRankStream, context, kRankStreamWindow) {}

 private:
  // One request of the stream, alive until its reply is handed over.
  struct Slot {
    v1::RankRequest request;
    v1::RankStreamResponse response;
    CallContext call;
  };

  void OnMessage(grpc::ByteBuffer bytes) override {
    auto slot = std::make_shared<Slot>();
    absl::Status status = ParseMessage(&bytes, &slot->request);
    const uint64_t id = slot->request.request_id();
    slot->response.set_request_id(id);
    if (status.ok() && id == 0) {
      status = absl::InvalidArgumentError("request_id must be nonzero on a stream");
    }
    if (status.ok()) status = CheckOverrides(*service_, caller_, !slot->request.parameters().empty(), method_);
    slot->call = WithPatience(*service_, *context_, slot->request.criticality(), MakeCallContext(*service_, *context_));
    if (status.ok()) status = Register(id, slot->call.cancel);
    if (!status.ok()) return Answer(slot, status);
    service_->handlers->Rank(slot->request, slot->call, slot->response.mutable_response(),
                             [this, slot, id](const absl::Status& done) {
                               {
                                 std::lock_guard lock(ids_mutex_);
                                 in_flight_ids_.erase(id);
                               }
                               Answer(slot, done);
                             });
  }

  absl::Status Register(uint64_t id, std::shared_ptr<CancelToken> cancel) {
    std::lock_guard lock(ids_mutex_);
    if (gone_) return absl::CancelledError("the client is gone");
    if (in_flight_ids_.emplace(id, std::move(cancel)).second) return absl::OkStatus();
    return absl::InvalidArgumentError("request_id must not be in flight already on this stream");
  }

  void Answer(const std::shared_ptr<Slot>& slot, absl::Status status) {
    if (status.ok()) status = CheckAnswerSize(*service_, method_, slot->response);
    service_->metrics->StreamMessage(method_, ToGrpc(status).error_code());
    if (!status.ok()) ErrorToWire(status, slot->response.mutable_error());
    Reply(SerializeMessage(slot->response));
  }

  void OnGone() override {
    std::map<uint64_t, std::shared_ptr<CancelToken>> running;
    {
      std::lock_guard lock(ids_mutex_);
      gone_ = true;
      running = in_flight_ids_;
    }
    for (auto& [id, cancel] : running) cancel->Cancel();
  }

  std::mutex ids_mutex_;
  std::map<uint64_t, std::shared_ptr<CancelToken>> in_flight_ids_;  // guarded by ids_mutex_
  bool gone_ = false;                                               // guarded by ids_mutex_
};

using Base =
    v1::Ranking::WithRawCallbackMethod_Rank<v1::Ranking::WithRawCallbackMethod_RankStream<v1::Ranking::Service>>;

class RankingService final : public Base {
 public:
  explicit RankingService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* Rank(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                 grpc::ByteBuffer* out) override {
    return RunAsync<v1::RankRequest, v1::RankResponse>(
        service_, Method::kRank, context, in, out,
        [this, context](const v1::RankRequest& request, const CallContext& call, v1::RankResponse* response,
                        Done done) {
          const auto status =
              CheckOverrides(*service_, CallerOf(*context), !request.parameters().empty(), Method::kRank);
          if (!status.ok()) return done(status);
          service_->handlers->Rank(request, WithPatience(*service_, *context, request.criticality(), call), response,
                                   std::move(done));
        });
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* RankStream(
      grpc::CallbackServerContext* context) override {
    auto* stream = new RankStreamCall(service_, context);
    stream->Start();
    return stream;
  }

 private:
  const ServiceContext* const service_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeRankingService(const ServiceContext* context) {
  return std::make_unique<RankingService>(context);
}

}  // namespace backstory::rpc
