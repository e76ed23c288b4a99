// What rows to append and scoring requests must satisfy, whoever computes them. Private to models/grab.
#ifndef BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_
#define BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_

#include <cstddef>

#include "absl/status/status.h"
#include "models/grab/model.h"
#include "models/grab/token_net.h"
#include "models/grab/user_kv.h"

namespace backstory::grab {

// INVALID_ARGUMENT naming the channel, the row and the limit. `rows` are all of one channel, those of `state` first;
// `partial` is the model's network of partial tokens.
absl::Status CheckHistory(const Config& config, const TokenNet& partial, const ChannelRows& rows, size_t channel,
                          const ChannelState& state);
absl::Status CheckChannels(const Config& config, size_t channels);

// INVALID_ARGUMENT naming segment `index`, the field and the limit. `full` is the model's network of full tokens.
absl::Status CheckSegment(const Config& config, const TokenNet& full, const ScoreSegment& segment, size_t index);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_SEGMENT_CHECK_H_
