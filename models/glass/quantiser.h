// Embedding -> semantic ID with frozen codebooks: how an item gets its SID that was not there at training.
#ifndef BACKSTORY_MODELS_GLASS_QUANTISER_H_
#define BACKSTORY_MODELS_GLASS_QUANTISER_H_

#include <array>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/glass/catalogue.h"
#include "models/glass/config.h"
#include "models/tensor_map.h"

namespace backstory::glass {

// Immutable, thread-safe.
class Quantiser {
 public:
  // The tensors of quantiser.safetensors (glass.proto). NOT_FOUND or INVALID_ARGUMENT naming the tensor. Without
  // codebooks where the configuration has no quantiser: then Encode refuses.
  static absl::StatusOr<Quantiser> Create(const Config& config, const TensorMap& tensors);

  // The SID of an embedding, and the item's tiers [levels[0]] (empty without SID-Tier). INVALID_ARGUMENT "embedding
  // ..." for another width than embedding_width or a number that is not finite; FAILED_PRECONDITION without a
  // quantiser.
  struct Encoded {
    Sid sid{};
    std::vector<uint8_t> tier_bins;
  };
  absl::StatusOr<Encoded> Encode(std::span<const float> embedding) const;

  std::span<const float> prototypes() const { return prototypes_; }  // [levels[0]][embedding_width]

 private:
  explicit Quantiser(const Config& config, std::vector<float> prototypes)
      : config_(config), prototypes_(std::move(prototypes)), tiers_(config_, prototypes_) {}

  struct Layer {
    size_t out = 0, in = 0;
    std::vector<float> w, b;  // [out][in], [out]
  };
  const Config config_;
  const std::vector<float> prototypes_;
  const TierTable tiers_;
  std::vector<Layer> encoder_;                         // ReLU between
  std::array<std::vector<float>, kLevels> codebooks_;  // [levels[l]][latent]
};

// What `sid_version` must be: 16 hex digits of the SHA-256 over codebooks, encoder, the catalogue's SIDs and the
// prototypes, as the trainer computes it (models/training/glass/sid.py: version).
std::string SidVersion(const TensorMap& quantiser, std::span<const Sid> sids);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_QUANTISER_H_
