// Long histories are put into a model in steps, so that the worker can serve others in between.
#ifndef BACKSTORY_SERVING_ENGINE_EXTEND_STEPS_H_
#define BACKSTORY_SERVING_ENGINE_EXTEND_STEPS_H_

#include <cstddef>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "features/token.h"
#include "models/grab/model.h"

namespace backstory {

// Called between two steps of long work, on its thread and with its state's lease held: may do anything that neither
// waits for a state nor starts long work. May be empty.
using BetweenSteps = std::function<void()>;

// Rows of a channel that the next step takes when `before` are in: whole pages (128 rows), 512 at most and fewer the
// longer the history, since a row costs what is before it. At 16,384 rows one page.
size_t StepRows(size_t before);

// grab::Model::Extend to all of `tokens`, bit for bit the same state. One call if a step suffices or
// the model is quick (ExtendsAtOnce).
absl::Status ExtendInSteps(const grab::Model& model, std::span<const ChannelRows> tokens, grab::UserKv* kv,
                           const BetweenSteps& between);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXTEND_STEPS_H_
