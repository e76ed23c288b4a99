#include "store/keys.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <cstdlib>
#include <memory>

#include "store/byte_io.h"

namespace backstory {
namespace {

// HMAC-SHA256 under one key at a time. OpenSSL looks its algorithms up by name for every HMAC(), which takes ten times
// as long as the hash of a user id: a thread keeps what was found, and the key it was last used with.
class KeyedHash {
 public:
  KeyedHash() : mac_(EVP_MAC_fetch(nullptr, OSSL_MAC_NAME_HMAC, nullptr)), context_(EVP_MAC_CTX_new(mac_.get())) {}

  // The first kUserHashBytes bytes.
  std::string Of(std::string_view key, std::string_view message) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    size_t size = 0;
    bool ok = mac_ != nullptr && context_ != nullptr && Start(key);
    ok = ok && EVP_MAC_update(context_.get(), reinterpret_cast<const unsigned char*>(message.data()), message.size());
    ok = ok && EVP_MAC_final(context_.get(), digest, &size, sizeof(digest));
    // It fails for want of memory or of a sound libcrypto: no key may ever be made of anything else.
    if (!ok || size < kUserHashBytes) std::abort();
    return std::string(reinterpret_cast<const char*>(digest), kUserHashBytes);
  }

 private:
  bool Start(std::string_view key) {
    if (keyed_ && key == key_) return EVP_MAC_init(context_.get(), nullptr, 0, nullptr);  // the same key again
    char sha256[] = "SHA256";
    const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, sha256, 0),
                                     OSSL_PARAM_construct_end()};
    key_ = key;
    keyed_ = EVP_MAC_init(context_.get(), reinterpret_cast<const unsigned char*>(key_.data()), key_.size(), parameters);
    return keyed_;
  }

  struct Free {
    void operator()(EVP_MAC* mac) const { EVP_MAC_free(mac); }
    void operator()(EVP_MAC_CTX* context) const { EVP_MAC_CTX_free(context); }
  };
  const std::unique_ptr<EVP_MAC, Free> mac_;
  const std::unique_ptr<EVP_MAC_CTX, Free> context_;
  std::string key_;
  bool keyed_ = false;
};

}  // namespace

std::string UserHash(std::string_view secret, const UserKey& user) {
  std::string message;
  message.push_back(static_cast<char>(user.ns.size()));
  message += user.ns;
  message += user.user;
  thread_local KeyedHash hash;
  return hash.Of(secret, message);
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
