// Synthetic users as files in import format, labelled as what they are.
#ifndef BACKSTORY_SERVING_CLI_SYNTH_FILES_H_
#define BACKSTORY_SERVING_CLI_SYNTH_FILES_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "serving/cli/synth_user.h"

namespace backstory {

struct SynthCounts {
  uint64_t users = 0, items = 0, events = 0, exposures = 0, clicks = 0;
};

// Writes items.csv and events.csv into `directory` (made if absent); the first line of each says SYNTHETIC and how it
// was made. Same options, same bytes. `progress(done, total)` counts users.
absl::StatusOr<SynthCounts> WriteSynthFiles(const SynthOptions& options, uint64_t users, const std::string& directory,
                                            const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SYNTH_FILES_H_
