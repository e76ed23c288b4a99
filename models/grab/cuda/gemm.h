// Matrix products on the card by cuBLASLt, found at run time so that a server starts on machines without it.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_GEMM_H_
#define BACKSTORY_MODELS_GRAB_CUDA_GEMM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/device.h"

namespace backstory::grab {

// Y = X W^T (+ Y) (+ bias) (relu), for `batch` problems side by side. All row-major; W is [n][k].
struct CudaGemmShape {
  int m = 0, n = 0, k = 0;
  int batch = 1;
  int ldx = 0, ldy = 0;                              // elements; W's rows are k apart
  int64_t x_stride = 0, w_stride = 0, y_stride = 0;  // elements between problems
  int64_t bias_stride = 0;
  bool output_is_float = false;  // else bf16; the bias is of the same type
  bool add_to_output = false;
  bool bias = false;
  bool relu = false;  // with bias
};

// One per card. Thread-safe.
class CudaGemmLibrary {
 public:
  // FAILED_PRECONDITION naming the library or the symbol that is missing.
  static absl::StatusOr<std::shared_ptr<CudaGemmLibrary>> Open(std::shared_ptr<CudaDevice> device);
  virtual ~CudaGemmLibrary() = default;
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;
};

// A product whose algorithm has been chosen. Run may be captured into a graph.
class CudaGemm {
 public:
  // INTERNAL if the library knows no way to compute it.
  static absl::StatusOr<std::unique_ptr<CudaGemm>> Create(std::shared_ptr<CudaGemmLibrary> library,
                                                          const CudaGemmShape& shape);
  virtual ~CudaGemm() = default;
  // `workspace`: kWorkspaceBytes that no product running at the same time uses. `stream` is a cudaStream_t.
  virtual absl::Status Run(const void* x, const void* w, const void* bias, void* y, void* workspace,
                           void* stream) const = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_GEMM_H_
