// The tokenizer network of candidates or of history rows on the card: ids and numbers in, token rows out. The user
// side, one row, stays with the CPU (TokenNet::RunUser). Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

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
  const TokenColumns* item = nullptr;
  size_t first = 0, count = 0, row = 0;
  const TokenNet::UserPart* user = nullptr;  // null: there is no user side
};

// Embedding tables on the card, shared by the networks of a model. Not thread-safe; what Find gave lives as long as it.
class CudaTokenTables {
 public:
  // `bytes_max`: of all tables.
  CudaTokenTables(std::shared_ptr<CudaDevice> device, size_t bytes_max)
      : device_(std::move(device)), bytes_max_(bytes_max) {}
  // Copies the table to the card if it is not there. RESOURCE_EXHAUSTED: too large.
  absl::StatusOr<const float*> Find(const SparseFieldConfig& field, int embedding, const TensorMap& tensors);

 private:
  const std::shared_ptr<CudaDevice> device_;
  const size_t bytes_max_;
  size_t bytes_ = 0;
  std::map<std::string, CudaBuffer> tables_;
};

// Working memory of one launch at a time.
class CudaTokenLane {
 public:
  virtual ~CudaTokenLane() = default;
};

// Immutable, thread-safe for different lanes.
class CudaTokens {
 public:
  // Candidates multiply in bf16; history rows, which K/V are made of, in three parts of bf16, nearly fp32.
  enum class View { kCandidates, kHistory };
  // RESOURCE_EXHAUSTED if the item side's tables do not fit; INVALID_ARGUMENT for a network that the kernels cannot do.
  // `stride` is that of the rows.
  static absl::StatusOr<std::unique_ptr<CudaTokens>> Load(View view, const Config& config, const TensorMap& tensors,
                                                          int stride, std::shared_ptr<CudaTokenTables> tables,
                                                          std::shared_ptr<CudaDevice> device,
                                                          std::shared_ptr<CudaGemmLibrary> gemms);
  virtual ~CudaTokens() = default;
  virtual absl::StatusOr<std::unique_ptr<CudaTokenLane>> NewLane(size_t rows_max) const = 0;
  // Enqueues what writes `out` [rows][stride] (on the card); rows of no slice become those of an empty token. The
  // slices were checked. The lane's last launch must be over: pinned memory is written. RESOURCE_EXHAUSTED: more ids or
  // users than the lane takes.
  virtual absl::Status Run(std::span<const CudaTokenSlice> slices, int rows, CudaTokenLane* lane, float* out,
                           void* workspace, void* stream) const = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_TOKENS_H_
