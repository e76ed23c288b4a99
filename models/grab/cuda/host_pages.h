// The second tier of a K/V pool: blocks in pinned host memory, and the two streams that carry blocks to it and back.
// Private to page_pool.cc, which decides who moves.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_HOST_PAGES_H_
#define BACKSTORY_MODELS_GRAB_CUDA_HOST_PAGES_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/device.h"
#include "models/grab/cuda/state_cost.h"

// As cuda_runtime.h declares them.
struct CUstream_st;
struct CUevent_st;

namespace backstory::grab {

// Blocks on their way. Thread-safe.
class CudaCopy {
 public:
  static absl::StatusOr<std::shared_ptr<CudaCopy>> Create(CudaDevice* device);
  ~CudaCopy();
  // Whether they have arrived; does not wait. A lost card's have: nobody will read them.
  bool Done();
  absl::Status Wait();
  // What is enqueued on `stream` from here on begins when they have arrived.
  absl::Status Before(CUstream_st* stream);
  double bytes = 0;
  double expected_seconds = 0;
  double Seconds() const;  // on the way, once Done

 private:
  friend class CudaHostPages;
  explicit CudaCopy(CudaDevice* device) : device_(device) {}
  CudaDevice* const device_;
  CUevent_st *begin_ = nullptr, *end_ = nullptr;
  std::atomic<bool> done_{false};
};

// Not thread-safe.
class CudaHostPages {
 public:
  // Takes `bytes` of pinned memory at once, in whole blocks of `block_bytes`, and measures copies to the card, into its
  // first `card_blocks` blocks at `card`: they must hold nothing yet. RESOURCE_EXHAUSTED if that is less than one block
  // or not to be had.
  static absl::StatusOr<std::unique_ptr<CudaHostPages>> Create(std::shared_ptr<CudaDevice> device, size_t block_bytes,
                                                               size_t bytes, void* card, size_t card_blocks);
  ~CudaHostPages();

  size_t blocks() const { return blocks_; }
  size_t free() const { return free_.size(); }
  const CopyCost& cost() const { return cost_; }

  // `count` <= free() of them.
  std::vector<int32_t> Take(size_t count);
  // They may still be read by `reader`, which may be null.
  void Free(std::span<const int32_t> blocks, std::shared_ptr<CudaCopy> reader);

  struct Move {
    int32_t card, host;  // blocks
  };
  // Enqueues copies; those of one direction run one after the other. `after` (may be null) first.
  absl::StatusOr<std::shared_ptr<CudaCopy>> ToCard(std::span<const Move> moves, CudaCopy* after);
  absl::StatusOr<std::shared_ptr<CudaCopy>> ToHost(std::span<const Move> moves, CudaCopy* after);

 private:
  explicit CudaHostPages(std::shared_ptr<CudaDevice> device) : device_(std::move(device)) {}
  absl::Status Open(size_t block_bytes, size_t bytes, void* card, size_t card_blocks);
  absl::Status Probe(size_t card_blocks);
  int CopyBlocks(std::span<const Move> moves, bool to_card, CUstream_st* stream) const;  // a cudaError_t
  absl::StatusOr<std::shared_ptr<CudaCopy>> Enqueue(std::span<const Move> moves, CudaCopy* after, bool to_card);

  const std::shared_ptr<CudaDevice> device_;
  CudaBuffer memory_;
  char* card_ = nullptr;
  size_t block_bytes_ = 0, blocks_ = 0;
  CUstream_st *in_ = nullptr, *out_ = nullptr;
  std::vector<int32_t> free_;
  std::vector<std::shared_ptr<CudaCopy>> readers_;  // of freed blocks: the next copy to the host begins after them
  CopyCost cost_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_HOST_PAGES_H_
