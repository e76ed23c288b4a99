#include "features/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>

namespace backstory {

uint64_t HashBytes(std::string_view bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

uint64_t HashU64(uint64_t value, uint64_t seed) {
  std::array<unsigned char, 8> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

}  // namespace backstory
