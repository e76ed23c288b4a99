// History rows through the layers on the card, into the K/V pool: a whole history at once or one row more. The last
// layer computes K and V alone. Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_PREFILL_H_
#define BACKSTORY_MODELS_GRAB_CUDA_PREFILL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/config.h"
#include "models/grab/cuda/gemm.h"
#include "models/grab/cuda/page_pool.h"
#include "models/grab/cuda/weights.h"
#include "models/grab/key_runs.h"

namespace backstory::grab {

// One channel's history. Rows [0, first) have their K/V in `blocks`; rows [first, rows) get them.
struct CudaHistory {
  size_t first = 0, rows = 0;
  std::span<const int32_t> blocks;  // of all pages
  RowIndex facts;                   // of all rows
  std::span<const int32_t> action;  // of all rows
};

// Working memory and stream of one prefill at a time. Thread-safe: callers take turns.
class CudaPrefill {
 public:
  static constexpr size_t kRowsMax = size_t{1} << 18;  // of a channel
  static constexpr size_t kChunkRows = 8192;           // of a channel in one pass through the layers

  // As many rows as products are asked for when they have 1..kChunkRows: each number's algorithm is chosen once.
  static int PaddedRows(size_t rows);

  // Token rows [first, first + count) of a channel, to `out` [count][d] with `stride` floats from row to row.
  using Tokens = std::function<void(size_t channel, size_t first, size_t count, size_t stride, float* out)>;
  // The same on the card: enqueues on `stream` what writes `out`, of PaddedRows(count) rows of the prefill's stride.
  // `workspace` is that of products. RESOURCE_EXHAUSTED: these rows are the host's to make.
  using CardTokens = std::function<absl::Status(size_t channel, size_t first, size_t count, float* out, void* workspace,
                                                void* stream)>;

  // `weights` outlives it.
  static absl::StatusOr<std::unique_ptr<CudaPrefill>> Create(const Config& config, const CudaWeights* weights,
                                                             std::shared_ptr<CudaGemmLibrary> gemms,
                                                             std::shared_ptr<CudaPagePool> pool);
  virtual ~CudaPrefill() = default;
  // Waits until the K/V are there. `on_card` may be null; appends of a few rows do not ask it. RESOURCE_EXHAUSTED
  // beyond kRowsMax rows; errors of the card.
  virtual absl::Status Append(std::span<const CudaHistory> channels, const Tokens& tokens,
                              const CardTokens& on_card) = 0;
  absl::Status Append(std::span<const CudaHistory> channels, const Tokens& tokens) {
    return Append(channels, tokens, nullptr);
  }
  // From the begin of the last Append's first pass to the end of its last, tokens of later chunks included: for
  // benchmarks.
  virtual double last_milliseconds() const = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_PREFILL_H_
