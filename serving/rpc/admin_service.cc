// Models and Store on gRPC: every method asks for a role.
#include <memory>
#include <utility>

#include "backstory/v1/admin.grpc.pb.h"
#include "serving/rpc/call.h"

namespace backstory::rpc {
namespace {

using Context = grpc::CallbackServerContext;
using Bytes = grpc::ByteBuffer;

template <typename Request, typename Response>
grpc::ServerUnaryReactor* Run(const ServiceContext* service, Method method, Role role, Context* context, const Bytes* in,
                              Bytes* out, absl::Status (Handlers::*handle)(const Request&, Response*) const) {
  return RunBlocking<Request, Response>(
      service, method, role, context, in, out,
      [handlers = service->handlers, handle](const Request& request, Response* response) {
        return (handlers->*handle)(request, response);
      });
}

using RawModels = v1::Models::WithRawCallbackMethod_List<v1::Models::WithRawCallbackMethod_Load<
    v1::Models::WithRawCallbackMethod_Unload<v1::Models::WithRawCallbackMethod_SetLabel<
        v1::Models::WithRawCallbackMethod_SetCalibration<v1::Models::Service>>>>>;

class ModelsService final : public RawModels {
 public:
  explicit ModelsService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* List(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kListModels, Role::kReader, context, in, out, &Handlers::ListModels);
  }
  grpc::ServerUnaryReactor* Load(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kLoadModel, Role::kOperator, context, in, out, &Handlers::LoadModel);
  }
  grpc::ServerUnaryReactor* Unload(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kUnloadModel, Role::kOperator, context, in, out, &Handlers::UnloadModel);
  }
  grpc::ServerUnaryReactor* SetLabel(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kSetLabel, Role::kOperator, context, in, out, &Handlers::SetLabel);
  }
  grpc::ServerUnaryReactor* SetCalibration(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kSetCalibration, Role::kOperator, context, in, out, &Handlers::SetCalibration);
  }

 private:
  const ServiceContext* const service_;
};

using RawStore = v1::Store::WithRawCallbackMethod_Checkpoint<v1::Store::WithRawCallbackMethod_Verify<v1::Store::Service>>;

class StoreService final : public RawStore {
 public:
  explicit StoreService(const ServiceContext* service) : service_(service) {}

  grpc::ServerUnaryReactor* Checkpoint(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kCheckpoint, Role::kOperator, context, in, out, &Handlers::Checkpoint);
  }
  grpc::ServerUnaryReactor* Verify(Context* context, const Bytes* in, Bytes* out) override {
    return Run(service_, Method::kVerify, Role::kReader, context, in, out, &Handlers::Verify);
  }

 private:
  const ServiceContext* const service_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelsService(const ServiceContext* context) {
  return std::make_unique<ModelsService>(context);
}
std::unique_ptr<grpc::Service> MakeStoreService(const ServiceContext* context) {
  return std::make_unique<StoreService>(context);
}

}  // namespace backstory::rpc
