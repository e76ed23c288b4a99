// What cached K/V depends on, as one hash. Private to models/grab.
#ifndef BACKSTORY_MODELS_GRAB_STATE_ID_H_
#define BACKSTORY_MODELS_GRAB_STATE_ID_H_

#include <string>

#include "kernels/dtype.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// 16 hex digits over every setting and tensor that history rows or their K/V depend on: partial fields, action classes,
// channels, label window, precision, the P tokenizer network, codebooks, windows, and the layers as far as K/V of the
// last one needs them. Full fields, gates, head, tasks and calibration are left out, so versions that differ only there
// share state. All tensors are there (the weights were loaded).
std::string StateId(const Config& config, const TensorMap& tensors, Dtype precision);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_STATE_ID_H_
