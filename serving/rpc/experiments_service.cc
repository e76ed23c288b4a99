#include "serving/rpc/experiments_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "backstory/v1/experiments.grpc.pb.h"
#include "serving/engine/rank_query.h"
#include "serving/rpc/call.h"
#include "serving/rpc/experiment_config_text.h"
#include "serving/rpc/rank_wire.h"
#include "serving/rpc/wire.h"

namespace backstory::rpc {
namespace {

using Context = grpc::CallbackServerContext;
using Bytes = grpc::ByteBuffer;

absl::Status CheckText(const std::string& text) {
  if (text.size() <= kExperimentConfigBytesMax) return absl::OkStatus();
  return BadField("config_text", absl::StrCat("must be <= ", kExperimentConfigBytesMax, " bytes, is ", text.size()));
}

absl::Status Explain(const ExperimentAssigner& assigner, const v1::ExplainAssignmentRequest& request,
                     v1::ExplainAssignmentResponse* response) {
  auto ns = NamespaceFromWire(request.namespace_());
  if (!ns.ok()) return ns.status();
  auto user = UserFromWire("units.user", request.units().user());
  if (!user.ok()) return user.status();
  if (request.scene().size() > kSceneBytesMax) return BadField("scene", absl::StrCat("must be <= ", kSceneBytesMax, " bytes"));
  const Units units{*user, request.units().device(), request.units().session()};
  if (units.device.size() > kUnitBytesMax || units.session.size() > kUnitBytesMax) {
    return BadField("units", absl::StrCat("device and session must be <= ", kUnitBytesMax, " bytes"));
  }
  const auto features = FeaturesFromWire(request.features());
  if (!features.ok()) return features.status();
  const auto plan = assigner.plan();
  if (plan == nullptr) return absl::FailedPreconditionError("no experiment configuration is active");
  const Assignment assignment = plan->Assign(*ns, request.scene(), units, *features);
  response->set_config_version(assignment.config_version);
  for (const LayerAssignment& layer : assignment.layers) {
    for (const Exposure& exposure : layer.exposures) ExposureToWire(exposure, response->add_exposures());
    for (const auto& [name, value] : layer.parameters) {
      auto* parameter = response->add_parameters();
      parameter->set_name(name);
      parameter->set_value(value);
      parameter->set_source(std::string(SourceName(ParameterSource::kExperiment)));
    }
  }
  for (std::string& line : plan->Explain(*ns, request.scene(), units, *features)) response->add_reasons(std::move(line));
  return absl::OkStatus();
}

using RawExperiments = v1::Experiments::WithRawCallbackMethod_Validate<v1::Experiments::WithRawCallbackMethod_Apply<
    v1::Experiments::WithRawCallbackMethod_Status<v1::Experiments::WithRawCallbackMethod_Explain<v1::Experiments::Service>>>>;

class ExperimentsService final : public RawExperiments {
 public:
  ExperimentsService(const ServiceContext* service, ExperimentControl* control, const ExposureLog* exposures)
      : service_(service), control_(control), exposures_(exposures) {}

  grpc::ServerUnaryReactor* Validate(Context* context, const Bytes* in, Bytes* out) override {
    return RunBlocking<v1::ValidateExperimentsRequest, v1::ValidateExperimentsResponse>(
        service_, Method::kValidateExperiments, Role::kReader, context, in, out,
        [this](const v1::ValidateExperimentsRequest& request, v1::ValidateExperimentsResponse* response) {
          if (auto s = CheckText(request.config_text()); !s.ok()) return s;
          for (std::string& problem : control_->Validate(request.config_text())) response->add_problems(std::move(problem));
          return absl::OkStatus();
        });
  }
  grpc::ServerUnaryReactor* Apply(Context* context, const Bytes* in, Bytes* out) override {
    return RunBlocking<v1::ApplyExperimentsRequest, v1::ApplyExperimentsResponse>(
        service_, Method::kApplyExperiments, Role::kOperator, context, in, out,
        [this](const v1::ApplyExperimentsRequest& request, v1::ApplyExperimentsResponse* response) -> absl::Status {
          if (auto s = CheckText(request.config_text()); !s.ok()) return s;
          auto version = control_->Apply(request.config_text(), request.expected_config_version());
          if (!version.ok()) return version.status();
          response->set_config_version(*version);
          return absl::OkStatus();
        });
  }
  grpc::ServerUnaryReactor* Status(Context* context, const Bytes* in, Bytes* out) override {
    return RunBlocking<v1::ExperimentsStatusRequest, v1::ExperimentsStatusResponse>(
        service_, Method::kExperimentsStatus, Role::kReader, context, in, out,
        [this](const v1::ExperimentsStatusRequest&, v1::ExperimentsStatusResponse* response) {
          const auto plan = control_->assigner().plan();
          if (plan != nullptr) response->set_config_version(plan->config().version);
          response->set_config_text(control_->active_text());
          if (exposures_ == nullptr) return absl::OkStatus();
          for (const auto& [key, count] : exposures_->Counts()) {
            auto* arm = response->add_arms();
            arm->set_layer(key.layer);
            arm->set_experiment(key.experiment);
            arm->set_arm(key.arm);
            arm->set_exposures(count);
          }
          return absl::OkStatus();
        });
  }
  grpc::ServerUnaryReactor* Explain(Context* context, const Bytes* in, Bytes* out) override {
    return RunBlocking<v1::ExplainAssignmentRequest, v1::ExplainAssignmentResponse>(
        service_, Method::kExplainAssignment, Role::kReader, context, in, out,
        [this](const v1::ExplainAssignmentRequest& request, v1::ExplainAssignmentResponse* response) {
          return rpc::Explain(control_->assigner(), request, response);
        });
  }

 private:
  const ServiceContext* const service_;
  ExperimentControl* const control_;
  const ExposureLog* const exposures_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeExperimentsService(const ServiceContext* context, ExperimentControl* control,
                                                      const ExposureLog* exposures) {
  return std::make_unique<ExperimentsService>(context, control, exposures);
}

}  // namespace backstory::rpc
