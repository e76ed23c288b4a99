// K/V on the card: a pool of blocks, each the rows of one 128-row page of one channel in every layer, and which user
// has which. Users out of use longest leave first; what their rows are computed from stays with them in host memory.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_
#define BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/device.h"
#include "models/grab/user_kv.h"

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

// Thread-safe.
class CudaPagePool {
 public:
  // Takes `bytes` of the card's memory at once, in whole blocks. RESOURCE_EXHAUSTED if that is less than one block or
  // not to be had.
  static absl::StatusOr<std::shared_ptr<CudaPagePool>> Create(std::shared_ptr<CudaDevice> device,
                                                              const CudaKvShape& shape, size_t bytes);

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

   private:
    friend class CudaPagePool;
    const CudaUserKv* kv_ = nullptr;
  };
  // Computes the rows from `first[channel]` on into the blocks of `kv` and waits.
  using Fill = std::function<absl::Status(const CudaUserKv& kv, std::span<const size_t> first)>;
  // Brings rows [0, kv.Rows()) of every channel to the card, if they are not there. RESOURCE_EXHAUSTED if users in use
  // leave no room; errors of `fill`, after which the user is not on the card.
  absl::StatusOr<Pin> Onboard(const CudaUserKv& kv, const Fill& fill);
  // Blocks for a while, nobody's. Give them back by Free.
  absl::StatusOr<std::vector<int32_t>> Take(size_t count);
  void Free(std::span<const int32_t> blocks);

  struct Stats {
    uint64_t users = 0, blocks = 0, blocks_used = 0;
    uint64_t hits = 0;        // users found on the card with all of their rows
    uint64_t extended = 0;    // users of whom some rows were there
    uint64_t recomputed = 0;  // users of whom none were
    uint64_t rows_computed = 0;
    uint64_t evicted_users = 0, evicted_blocks = 0;
  };
  Stats GetStats() const;

 private:
  friend class CudaUserKv;
  CudaPagePool(std::shared_ptr<CudaDevice> device, const CudaKvShape& shape)
      : device_(std::move(device)), shape_(shape) {}
  absl::Status Complete(const CudaUserKv& kv, const Fill& fill);
  void Forget(CudaUserKv* kv);

  const std::shared_ptr<CudaDevice> device_;
  const CudaKvShape shape_;
  CudaBuffer memory_;
  int32_t blocks_ = 0;
  mutable std::mutex mutex_;
  std::vector<int32_t> free_;            // guarded by mutex_
  std::list<const CudaUserKv*> by_use_;  // guarded by mutex_: unpinned users on the card, newest first
  Stats stats_;                          // guarded by mutex_
};

// A user's rows: what they are computed from, where their K/V are on the card, and, once the CPU has been asked, its
// K/V.
class CudaUserKv final : public UserKv {
 public:
  // `pool` may be null: never on a card. `host` is the CPU model's, empty.
  CudaUserKv(std::shared_ptr<CudaPagePool> pool, std::unique_ptr<CpuUserKv> host)
      : host_(std::move(host)),
        facts_(host_->channel(0).shape(), static_cast<int>(host_->channels()), 0),
        tokens_(host_->channels()),
        pool_(std::move(pool)),
        blocks_(host_->channels()),
        rows_on_card_(host_->channels()) {}
  ~CudaUserKv() override;

  size_t Rows(int channel) const override { return facts_.Rows(channel); }
  size_t Bytes() const override;
  void Truncate(int channel, size_t rows) override;

  // Rows [Rows(c), tokens[c].time_us.size()) of every channel, checked.
  void Append(std::span<const ChannelRows> tokens);
  const ChannelState& facts(size_t channel) const { return facts_.channel(channel); }
  std::span<const ChannelRows> tokens() const { return tokens_; }
  // With all rows' K/V, which `model` (the CPU's) computes if they are not there. Thread-safe.
  absl::StatusOr<const CpuUserKv*> OnHost(const Model& model) const;
  const CudaPagePool* pool() const { return pool_.get(); }
  // While pinned.
  std::span<const int32_t> blocks(size_t channel) const { return blocks_[channel]; }

 private:
  friend class CudaPagePool;
  const std::unique_ptr<CpuUserKv> host_;      // guarded by host_mutex_ while not alone
  mutable std::atomic<size_t> host_bytes_{0};  // of host_: read while another thread computes it
  mutable std::mutex host_mutex_;
  CpuUserKv facts_;  // no layers
  std::vector<ChannelRows> tokens_;
  const std::shared_ptr<CudaPagePool> pool_;
  mutable std::mutex onboarding_;
  // Guarded by the pool's mutex while unpinned, by onboarding_ while pinned.
  mutable std::vector<std::vector<int32_t>> blocks_;  // [channel][page]
  mutable std::vector<size_t> rows_on_card_;          // [channel]: rows [0, n) are there, zeroes behind them
  mutable int pins_ = 0;                              // guarded by the pool's mutex
  mutable bool listed_ = false;                       // guarded by the pool's mutex: in by_use_
  mutable std::list<const CudaUserKv*>::iterator place_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_PAGE_POOL_H_
