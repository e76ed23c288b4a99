// A whole version directory of an untrained model, goldens included: what `backstory model init-random` writes.
#ifndef BACKSTORY_MODELS_GRAB_RANDOM_VERSION_H_
#define BACKSTORY_MODELS_GRAB_RANDOM_VERSION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/thread_pool.h"
#include "models/golden.h"
#include "models/grab/config.h"

namespace backstory::grab {

struct RandomVersionOptions {
  uint64_t seed = 1;
  int weight_files = 1;  // 1..99; tensors are dealt out in order of their names
  ThreadPool* pool = nullptr;
};

// Cases without logits: an empty history, a single event, ties with late and lone actions, a history beyond one page.
std::vector<GoldenCase> RandomGoldens(const Config& config, uint64_t seed);

// Writes `path`, which must not exist or be empty (ALREADY_EXISTS), MANIFEST last. Same configuration and seed, same
// files but for the last digits of the goldens' logits, which the machine's kernels decide. INVALID_ARGUMENT for a
// configuration that Validate refuses, errors of the file system with the path.
absl::Status WriteRandomVersion(const Config& config, const RandomVersionOptions& options, const std::string& path);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_RANDOM_VERSION_H_
