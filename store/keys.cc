#include "store/keys.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "store/byte_io.h"

namespace backstory {

std::string UserHash(std::string_view secret, const UserKey& user) {
  std::string message;
  message.push_back(static_cast<char>(user.ns.size()));
  message += user.ns;
  message += user.user;
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest, &size);
  return std::string(reinterpret_cast<const char*>(digest), kUserHashBytes);
}

std::string UserPrefix(std::string_view secret, const UserKey& user) {
  std::string prefix;
  PutBig(&prefix, static_cast<uint64_t>(SlotOf(user.user)), 2);
  return prefix + UserHash(secret, user);
}

std::string SecretId(std::string_view secret) { return UserHash(secret, {"", "secret id"}).substr(0, 8); }

std::string DeletedUserKey(std::string_view secret, const UserKey& user) {
  std::string key;
  PutBig(&key, static_cast<uint64_t>(SlotOf(user.user)), 2);
  key.push_back('D');
  return key + SecretId(secret) + UserHash(secret, user);
}

std::string MakeBlockKey(std::string_view prefix, BlockKey key) {
  std::string out(prefix);
  out.push_back('B');
  PutBig(&out, static_cast<uint64_t>(key.time_us), 8);
  PutBig(&out, key.event_id, 8);
  return out;
}

std::string MakeTailKey(std::string_view prefix, uint64_t seq) {
  std::string out(prefix);
  out.push_back('T');
  PutBig(&out, seq, 8);
  return out;
}

BlockKey ParseBlockKey(std::string_view key) {
  const char* p = key.data() + kUserPrefixBytes + 1;
  return {static_cast<int64_t>(GetBig(p, 8)), GetBig(p + 8, 8)};
}

}  // namespace backstory
