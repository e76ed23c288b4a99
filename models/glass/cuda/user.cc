#include "models/glass/cuda/user.h"

#include <algorithm>
#include <array>
#include <utility>

namespace backstory::glass {

CudaUser MakeCudaUser(const Config& config, std::vector<uint32_t> short_tokens, std::vector<float> tier,
                      const BucketTokens& buckets) {
  CudaUser user;
  user.short_tokens = std::move(short_tokens);
  user.tier = std::move(tier);
  if (config.retrieved_items == 0) return user;
  std::array<uint32_t, kLevels> first_place{};
  for (size_t l = 1; l < kLevels; ++l)
    first_place[l] = first_place[l - 1] + static_cast<uint32_t>(config.levels[l - 1]);
  std::vector<uint32_t> places;
  user.begin.push_back(0);
  for (int code = 0; code < config.levels[0]; ++code) {
    places.clear();
    for (const uint32_t token : buckets(static_cast<uint16_t>(code))) {
      for (size_t l = kLevels; l-- > 0;) {
        if (token < config.offset(l)) continue;
        const uint32_t of_level = token - config.offset(l);  // pads are below every level
        if (of_level < static_cast<uint32_t>(config.levels[l])) places.push_back(first_place[l] + of_level);
        break;
      }
    }
    std::sort(places.begin(), places.end());
    for (size_t i = 0; i < places.size(); ++i) {
      if (i > 0 && places[i] == places[i - 1]) {
        ++user.members.back();
      } else {
        user.members.push_back(CudaUser::Pack(places[i], 1));
      }
    }
    user.begin.push_back(static_cast<uint32_t>(user.members.size()));
  }
  return user;
}

CudaUser MakeCudaUser(const Catalogue& catalogue, const History& history) {
  const Config& config = catalogue.config();
  std::vector<float> tier(static_cast<size_t>(config.levels[0]) * config.bins());
  history.TierFeatures(tier.data());
  return MakeCudaUser(config, history.ShortTokens(), std::move(tier), BucketsOf(catalogue, history));
}

}  // namespace backstory::glass
