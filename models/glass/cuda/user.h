// What a card reads of a user: the short window, tier features, and what each first-level code would retrieve. Plain
// C++.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_USER_H_
#define BACKSTORY_MODELS_GLASS_CUDA_USER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "models/glass/beam_search.h"
#include "models/glass/catalogue.h"
#include "models/glass/config.h"
#include "models/glass/history.h"

namespace backstory::glass {

// Immutable once made; depends on history, catalogue and configuration alone, so that it may be kept with a user's
// state and shared by requests and threads.
struct CudaUser {
  // A distinct token that a code retrieves. `place` numbers the tokens of the three levels densely: codes of the levels
  // before, plus its own code.
  static constexpr uint32_t kCountBits = 12;
  static uint32_t Pack(uint32_t place, uint32_t count) { return place << kCountBits | count; }

  std::vector<uint32_t> short_tokens;  // at most 3 short_items, oldest first, no padding in front; 0: a pad in place
  std::vector<float> tier;             // [levels[0] * bins]
  std::vector<uint32_t> begin;         // [levels[0] + 1]: of a code's members; empty without a search
  std::vector<uint32_t> members;       // Pack(place, count), ascending by place; a code without any has an empty bucket
  size_t bytes() const {
    return (short_tokens.size() + tier.size() + begin.size() + members.size()) * sizeof(uint32_t);
  }
};

// Asks `buckets` once for every first-level code.
CudaUser MakeCudaUser(const Config& config, std::vector<uint32_t> short_tokens, std::vector<float> tier,
                      const BucketTokens& buckets);
CudaUser MakeCudaUser(const Catalogue& catalogue, const History& history);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CUDA_USER_H_
