// Who may call what. A principal (bearer token, client certificate, loopback peer) has roles; a method asks for one.
// Pure: the file is parsed once, decisions read a snapshot of the caller.
#ifndef BACKSTORY_SERVING_RPC_ROLES_H_
#define BACKSTORY_SERVING_RPC_ROLES_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory::rpc {

enum class Role : uint8_t {
  kReader = 1,    // admin methods that change nothing
  kOperator = 2,  // admin methods that change something
  kOverride = 4,  // parameter overrides on Ranking.Rank
};
std::string_view RoleName(Role role);

// What is known of a caller.
struct Caller {
  std::string bearer_token;  // of metadata "authorization: Bearer ...", empty = none
  std::string common_name;   // of a client certificate that the transport verified, empty = none
  bool loopback = false;     // 127.0.0.0/8, ::1 or a Unix socket
};

// "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:/path" as gRPC prints peers.
bool IsLoopbackPeer(std::string_view peer);

// Text, one principal a line, '#' starts a comment:
//   token-sha256 <64 hex digits>  <role>[,<role>...]
//   token-file   <path>           <role>[,<role>...]   the file's first line is the token
//   cn           <common name>    <role>[,<role>...]
//   loopback                      <role>[,<role>...]
// Roles: reader, operator (includes reader), override.
class RoleTable {
 public:
  // Without a file: loopback callers have every role, others none.
  static RoleTable LoopbackOnly();
  // INVALID_ARGUMENT naming file, line and word.
  static absl::StatusOr<RoleTable> Load(const std::string& path);
  static absl::StatusOr<RoleTable> Parse(std::string_view text, std::string_view source_name);

  // PERMISSION_DENIED naming `method` and the role; OK if the caller has it.
  absl::Status Require(const Caller& caller, Role role, std::string_view method) const;
  bool HasTokens() const { return !tokens_.empty(); }

 private:
  uint8_t RolesOf(const Caller& caller) const;

  std::map<std::string, uint8_t> tokens_;  // SHA-256 of the token -> roles; tokens themselves are not kept
  std::map<std::string, uint8_t> names_;
  uint8_t loopback_ = 0;
};

}  // namespace backstory::rpc

#endif  // BACKSTORY_SERVING_RPC_ROLES_H_
