// Keys of the store. Users are named by a keyed hash: a key that lingers in a log or a file list does not tell who it
// was.
#ifndef BACKSTORY_STORE_KEYS_H_
#define BACKSTORY_STORE_KEYS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "store/history_store.h"

namespace backstory {

inline constexpr size_t kSecretBytes = 16;
inline constexpr size_t kUserHashBytes = 16;
inline constexpr size_t kUserPrefixBytes = 2 + kUserHashBytes;

// First 16 bytes of HMAC-SHA256(secret, length of ns, ns, user).
std::string UserHash(std::string_view secret, const UserKey& user);

// slot (2 bytes, big-endian), user hash: the first 18 bytes of every key that belongs to a user.
std::string UserPrefix(std::string_view secret, const UserKey& user);

// Key in `heads` of the mark that a deleted user leaves: slot, 'D', 8-byte id of the secret, user hash. 27 bytes, so it
// cannot equal a head's key.
std::string DeletedUserKey(std::string_view secret, const UserKey& user);
std::string SecretId(std::string_view secret);

// Keys in `history`: prefix 'B' time id of the first event of a block; prefix 'T' seq of a tail record.
struct BlockKey {
  int64_t time_us = 0;
  uint64_t event_id = 0;
  auto operator<=>(const BlockKey&) const = default;
};
std::string MakeBlockKey(std::string_view prefix, BlockKey key);
std::string MakeTailKey(std::string_view prefix, uint64_t seq);
inline bool IsBlockKey(std::string_view key) {
  return key.size() == kUserPrefixBytes + 17 && key[kUserPrefixBytes] == 'B';
}
inline bool IsTailKey(std::string_view key) {
  return key.size() == kUserPrefixBytes + 9 && key[kUserPrefixBytes] == 'T';
}
BlockKey ParseBlockKey(std::string_view key);  // IsBlockKey

}  // namespace backstory

#endif  // BACKSTORY_STORE_KEYS_H_
