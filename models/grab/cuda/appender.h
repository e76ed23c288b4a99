// Appends of a few rows: what append.h's launch needs, packed into one upload. Private to prefill.cc.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_APPENDER_H_
#define BACKSTORY_MODELS_GRAB_CUDA_APPENDER_H_

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/config.h"
#include "models/grab/cuda/append.h"
#include "models/grab/cuda/page_pool.h"
#include "models/grab/cuda/prefill.h"

namespace backstory::grab {

// Working memory of one append at a time. Not thread-safe.
class CudaAppender {
 public:
  // `weights` and `pool` outlive it.
  static absl::StatusOr<std::unique_ptr<CudaAppender>> Create(const Config& config, const CudaWeights* weights,
                                                              CudaPagePool* pool);
  virtual ~CudaAppender() = default;
  // Whether these rows are few, of few ties, and of widths that the launch takes.
  virtual bool Takes(std::span<const CudaHistory> channels) const = 0;
  // Uploads, then enqueues the launch. `stream` is a cudaStream_t; before the next Upload it must be idle.
  virtual absl::Status Upload(std::span<const CudaHistory> channels, const CudaPrefill::Tokens& tokens,
                              void* stream) = 0;
  virtual absl::Status Launch(void* stream) = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_APPENDER_H_
