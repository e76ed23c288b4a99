// The architecture of one GLASS version as values: everything on which the paper and its public code differ is a field.
#ifndef BACKSTORY_MODELS_GLASS_CONFIG_H_
#define BACKSTORY_MODELS_GLASS_CONFIG_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "features/event.h"

namespace backstory::glass {

inline constexpr size_t kLevels = 3;

// Codes of an item, coarse to fine.
using Sid = std::array<uint16_t, kLevels>;

enum class TokenLayout { kStrided, kDense };  // level offsets 1 + l * largest level, or one level after the other
enum class TierSimilarity { kDot, kCosine };
enum class TierPosition { kFirst, kLast };
enum class GateInput { kState, kMemory };  // what the gate reads beside the retrieved branch

// An action of this type with min_value <= value < max_value is a behaviour.
struct HistoryRule {
  ActionType action = ActionType::kNone;
  float min_value = -3.4e38f;
  float max_value = 3.4e38f;
};

enum class QuantiserKind { kNone, kRqVae, kRqKMeans };  // kNone: no new item can be encoded

struct Config {
  std::string name;  // model name, [a-z0-9_-]{1,64}

  int d = 96;
  int heads = 6;
  int d_kv = 32;
  int ffn = 1024;
  int encoder_layers = 4;
  int decoder_layers = 4;
  int relative_buckets = 32;  // a multiple of 4: half of them for later keys, each half exact, then logarithmic
  int relative_distance_max = 128;

  std::array<int, kLevels> levels{64, 128, 128};  // codebook sizes
  TokenLayout tokens = TokenLayout::kStrided;
  int vocabulary = 1000;  // softmax width; more than the last token

  std::vector<HistoryRule> history;  // which actions are behaviours; none = every action
  int short_items = 50;              // newest behaviours, read by the encoder
  int long_items = 0;                // older ones that are kept; 0 = all
  int retrieved_items = 30;          // of a bucket, newest; 0 = no search
  int neighbours = 0;                // nearest codes that help out a bucket of fewer than neighbour_below items
  int neighbour_below = 8;
  std::vector<float> tier_edges{-1.0f, -0.1f, 0.0f, 0.1f, 1.0f};  // rising; empty = no SID-Tier token
  TierSimilarity tier_similarity = TierSimilarity::kDot;
  TierPosition tier_position = TierPosition::kFirst;
  GateInput gate_input = GateInput::kState;

  int beam = 20;                     // default width
  double first_step_epsilon = 1e-9;  // > 0: the first step scores log(p + epsilon)
  int embedding_width = 128;         // of item embeddings and prototypes
  std::string embedding_space;       // what they are of, e.g. the encoder's name; empty: not known
  QuantiserKind quantiser = QuantiserKind::kNone;
  std::vector<int> quantiser_hidden;  // widths between embedding and latent
  int quantiser_latent = 0;           // width of a code
  std::string sid_version;            // 16 hex digits over SIDs, codebooks and prototypes

  size_t bins() const { return tier_edges.empty() ? 0 : tier_edges.size() - 1; }
  size_t inner() const { return static_cast<size_t>(heads) * static_cast<size_t>(d_kv); }
  uint32_t stride() const { return static_cast<uint32_t>(*std::max_element(levels.begin(), levels.end())); }
  // Token of code 0 of a level; a code's token is that plus the code. Token 0 is the pad.
  uint32_t offset(size_t level) const {
    if (tokens == TokenLayout::kStrided) return 1 + static_cast<uint32_t>(level) * stride();
    uint32_t sum = 1;
    for (size_t l = 0; l < level; ++l) sum += static_cast<uint32_t>(levels[l]);
    return sum;
  }
  // First decoder input. Strided: the id of the last code of level 3 too, as in the public code.
  uint32_t bos() const {
    return tokens == TokenLayout::kStrided ? 3 * stride() : offset(2) + static_cast<uint32_t>(levels[2]);
  }
  // Encoder slots: the tier token and three per short behaviour.
  size_t slots() const { return (tier_edges.empty() ? 0 : 1) + kLevels * static_cast<size_t>(short_items); }
};

// INVALID_ARGUMENT naming the field and the limit.
absl::Status Validate(const Config& config);

// Whether an event belongs to the history that the model reads; that its item has a SID is for the caller to see.
bool IsBehaviour(const Config& config, const Event& event);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CONFIG_H_
