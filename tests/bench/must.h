// For benchmarks: the value, or the end of the program with the status on stderr.
#ifndef BACKSTORY_TESTS_BENCH_MUST_H_
#define BACKSTORY_TESTS_BENCH_MUST_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

inline void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

}  // namespace backstory

#endif  // BACKSTORY_TESTS_BENCH_MUST_H_
