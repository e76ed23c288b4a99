// The server's ModelLoader: version directories of either kind. What ranks and what recommends share one repository.
#ifndef BACKSTORY_SERVING_EMBEDDED_VERSION_LOADER_H_
#define BACKSTORY_SERVING_EMBEDDED_VERSION_LOADER_H_

#include <memory>

#include "kernels/thread_pool.h"
#include "serving/embedded/scoring_device.h"
#include "serving/engine/parameters.h"
#include "serving/engine/served_model.h"

namespace backstory {

// A directory with an items.safetensors is a generative version (models/glass/loader.h), any other one GRAB's. `pool`
// must outlive the models. Both follow the parameters `precision` and `device*`.
ModelLoader VersionLoader(ThreadPool* pool, const ParameterSet& launch, std::shared_ptr<const ScoringDevice> device);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_EMBEDDED_VERSION_LOADER_H_
