#include "serving/cli/exit_codes.h"

#include <iostream>

#include "CLI/Error.hpp"

namespace backstory {

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kDataLoss:
      return kExitDamaged;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailed;
  }
}

void FailCommand(int exit_code, const std::string& message) {
  std::cerr << "backstory: " << message << "\n";
  throw CLI::RuntimeError(exit_code);
}

void CheckOk(const absl::Status& status, const std::string& doing) {
  if (status.ok()) return;
  const std::string code = absl::StatusCodeToString(status.code());
  FailCommand(ExitCodeOf(status), (doing.empty() ? "" : doing + ": ") + code + ": " + std::string(status.message()));
}

}  // namespace backstory
