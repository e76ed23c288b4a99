// Prefills of a model side by side: while the card computes one user's K/V, the host prepares another's. Token rows are
// made on the card where it has the tables. Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_PREFILLS_H_
#define BACKSTORY_MODELS_GRAB_CUDA_PREFILLS_H_

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/history_tokens.h"
#include "models/grab/cuda/prefill.h"
#include "models/grab/user_kv.h"

namespace backstory::grab {

// Thread-safe.
class CudaPrefills {
 public:
  static constexpr size_t kSideBySide = 3;  // fewer where memory does not suffice, at least one

  // `weights` outlives it. Without `tokens`, or where their memory does not fit, the host makes all token rows. Errors
  // of the first prefill.
  static absl::StatusOr<std::unique_ptr<CudaPrefills>> Create(const Config& config, const CudaWeights* weights,
                                                              std::shared_ptr<CudaGemmLibrary> gemms,
                                                              std::shared_ptr<CudaPagePool> pool,
                                                              std::unique_ptr<CudaHistoryTokens> tokens);
  // As CudaPrefill::Append. `tokens`: of all rows of each channel, checked; `on_host` makes the rows that the card does
  // not: those of appends of a few, and of more ids than it takes.
  absl::Status Append(std::span<const CudaHistory> channels, std::span<const ChannelRows> tokens,
                      const CudaPrefill::Tokens& on_host);
  // Why the host makes all token rows, if memory for them was wanting.
  const absl::Status& no_tokens() const { return no_tokens_; }

 private:
  struct Place {
    std::unique_ptr<CudaPrefill> prefill;
    std::unique_ptr<CudaHistoryTokens::Lane> tokens;  // null: the host makes token rows
  };

  std::unique_ptr<CudaHistoryTokens> tokens_;
  absl::Status no_tokens_;
  std::mutex mutex_;
  std::condition_variable given_;
  std::vector<Place> free_;  // guarded by mutex_
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_PREFILLS_H_
