// What masks and biases of a history's new rows are made from, on its way to the card. Private to prefill.cc.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_FACTS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_FACTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "models/grab/cuda/device.h"
#include "models/grab/cuda/prefill.h"

namespace backstory::grab {

// Of one channel, of CudaPrefill::kRowsMax rows each; `blocks` of as many pages. See CudaHistoryRows.
struct CudaHistoryFactPlaces {
  int64_t *time, *tie;
  int32_t *previous_tie, *oldest_tie, *action, *blocks;
};

// By way of `host`, page-locked. Enqueues copies on `stream` (a cudaStream_t); `host` is in use until they are done.
absl::Status UploadHistoryFacts(const CudaHistory& history, const CudaHistoryFactPlaces& host,
                                const CudaHistoryFactPlaces& card, CudaDevice* device, void* stream);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_FACTS_H_
