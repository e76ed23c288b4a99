// Token rows of a history, made on the card for a prefill that takes them from pinned memory. Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_

#include <cstddef>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/tokens.h"

// As cuda_runtime.h declares it.
struct CUstream_st;

namespace backstory::grab {

// Thread-safe: callers take turns.
class CudaHistoryTokens {
 public:
  static constexpr size_t kRowsMax = 8192;  // of one launch
  // As CudaTokens::Load.
  static absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> Load(const Config& config, const TensorMap& tensors,
                                                                 int stride, std::shared_ptr<CudaTokenTables> tables,
                                                                 std::shared_ptr<CudaDevice> device,
                                                                 std::shared_ptr<CudaGemmLibrary> gemms);
  ~CudaHistoryTokens();
  // Rows [first, first + count) of checked columns to `out` [count][stride], and waits. Errors of the card;
  // RESOURCE_EXHAUSTED: more ids than a launch takes.
  absl::Status Run(const TokenColumns& tokens, size_t first, size_t count, float* out);
  size_t stride() const { return stride_; }

 private:
  CudaHistoryTokens(size_t stride, std::shared_ptr<CudaDevice> device) : stride_(stride), device_(std::move(device)) {}

  const size_t stride_;
  const std::shared_ptr<CudaDevice> device_;
  std::unique_ptr<CudaTokens> tokens_;
  std::mutex mutex_;
  std::unique_ptr<CudaTokenLane> lane_;  // guarded by mutex_, as all below
  CudaBuffer rows_, workspace_;
  CUstream_st* stream_ = nullptr;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
