// Token rows of histories, made on the card where a prefill reads them: on a CPU they take ten times what prefill
// itself takes on the card. Nearly fp32 (CudaTokens::View::kHistory), as the CPU's are, for K/V depend on them.
// Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/tokens.h"

// As cuda_runtime.h declares it.
struct CUevent_st;

namespace backstory::grab {

// Immutable, thread-safe for different lanes.
class CudaHistoryTokens {
 public:
  static constexpr size_t kRowsMax = 8192;  // of one call

  // Working memory of one prefill. Two sets in turn: one is filled while the card reads the other.
  class Lane {
   public:
    ~Lane();

   private:
    friend class CudaHistoryTokens;
    struct Set {
      std::unique_ptr<CudaTokenLane> memory;
      CUevent_st* done = nullptr;  // behind the last call
    };
    Set sets_[2];
    size_t next_ = 0;
  };

  // As CudaTokens::Load.
  static absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> Load(const Config& config, const TensorMap& tensors,
                                                                 int stride, std::shared_ptr<CudaTokenTables> tables,
                                                                 std::shared_ptr<CudaDevice> device,
                                                                 std::shared_ptr<CudaGemmLibrary> gemms);
  // RESOURCE_EXHAUSTED; errors of the card.
  absl::StatusOr<std::unique_ptr<Lane>> NewLane() const;
  // Enqueues what writes rows [first, first + count) of checked columns to `out` (on the card): `count` rounded up as
  // CudaPrefill::PaddedRows does, `stride` floats each. Waits for the call before the last on the lane. Errors of the
  // card; RESOURCE_EXHAUSTED: more ids than a call takes. Nothing of a call that failed is still running.
  absl::Status Run(const TokenColumns& tokens, size_t first, size_t count, Lane* lane, float* out, void* workspace,
                   void* stream) const;

 private:
  explicit CudaHistoryTokens(std::shared_ptr<CudaDevice> device) : device_(std::move(device)) {}

  const std::shared_ptr<CudaDevice> device_;
  std::unique_ptr<CudaTokens> tokens_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HISTORY_TOKENS_H_
