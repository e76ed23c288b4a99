#include "serving/rpc/server_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving/rpc/deadline.h"
#include "tests/models/temp_dir.h"

namespace backstory::rpc {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ServerConfig Minimal() {
  ServerConfig config;
  config.mutable_store()->set_directory("s");
  config.mutable_models()->set_directory("m");
  FillDefaults(&config);
  return config;
}

TEST(ServerConfig, MinimalHasNoProblems) { EXPECT_THAT(ConfigProblems(Minimal()), IsEmpty()); }

TEST(ServerConfig, UnknownAndRepeatedFieldsAreErrorsWithLine) {
  TempDir dir;
  ServerConfig config;
  WriteAll(dir.path("c"), "store {\n  directory: \"s\"\n  speed: 3\n}\n");
  EXPECT_THAT(std::string(ReadServerConfig(dir.path("c"), &config).message()), HasSubstr("c:3:"));
  WriteAll(dir.path("c"), "store {\n  directory: \"s\"\n  directory: \"t\"\n}\n");
  EXPECT_THAT(std::string(ReadServerConfig(dir.path("c"), &config).message()), HasSubstr("c:3:"));
  EXPECT_EQ(ReadServerConfig(dir.path("absent"), &config).code(), absl::StatusCode::kNotFound);
}

// Each change breaks one rule and must be named.
TEST(ServerConfig, EveryProblemIsNamed) {
  const std::vector<std::pair<std::string, std::function<void(ServerConfig*)>>> cases = {
      {"store.directory", [](auto* c) { c->mutable_store()->clear_directory(); }},
      {"models.directory", [](auto* c) { c->mutable_models()->clear_directory(); }},
      {"listen.port must be 0..65535", [](auto* c) { c->mutable_listen()->set_port(65'536); }},
      {"limits.max_message_bytes must be", [](auto* c) { c->mutable_limits()->set_max_message_bytes(10); }},
      // gRPC takes milliseconds as an int.
      {"limits.max_connection_age_s must be 1..2147483",
       [](auto* c) { c->mutable_limits()->set_max_connection_age_s(2'147'484); }},
      {"limits.max_connection_idle_s must be 1..2147483",
       [](auto* c) { c->mutable_limits()->set_max_connection_idle_s(2'147'484); }},
      {"limits.default_deadline_ms must be <= limits.max_deadline_ms",
       [](auto* c) { c->mutable_limits()->set_default_deadline_ms(40'000); }},
      {"tls.key_file must be set", [](auto* c) { c->mutable_tls()->set_certificate_file("x"); }},
      {"tls.certificate_file cannot be read", [](auto* c) { c->mutable_tls()->set_certificate_file("/nonexistent"); }},
      {"admin.roles_file", [](auto* c) { c->mutable_admin()->set_roles_file("/nonexistent"); }},
      {"store.slots[0].last must be", [](auto* c) { c->mutable_store()->add_slots()->set_last(16'384); }},
      {"store.slots[1] overlaps store.slots[0]",
       [](auto* c) {
         c->mutable_store()->add_slots()->set_last(10);
         c->mutable_store()->add_slots()->set_last(5);
       }},
      {"quotas[0].requests_per_s must be > 0", [](auto* c) { c->add_quotas()->set_namespace_("n"); }},
      {"parameters[\"history_rowz\"]", [](auto* c) { (*c->mutable_parameters())["history_rowz"] = "1"; }},
      {"parameters[\"threads\"]", [](auto* c) { (*c->mutable_parameters())["threads"] = "many"; }},
      {"log.level", [](auto* c) { c->mutable_log()->set_level("loud"); }},
  };
  for (const auto& [name, change] : cases) {
    ServerConfig config = Minimal();
    change(&config);
    EXPECT_THAT(ConfigProblems(config), Contains(HasSubstr(name)));
  }
}

TEST(ServerConfig, AllProblemsAtOnce) {
  ServerConfig config;
  FillDefaults(&config);
  config.mutable_log()->set_level("loud");
  EXPECT_EQ(ConfigProblems(config).size(), 3u);  // store, models, log level
}

TEST(ServerConfig, TokensMustNotTravelInPlaintext) {
  TempDir dir;
  WriteAll(dir.path("roles"), "token-sha256 " + std::string(64, 'a') + " reader\n");
  ServerConfig config = Minimal();
  config.mutable_admin()->set_roles_file(dir.path("roles"));
  EXPECT_THAT(ConfigProblems(config), IsEmpty());
  config.mutable_admin()->set_host("0.0.0.0");
  EXPECT_THAT(ConfigProblems(config), Contains(HasSubstr("plaintext")));
}

TEST(ServerConfig, PrintedConfigurationHidesTheHashKeyAndReadsBack) {
  ServerConfig config = Minimal();
  config.mutable_log()->set_user_hash_key("hush");
  const std::string text = ConfigText(config);
  EXPECT_THAT(text, ::testing::Not(HasSubstr("hush")));
  TempDir dir;
  WriteAll(dir.path("c"), text);
  ServerConfig again;
  ASSERT_TRUE(ReadServerConfig(dir.path("c"), &again).ok());
  EXPECT_EQ(again.listen().port(), 7070u);
}

TEST(Deadline, DefaultCapAndClient) {
  using std::chrono::milliseconds;
  const DeadlinePolicy policy{milliseconds(1'000), milliseconds(30'000)};
  const auto wall = std::chrono::system_clock::time_point(std::chrono::hours(400'000));
  const auto now = std::chrono::steady_clock::time_point(std::chrono::hours(1));
  const auto resolve = [&](auto client) { return ResolveDeadline(client, wall, now, policy) - now; };
  EXPECT_EQ(resolve(std::chrono::system_clock::time_point::max()), milliseconds(1'000));
  EXPECT_EQ(resolve(wall + milliseconds(250)), milliseconds(250));
  EXPECT_EQ(resolve(wall + std::chrono::hours(9)), milliseconds(30'000));
  EXPECT_EQ(resolve(wall - milliseconds(5)), milliseconds(-5));
}

}  // namespace
}  // namespace backstory::rpc
