// What a scoring request must satisfy, whoever computes it. Private to models/grab.
#ifndef BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_
#define BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_

#include <cstddef>

#include "absl/status/status.h"
#include "models/grab/model.h"
#include "models/grab/token_net.h"

namespace backstory::grab {

// INVALID_ARGUMENT naming segment `index`, the field and the limit. `full` is the model's network of full tokens.
absl::Status CheckSegment(const Config& config, const TokenNet& full, const ScoreSegment& segment, size_t index);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_
