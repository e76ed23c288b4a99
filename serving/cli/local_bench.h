// What `bench kernels` and `bench model` share: timing in process, and the machine's bounds beside it.
#ifndef BACKSTORY_SERVING_CLI_LOCAL_BENCH_H_
#define BACKSTORY_SERVING_CLI_LOCAL_BENCH_H_

#include <cstddef>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace backstory {

// Wall time of one call, in seconds.
struct Timing {
  double median = 0;
  double least = 0;
  size_t samples = 0;
};

// Calls fn twice unmeasured, then until `seconds` have passed and at least 7 samples are taken, 10,000 at most. Calls
// shorter than 50 us are timed several to a sample.
Timing TimeCalls(double seconds, const std::function<void()>& fn);

// Operations per second of this build's own GEMM (128 x 256 x 256 on every thread at once): the rate that a pass made
// of dense products alone would reach. 0.2 s.
double GemmFlops(Dtype dtype, ThreadPool* pool);

const char* PrecisionName(Dtype dtype);

// Machine, build, kernel target, bounds of one core: first in every report.
nlohmann::ordered_json MachineReport();
void PrintMachineReport();

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_LOCAL_BENCH_H_
