// A user's state as the card's model keeps it: what its rows are computed from, and where their K/V are.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_CARD_KV_H_
#define BACKSTORY_MODELS_GRAB_CUDA_CARD_KV_H_

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "models/grab/cuda/page_pool.h"
#include "models/grab/user_kv.h"

namespace backstory::grab {

// A user's rows: what they are computed from, where their K/V are on the card, and, once the CPU has been asked, its
// K/V.
class CudaUserKv final : public UserKv {
 public:
  // `pool` and `tenant` may be null: never on a card. `host` is the CPU model's, empty.
  CudaUserKv(std::shared_ptr<CudaPagePool> pool, std::shared_ptr<CudaTenant> tenant, std::unique_ptr<CpuUserKv> host)
      : host_(std::move(host)),
        facts_(host_->channel(0).shape(), static_cast<int>(host_->channels()), 0),
        tokens_(host_->channels()),
        pool_(std::move(pool)),
        tenant_(std::move(tenant)),
        blocks_(host_->channels()),
        rows_on_card_(host_->channels()),
        host_blocks_(host_->channels()),
        rows_on_host_(host_->channels()) {}
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
  const std::shared_ptr<CudaTenant> tenant_;
  mutable std::mutex onboarding_;
  // Guarded by the pool's mutex while unpinned, by onboarding_ while pinned.
  mutable std::vector<std::vector<int32_t>> blocks_;       // [channel][page]
  mutable std::vector<size_t> rows_on_card_;               // [channel]: rows [0, n) are there, zeroes behind them
  mutable std::vector<std::vector<int32_t>> host_blocks_;  // the same of pinned host memory
  mutable std::vector<size_t> rows_on_host_;
  mutable std::shared_ptr<CudaCopy> arriving_, leaving_;  // the last copies to the card and to the host; may be null
  mutable int pins_ = 0;                                  // guarded by the pool's mutex
  mutable bool listed_ = false, host_listed_ = false;     // guarded by the pool's mutex: in by_use_, in host_by_use_
  mutable std::list<const CudaUserKv*>::iterator place_, host_place_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_CARD_KV_H_
