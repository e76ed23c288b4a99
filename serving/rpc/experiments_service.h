// Experiments on the admin port: Validate, Apply, Status, Explain.
#ifndef BACKSTORY_SERVING_RPC_EXPERIMENTS_SERVICE_H_
#define BACKSTORY_SERVING_RPC_EXPERIMENTS_SERVICE_H_

#include <memory>

#include "serving/engine/experiments/exposure_log.h"
#include "serving/rpc/experiment_control.h"
#include "serving/rpc/service_context.h"

namespace backstory::rpc {

// `exposures` may be null: then no exposure is counted. All must outlive the service.
std::unique_ptr<grpc::Service> MakeExperimentsService(const ServiceContext* context, ExperimentControl* control,
                                                      const ExposureLog* exposures);

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_EXPERIMENTS_SERVICE_H_
