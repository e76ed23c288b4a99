#include "serving/rpc/roles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/models/temp_dir.h"

namespace backstory::rpc {
namespace {

using ::testing::HasSubstr;

TEST(Roles, WithoutAFileLoopbackMayEverythingOthersNothing) {
  const RoleTable table = RoleTable::LoopbackOnly();
  for (Role role : {Role::kReader, Role::kOperator, Role::kOverride}) {
    EXPECT_TRUE(table.Require({.loopback = true}, role, "m").ok());
    EXPECT_EQ(table.Require({}, role, "m").code(), absl::StatusCode::kPermissionDenied);
    EXPECT_FALSE(table.Require({.bearer_token = "anything", .common_name = "anyone"}, role, "m").ok());
  }
}

TEST(Roles, OperatorIncludesReaderButNotOverride) {
  const auto table = RoleTable::Parse("cn ops operator\n", "roles");
  ASSERT_TRUE(table.ok());
  const Caller ops{.common_name = "ops"};
  EXPECT_TRUE(table->Require(ops, Role::kReader, "m").ok());
  EXPECT_TRUE(table->Require(ops, Role::kOperator, "m").ok());
  EXPECT_FALSE(table->Require(ops, Role::kOverride, "m").ok());
  // A name is no token, and an empty name is nobody.
  EXPECT_FALSE(table->Require({.bearer_token = "ops"}, Role::kReader, "m").ok());
  EXPECT_FALSE(table->Require({}, Role::kReader, "m").ok());
}

TEST(Roles, LinesAddUp) {
  const auto table = RoleTable::Parse("cn a reader # one\n\n  cn a override\nloopback reader\n", "roles");
  ASSERT_TRUE(table.ok());
  EXPECT_TRUE(table->Require({.common_name = "a"}, Role::kOverride, "m").ok());
  EXPECT_TRUE(table->Require({.common_name = "a"}, Role::kReader, "m").ok());
  EXPECT_TRUE(table->Require({.loopback = true}, Role::kReader, "m").ok());
  EXPECT_FALSE(table->Require({.loopback = true}, Role::kOperator, "m").ok());
}

TEST(Roles, RefusalsNameFileLineAndWord) {
  const auto refusal = [](const std::string& text) { return std::string(RoleTable::Parse(text, "f").status().message()); };
  EXPECT_THAT(refusal("cn a reader\ncn a boss\n"), HasSubstr("f:2: unknown role in \"boss\""));
  EXPECT_THAT(refusal("who a reader"), HasSubstr("f:1: unknown principal \"who\""));
  EXPECT_THAT(refusal("cn a"), HasSubstr("f:1: expected"));
  EXPECT_THAT(refusal("token-sha256 abc reader"), HasSubstr("64 hex digits"));
  EXPECT_THAT(refusal("token-file /nonexistent reader"), HasSubstr("/nonexistent"));
  TempDir dir;
  WriteAll(dir.path("short"), "tiny\n");
  EXPECT_THAT(refusal("token-file " + dir.path("short") + " reader"), HasSubstr(">= 16 bytes"));
  EXPECT_THAT(std::string(RoleTable::Load(dir.path("absent")).status().message()), HasSubstr("absent"));
}

TEST(Roles, LoopbackPeers) {
  for (const char* peer : {"ipv4:127.0.0.1:80", "ipv4:127.1.2.3:80", "ipv6:%5B::1%5D:80", "ipv6:[::1]:80", "unix:/s"}) {
    EXPECT_TRUE(IsLoopbackPeer(peer)) << peer;
  }
  for (const char* peer : {"ipv4:10.0.0.1:80", "ipv4:1.127.0.1:80", "ipv6:[2001::1]:80", "", "ipv6:%5B::ffff:127.0.0.1%5D:1"}) {
    EXPECT_FALSE(IsLoopbackPeer(peer)) << peer;
  }
}

}  // namespace
}  // namespace backstory::rpc
