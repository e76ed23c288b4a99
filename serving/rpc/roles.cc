#include "serving/rpc/roles.h"

#include <openssl/sha.h>

#include <fstream>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace backstory::rpc {
namespace {

constexpr size_t kTokenBytesMin = 16;

absl::string_view A(std::string_view s) { return {s.data(), s.size()}; }

// Lookup by digest: an attacker who times the map learns about the digest of a guess, not about the token.
std::string Sha256(std::string_view text) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

bool ParseRoles(std::string_view text, uint8_t* roles) {
  for (absl::string_view word : absl::StrSplit(A(text), ',')) {
    if (word == "reader") {
      *roles |= static_cast<uint8_t>(Role::kReader);
    } else if (word == "operator") {
      *roles |= static_cast<uint8_t>(Role::kOperator) | static_cast<uint8_t>(Role::kReader);
    } else if (word == "override") {
      *roles |= static_cast<uint8_t>(Role::kOverride);
    } else {
      return false;
    }
  }
  return true;
}

absl::StatusOr<std::string> TokenInFile(const std::string& path) {
  std::ifstream file(path);
  std::string token;
  if (!std::getline(file, token)) return absl::InvalidArgumentError(absl::StrCat("cannot read a token from ", path));
  absl::StripAsciiWhitespace(&token);
  if (token.size() < kTokenBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("token in ", path, " must have >= ", kTokenBytesMin, " bytes"));
  }
  return token;
}

bool IsHexDigest(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
}

}  // namespace

std::string_view RoleName(Role role) {
  switch (role) {
    case Role::kReader:
      return "reader";
    case Role::kOperator:
      return "operator";
    case Role::kOverride:
      return "override";
  }
  return "?";
}

bool IsLoopbackPeer(std::string_view peer) {
  const absl::string_view p = A(peer);
  return absl::StartsWith(p, "ipv4:127.") || absl::StartsWith(p, "ipv6:[::1]") ||
         absl::StartsWith(p, "ipv6:%5B::1%5D") || absl::StartsWith(p, "unix:");
}

RoleTable RoleTable::LoopbackOnly() {
  RoleTable table;
  table.loopback_ = 0xff;
  return table;
}

absl::StatusOr<RoleTable> RoleTable::Load(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read roles file ", path));
  std::stringstream text;
  text << file.rdbuf();
  return Parse(text.str(), path);
}

absl::StatusOr<RoleTable> RoleTable::Parse(std::string_view text, std::string_view source_name) {
  RoleTable table;
  int number = 0;
  for (absl::string_view raw : absl::StrSplit(A(text), '\n')) {
    ++number;
    const absl::string_view line = raw.substr(0, raw.find('#'));
    const std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    auto bad = [&](absl::string_view reason) {
      return absl::InvalidArgumentError(absl::StrCat(A(source_name), ":", number, ": ", reason));
    };
    const bool loopback = words[0] == "loopback";
    if (words.size() != (loopback ? 2u : 3u)) {
      return bad("expected: token-sha256 HEX ROLES | token-file PATH ROLES | cn NAME ROLES | loopback ROLES");
    }
    uint8_t roles = 0;
    if (!ParseRoles(words.back(), &roles)) {
      return bad(absl::StrCat("unknown role in \"", words.back(), "\": reader, operator, override exist"));
    }
    if (loopback) {
      table.loopback_ |= roles;
    } else if (words[0] == "cn") {
      table.names_[words[1]] |= roles;
    } else if (words[0] == "token-sha256") {
      if (!IsHexDigest(words[1])) return bad("token-sha256 must be followed by 64 hex digits");
      table.tokens_[absl::HexStringToBytes(words[1])] |= roles;
    } else if (words[0] == "token-file") {
      auto token = TokenInFile(words[1]);
      if (!token.ok()) return bad(token.status().message());
      table.tokens_[Sha256(*token)] |= roles;
    } else {
      return bad(absl::StrCat("unknown principal \"", words[0], "\": token-sha256, token-file, cn, loopback exist"));
    }
  }
  return table;
}

uint8_t RoleTable::RolesOf(const Caller& caller) const {
  uint8_t roles = caller.loopback ? loopback_ : 0;
  if (!caller.bearer_token.empty()) {
    if (auto it = tokens_.find(Sha256(caller.bearer_token)); it != tokens_.end()) roles |= it->second;
  }
  if (!caller.common_name.empty()) {
    if (auto it = names_.find(caller.common_name); it != names_.end()) roles |= it->second;
  }
  return roles;
}

absl::Status RoleTable::Require(const Caller& caller, Role role, std::string_view method) const {
  if (RolesOf(caller) & static_cast<uint8_t>(role)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(A(method), " needs the role \"", A(RoleName(role)), "\""));
}

}  // namespace backstory::rpc
