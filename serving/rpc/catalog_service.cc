// Catalog on gRPC.
#include <memory>
#include <utility>

#include "backstory/v1/catalog.grpc.pb.h"
#include "serving/rpc/call.h"

namespace backstory::rpc {
namespace {

using Raw = v1::Catalog::WithRawCallbackMethod_Upsert<v1::Catalog::WithRawCallbackMethod_Get<v1::Catalog::Service>>;

class CatalogService final : public Raw {
 public:
  explicit CatalogService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* Upsert(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                   grpc::ByteBuffer* out) override {
    return RunBlocking<v1::UpsertItemsRequest, v1::UpsertItemsResponse>(
        service_, Method::kUpsertItems, std::nullopt, context, in, out,
        [this](const auto& request, auto* response) { return service_->handlers->UpsertItems(request, response); });
  }
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                grpc::ByteBuffer* out) override {
    return RunBlocking<v1::GetItemsRequest, v1::GetItemsResponse>(
        service_, Method::kGetItems, std::nullopt, context, in, out,
        [this](const auto& request, auto* response) { return service_->handlers->GetItems(request, response); });
  }

 private:
  const ServiceContext* const service_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCatalogService(const ServiceContext* context) {
  return std::make_unique<CatalogService>(context);
}

}  // namespace backstory::rpc
