// Retrieval on gRPC.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backstory/v1/retrieval.grpc.pb.h"
#include "serving/rpc/call.h"

namespace backstory::rpc {
namespace {

class RetrievalService final : public v1::Retrieval::WithRawCallbackMethod_Recommend<v1::Retrieval::Service> {
 public:
  explicit RetrievalService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* Recommend(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                      grpc::ByteBuffer* out) override {
    return RunAsync<v1::RecommendRequest, v1::RecommendResponse>(
        service_, Method::kRecommend, context, in, out,
        [this, context](const v1::RecommendRequest& request, const CallContext& call, v1::RecommendResponse* response,
                        Done done) {
          const auto status =
              CheckOverrides(*service_, CallerOf(*context), !request.parameters().empty(), Method::kRecommend);
          if (!status.ok()) return done(status);
          service_->handlers->Recommend(request, WithPatience(*service_, *context, request.criticality(), call),
                                        response, std::move(done));
        });
  }

 private:
  const ServiceContext* const service_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeRetrievalService(const ServiceContext* context) {
  return std::make_unique<RetrievalService>(context);
}

}  // namespace backstory::rpc
