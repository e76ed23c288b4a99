// The hash that randomises units. Integers only, so that every language gets the same bucket. Persisted in what users
// have seen: hash version 1 never changes (golden vectors: tests/conformance/experiments); another hash is another
// version, beside it.
//
//   version 1:  seed   = XXH3-64(salt bytes, seed 0)
//               bucket = XXH3-64(unit bytes, seed) mod 10,000
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_BUCKET_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_BUCKET_H_

#include <cstdint>
#include <string_view>

#include "features/hash.h"

namespace backstory {

inline constexpr int kBuckets = 10'000;
inline constexpr int64_t kHashVersion = 1;

inline uint64_t BucketSeed(std::string_view salt) { return HashBytes(salt, 0); }
inline int BucketOf(uint64_t seed, std::string_view unit) { return static_cast<int>(HashBytes(unit, seed) % kBuckets); }

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_BUCKET_H_
