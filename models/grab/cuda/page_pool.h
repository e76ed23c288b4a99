// K/V on the card: a pool of blocks, each the rows of one 128-row page of one channel in every layer, and which user
// has which. Users out of use longest leave first; their pages go to pinned host memory, if the pool has some, and come
// back from there when that is quicker than computing them again from the tokens, which stay with the user.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_
#define BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/device.h"
#include "models/grab/cuda/host_pages.h"
#include "models/grab/cuda/state_cost.h"

namespace backstory::grab {

// Block layout: bf16 [layer][K, V][head][128][d_h].
struct CudaKvShape {
  int layers = 0, heads = 0, d_h = 0;
  size_t head_size() const { return size_t{128} * static_cast<size_t>(d_h); }
  size_t kv_size() const { return head_size() * static_cast<size_t>(heads); }        // of one layer's K or V
  size_t block_size() const { return 2 * kv_size() * static_cast<size_t>(layers); }  // elements
  size_t block_bytes() const { return block_size() * 2; }
  bool operator==(const CudaKvShape&) const = default;
};

class CudaUserKv;

// The versions of one state id as a pool knows them: what their users may take of it.
struct CudaTenant {
  std::string name;       // in errors
  size_t blocks_max = 0;  // 0: no limit
  ComputeCost compute;    // of a history; set before the first user
  size_t blocks = 0;      // guarded by the pool's mutex: that its users have
  double slowness = 1;    // the same: of histories over `compute` (Corrected)
  ComputeCost cost() const { return Times(slowness, compute); }
};

// Thread-safe.
class CudaPagePool {
 public:
  // Takes `bytes` of the card's memory at once, in whole blocks. RESOURCE_EXHAUSTED if that is less than one block or
  // not to be had.
  static absl::StatusOr<std::shared_ptr<CudaPagePool>> Create(std::shared_ptr<CudaDevice> device,
                                                              const CudaKvShape& shape, size_t bytes);
  // Before the first user: adds `bytes` of pinned host memory for pages that leave the card. Errors of CudaHostPages;
  // the pool goes on without.
  absl::Status AddHostPages(size_t bytes);

  const CudaKvShape& shape() const { return shape_; }
  void* data() const { return memory_.data(); }
  int32_t blocks() const { return blocks_; }
  CudaDevice& device() const { return *device_; }

  // Keeps a user's blocks on the card while it lives.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept { *this = std::move(other); }
    Pin& operator=(Pin&& other) noexcept {
      std::swap(kv_, other.kv_);
      return *this;
    }
    ~Pin();
    // What is enqueued on `stream` from here on finds the user's pages, some of which may be on their way.
    absl::Status Before(CUstream_st* stream) const;

   private:
    friend class CudaPagePool;
    const CudaUserKv* kv_ = nullptr;
  };
  // Computes the rows from `first[channel]` on into the blocks of `kv` and waits.
  using Fill = std::function<absl::Status(const CudaUserKv& kv, std::span<const size_t> first)>;
  // Brings rows [0, kv.Rows()) of every channel to the card, if they are not there. RESOURCE_EXHAUSTED if users in use
  // leave no room, in the pool or within the tenant's limit; errors of `fill`, after which the user is not on the card.
  absl::StatusOr<Pin> Onboard(const CudaUserKv& kv, const Fill& fill);
  // Blocks for a while, nobody's. Give them back by Free, when no work that was enqueued uses them.
  absl::StatusOr<std::vector<int32_t>> Take(size_t count) { return Take(count, nullptr); }
  void Free(std::span<const int32_t> blocks);

  struct Stats {
    uint64_t users = 0, blocks = 0, blocks_used = 0, host_blocks = 0, host_blocks_used = 0;
    // Users by how they were brought to the card.
    uint64_t hits = 0;        // found there with all of their rows
    uint64_t extended = 0;    // some rows were there, the rest was computed
    uint64_t onboarded = 0;   // pages copied from host memory; what those lack was computed
    uint64_t recomputed = 0;  // nothing was there, everything was computed
    uint64_t rows_computed = 0, rows_onboarded = 0;
    // Users who left the card for others: in all; for others of their own tenant because of its limit; whose pages the
    // host keeps.
    uint64_t evicted_users = 0, evicted_by_limit = 0, evicted_to_host = 0, evicted_blocks = 0;
    uint64_t host_evicted_users = 0, host_evicted_blocks = 0;  // that left host memory for others
    // What was expected of a way that was taken, and what it took. A computation's include waiting for its turn, a
    // copy's are those on the way.
    double compute_expected_s = 0, compute_s = 0, copy_expected_s = 0, copy_s = 0;
  };
  Stats GetStats() const;
  // For tests and benchmarks: evicts every user who is not in use and waits for their pages' copies; another cost than
  // the measured one.
  absl::Status Clear();
  void SetCopyCost(const CopyCost& cost);
  CopyCost copy_cost() const;

 private:
  friend class CudaUserKv;
  CudaPagePool(std::shared_ptr<CudaDevice> device, const CudaKvShape& shape)
      : device_(std::move(device)), shape_(shape) {}
  // Blocks that a copy still reads or writes.
  struct Leaving {
    std::shared_ptr<CudaCopy> copy;
    std::vector<int32_t> blocks;
  };
  absl::StatusOr<std::vector<int32_t>> Take(size_t count, CudaTenant* tenant);
  absl::Status Complete(const CudaUserKv& kv, const Fill& fill);
  absl::Status Compute(const CudaUserKv& kv, const Fill& fill, std::span<const size_t> rows,
                       std::span<const size_t> first);
  void Forget(CudaUserKv* kv);
  void Truncate(const CudaUserKv* kv, size_t channel, size_t rows);
  // The rest with mutex_ held.
  absl::Status MakeRoom(size_t count, CudaTenant* tenant);
  size_t Evict(const CudaUserKv* kv);  // how many blocks are free, or will be
  bool CopyOut(const CudaUserKv* kv);
  bool MakeHostRoom(size_t count);
  void DropHostPages(const CudaUserKv* kv);
  StateChoice Choose(const CudaUserKv& kv, std::span<const size_t> rows, std::span<const size_t> first);
  absl::Status CopyIn(const CudaUserKv& kv, std::span<const size_t> rows, std::vector<size_t>* first);
  void FreePages(const CudaUserKv* kv, size_t channel, size_t from_page);
  void List(const CudaUserKv* kv);
  void Unlist(const CudaUserKv* kv);
  void Reap();

  const std::shared_ptr<CudaDevice> device_;
  const CudaKvShape shape_;
  CudaBuffer memory_;
  int32_t blocks_ = 0;
  mutable std::mutex mutex_;
  std::vector<int32_t> free_;  // guarded by mutex_
  // Guarded by mutex_: unpinned users on the card, and those with pages on the host; newest first.
  std::list<const CudaUserKv*> by_use_, host_by_use_;
  std::deque<Leaving> leaving_;                    // guarded by mutex_
  std::unique_ptr<CudaHostPages> host_;            // guarded by mutex_; null: no such tier
  CopyCost copy_cost_;                             // guarded by mutex_
  std::deque<std::shared_ptr<CudaCopy>> to_card_;  // guarded by mutex_: on their way, oldest first
  double computing_s_ = 0;                         // guarded by mutex_: expected of all that compute or wait to
  Stats stats_;                                    // guarded by mutex_
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_
