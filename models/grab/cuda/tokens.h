// The tokenizer network of candidates on the card: ids and numbers in, token rows out. The user side, one row, stays
// with the CPU (TokenNet::RunUser). Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/token.h"
#include "models/grab/config.h"
#include "models/grab/cuda/gemm.h"
#include "models/grab/token_net.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Tokens [first, first + count) become rows [row, row + count) of a launch.
struct CudaTokenSlice {
  const TokenColumns* item = nullptr;  // the item side of candidates, or history rows
  size_t first = 0, count = 0, row = 0;
  const TokenNet::UserPart* user = nullptr;
};

// Working memory of one launch at a time.
class CudaTokenLane {
 public:
  virtual ~CudaTokenLane() = default;
};

// Which network: of candidates (the full view), or of history rows (the partial view, which has no user side).
enum class CudaTokenView { kCandidates, kHistory };

// Immutable, thread-safe for different lanes.
class CudaTokens {
 public:
  // RESOURCE_EXHAUSTED if the item side's tables have more than `table_bytes_max` bytes or do not fit;
  // INVALID_ARGUMENT for a network that the kernels cannot do. `stride` is that of the rows.
  static absl::StatusOr<std::unique_ptr<CudaTokens>> Load(const Config& config, const TensorMap& tensors, int stride,
                                                          size_t table_bytes_max, std::shared_ptr<CudaDevice> device,
                                                          std::shared_ptr<CudaGemmLibrary> gemms,
                                                          CudaTokenView view = CudaTokenView::kCandidates);
  virtual ~CudaTokens() = default;
  virtual absl::StatusOr<std::unique_ptr<CudaTokenLane>> NewLane(size_t rows_max) const = 0;
  // Enqueues what writes `out` [rows][stride] (on the card); rows of no slice become those of an empty token. The
  // slices were checked. The stream must be idle: pinned memory is written. RESOURCE_EXHAUSTED: more ids or users than
  // the lane takes.
  virtual absl::Status Run(std::span<const CudaTokenSlice> slices, int rows, CudaTokenLane* lane, float* out,
                           void* workspace, void* stream) const = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_
