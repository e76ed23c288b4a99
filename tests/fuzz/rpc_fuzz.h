// Arbitrary bytes through a request's parser and its handler. The first byte chooses the method.
#ifndef BACKSTORY_TESTS_FUZZ_RPC_FUZZ_H_
#define BACKSTORY_TESTS_FUZZ_RPC_FUZZ_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace backstory {

inline constexpr int kFuzzedMethods = 16;

// Runs one input against a server core in memory (made at the first call, kept). Returns the method's status, or
// INVALID_ARGUMENT if the bytes are no message. Aborts if a handler breaks its promise: UNKNOWN, or a score column that
// does not match the candidates or is not finite.
absl::Status RunRpcInput(const uint8_t* data, size_t size);

}  // namespace backstory

#endif  // BACKSTORY_TESTS_FUZZ_RPC_FUZZ_H_
