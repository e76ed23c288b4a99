// The hash of feature values: XXH3-64, one salt per embedding table. Persisted in trained weights and in golden vectors
// (tests/conformance/hash): a changed value here makes every shipped model wrong without an error.
#ifndef BACKSTORY_FEATURES_HASH_H_
#define BACKSTORY_FEATURES_HASH_H_

#include <cstdint>
#include <string_view>

namespace backstory {

// Bytes as they are; seed 0 gives the plain XXH3-64 used for non-decimal item ids and absent event ids.
uint64_t HashBytes(std::string_view bytes, uint64_t seed);

// The 8 little-endian bytes of `value`, on every machine.
uint64_t HashU64(uint64_t value, uint64_t seed);

// Salt of a field. It derives from the name of the field's embedding table and not from the field's own name, so that
// fields which share a table give one value one id.
inline uint64_t TableSalt(std::string_view table, uint64_t config_salt) { return HashBytes(table, config_salt); }

// A hash as a row of a table of `vocab` rows (>= 2); row 0 means "missing" and is never returned.
inline uint32_t TableRow(uint64_t hash, uint32_t vocab) { return static_cast<uint32_t>(hash % (vocab - 1)) + 1; }

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_HASH_H_
