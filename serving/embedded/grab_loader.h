// The one ModelLoader of the product: GRAB version directories, as the engine serves them.
#ifndef BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_
#define BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_

#include <memory>

#include "kernels/thread_pool.h"
#include "serving/embedded/scoring_device.h"
#include "serving/engine/parameters.h"
#include "serving/engine/served_model.h"

namespace backstory {

// Scoring loops run on `pool`, which must outlive the models. Of the launch parameters it reads `precision`.
// The device is kept by the loader and its models; null: the CPU.
ModelLoader GrabLoader(ThreadPool* pool, const ParameterSet& launch, std::shared_ptr<const ScoringDevice> device);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_
