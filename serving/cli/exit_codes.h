// What every command shares: exit codes, and how a status becomes one.
#ifndef BACKSTORY_SERVING_CLI_EXIT_CODES_H_
#define BACKSTORY_SERVING_CLI_EXIT_CODES_H_

#include <string>

#include "absl/status/status.h"

namespace backstory {

// Documented in docs/reference/cli.md; scripts depend on them.
enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,
  kExitUsage = 2,
  kExitConfig = 3,        // configuration invalid
  kExitDamaged = 4,       // store or model files damaged
  kExitUnavailable = 5,   // server away, shedding or draining
  kExitInterrupted = 130,
};

int ExitCodeOf(const absl::Status& status);

// Ends the command: "backstory: message" on stderr, then the exit code. Throws CLI::RuntimeError, which only main catches.
[[noreturn]] void FailCommand(int exit_code, const std::string& message);
// Returns if the status is OK.
void CheckOk(const absl::Status& status, const std::string& doing = "");

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_EXIT_CODES_H_
