// A whole GLASS version with random weights, codebooks and items: what `backstory model init-random glass-released`
// writes for load tests, and what tests take apart. Recommendations mean nothing; time and memory are those of a
// trained one.
#ifndef BACKSTORY_MODELS_GLASS_RANDOM_VERSION_H_
#define BACKSTORY_MODELS_GLASS_RANDOM_VERSION_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/glass/config.h"
#include "models/tensor_map.h"

namespace backstory::glass {

// Everything a version is made of, open to edits before it is written.
struct VersionParts {
  Config config;
  TensorMap weights;
  std::map<std::string, std::vector<float>> quantiser;
  std::vector<float> embeddings;   // [items][embedding_width]: not in the files; what the SIDs were made of
  std::vector<int64_t> item_ids;   // ascending
  std::vector<Sid> sids;           // one per item
  std::vector<uint8_t> tier_bins;  // [items][levels[0]]; empty without SID-Tier
  std::vector<float> prior;        // one per item
  std::string extra_config;        // appended to model.textproto
  std::string goldens;             // goldens.jsonl
  int64_t sid_columns = static_cast<int64_t>(kLevels);
};

// Every tensor of the configuration, spread by its fan-in: well conditioned, also for bf16. Same configuration and
// seed, same numbers with the same standard library.
TensorMap RandomTensors(const Config& config, uint32_t seed);
TensorMap QuantiserTensors(const VersionParts& parts);
// goldens.jsonl as this build answers: what it proves is that what is loaded is what was written.
absl::StatusOr<std::string> RandomGoldens(const VersionParts& parts);

// Item i has id first_id + i * id_step. `config` needs a quantiser of kind RQ k-means with a latent as wide as
// embeddings. Errors are those of the parts.
absl::StatusOr<VersionParts> RandomParts(const Config& config, size_t items, uint32_t seed, int64_t first_id = 1,
                                         int64_t id_step = 1);
// Writes <path>, MANIFEST last.
absl::Status WriteParts(const VersionParts& parts, const std::string& path);

//   glass-released  d 96, 6 heads x 32, FFN 1024, 4 + 4 layers, 151 slots, levels [64, 128, 128], beam 20: the public
//   code's
//                   size. Behaviours are ratings of 4 or more
//   glass-tiny      d 16, 1 + 1 layers: for tests, loads in milliseconds
// NOT_FOUND listing the names.
absl::StatusOr<Config> PresetConfig(std::string_view name);
std::vector<std::string> PresetNames();

// Items 1..items. ALREADY_EXISTS if `path` exists and is no empty directory.
absl::Status WriteRandomVersion(const Config& config, size_t items, uint32_t seed, const std::string& path);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_RANDOM_VERSION_H_
