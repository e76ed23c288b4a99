// Token rows of history on the card: what prefill starts from, in bf16 as candidates' are. On a CPU they cost ten times
// what prefill itself costs on the card (tests/bench/RESULTS.md). Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/token.h"
#include "models/grab/config.h"
#include "models/grab/cuda/gemm.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Working memory and stream of one call at a time: callers take turns by themselves.
class CudaHistoryTokens {
 public:
  // Fewer rows than this are as quick on the CPU.
  static constexpr size_t kRowsMin = 64;

  // Errors of CudaTokens::Load and of allocations; then the CPU makes the rows.
  static absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> Create(const Config& config, const TensorMap& tensors,
                                                                   int stride, size_t table_bytes_max,
                                                                   std::shared_ptr<CudaDevice> device,
                                                                   std::shared_ptr<CudaGemmLibrary> gemms);
  virtual ~CudaHistoryTokens() = default;
  // Rows [first, first + count) of checked columns -> `out` [count][stride], page-locked memory; waits.
  // RESOURCE_EXHAUSTED: more ids than it takes at once.
  virtual absl::Status Run(const TokenColumns& tokens, size_t first, size_t count, float* out) = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
