// The one ModelLoader of the product: GRAB version directories, as the engine serves them.
#ifndef BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_
#define BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_

#include "kernels/thread_pool.h"
#include "serving/engine/parameters.h"
#include "serving/engine/served_model.h"

namespace backstory {

// Scoring loops run on `pool`, which must outlive the models. Of the launch parameters it reads `precision`.
ModelLoader GrabLoader(ThreadPool* pool, const ParameterSet& launch);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_EMBEDDED_GRAB_LOADER_H_
