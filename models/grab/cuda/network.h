// GRAB's scoring pass on the card: token rows and pages in, logits out. One launch sequence per number of rows,
// captured as a CUDA graph. Private to models/grab/cuda.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_NETWORK_H_
#define BACKSTORY_MODELS_GRAB_CUDA_NETWORK_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/gemm.h"
#include "models/grab/cuda/page_pool.h"
#include "models/grab/cuda/row_kernels.h"
#include "models/grab/cuda/visible_pages.h"
#include "models/grab/cuda/weights.h"

namespace backstory::grab {

// What one user's candidates see of one channel, with the pool's block ids.
struct CudaChannelPages {
  std::vector<cuda::PageEntry> entries;  // folded scratch blocks last
  std::vector<CudaFoldRow> folds;
};

struct CudaSegment {
  int first_row = 0;  // of the launch; a multiple of 4
  int rows = 0;
  std::vector<CudaChannelPages> channels;
};

// Working memory, stream and graphs of one pass at a time. Not thread-safe.
class CudaLane {
 public:
  virtual ~CudaLane() = default;
  // Token rows of the next launch, pinned: [row][widths.stride], columns beyond d zero.
  virtual float* rows() = 0;
  // [row][tasks] of the last launch.
  virtual const float* logits() const = 0;
  virtual void* stream() = 0;
  // Where the token rows go. If they are written there in stream order, say so: rows() is then not uploaded.
  virtual float* rows_on_card() = 0;
  bool rows_are_on_card = false;
  virtual void* workspace() = 0;  // CudaGemmLibrary::kWorkspaceBytes, of products enqueued on the stream
};

// Immutable, thread-safe for different lanes.
class CudaNetwork {
 public:
  static constexpr int kRowsMax = 8192;
  // Candidates per launch are rounded up to one of these.
  static int Bucket(int rows);

  // `pool` has the shape of the configuration's K/V (KvShape).
  static absl::StatusOr<std::unique_ptr<CudaNetwork>> Load(const Config& config, const TensorMap& tensors,
                                                           std::shared_ptr<CudaGemmLibrary> gemms,
                                                           std::shared_ptr<CudaPagePool> pool);
  static absl::StatusOr<CudaKvShape> KvShape(const Config& config);
  virtual ~CudaNetwork() = default;

  virtual const CudaWidths& widths() const = 0;
  virtual const CudaWeights& weights() const = 0;
  virtual size_t bytes() const = 0;
  virtual absl::StatusOr<std::unique_ptr<CudaLane>> NewLane() const = 0;
  // Scores rows [0, rows) <= kRowsMax of the lane and waits. RESOURCE_EXHAUSTED: too many pages or folded rows for one
  // launch, try fewer segments.
  virtual absl::Status Score(std::span<const CudaSegment> segments, int rows, CudaLane* lane) const = 0;
  // Chooses products and captures graphs for launches of up to `rows_max` rows, which the first Score of each number of
  // rows does otherwise.
  virtual absl::Status Warm(int rows_max, CudaLane* lane) const = 0;
  // Score in two steps that only enqueue, for benchmarks and for callers that wait themselves: inputs to the card, then
  // the pass. Run may be repeated. Before the next Prepare the stream must be idle.
  virtual absl::Status Prepare(std::span<const CudaSegment> segments, int rows, CudaLane* lane) const = 0;
  virtual absl::Status Run(CudaLane* lane) const = 0;
  virtual absl::Status Wait(CudaLane* lane) const = 0;
  // For benchmarks: the pass once more, launch by launch instead of as a graph, with a call after each step's launches
  // are enqueued on the lane's stream (its name: rows, project, attend, finish, head). After Run.
  virtual absl::Status RunBySteps(CudaLane* lane, const std::function<void(const char* step)>& after) const = 0;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_NETWORK_H_
