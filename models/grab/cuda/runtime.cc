#include "models/grab/cuda/runtime.h"

#include <utility>

namespace backstory::grab {
namespace {

// What only ever rises.
void AddCounts(const CudaPagePool::Stats& from, CudaPagePool::Stats* to) {
  to->hits += from.hits, to->extended += from.extended, to->recomputed += from.recomputed;
  to->rows_computed += from.rows_computed;
  to->evicted_users += from.evicted_users, to->evicted_blocks += from.evicted_blocks;
}

}  // namespace

absl::StatusOr<std::shared_ptr<CudaRuntime>> CudaRuntime::Open(CudaOptions options) {
  auto runtime = std::shared_ptr<CudaRuntime>(new CudaRuntime(std::move(options)));
  auto device = CudaDevice::Open(runtime->options_.ordinal);
  if (!device.ok()) return device.status();
  runtime->device_ = *std::move(device);
  auto gemms = CudaGemmLibrary::Open(runtime->device_);
  if (!gemms.ok()) return gemms.status();
  runtime->gemms_ = *std::move(gemms);
  runtime->device_->OnLost(
      [log = runtime->options_.log, fall_back = runtime->options_.fall_back](const absl::Status& why) {
        if (!log) return;
        log(std::string(why.message()) + (fall_back ? "; the CPU scores from here on" : "; scoring is refused"));
      });
  return runtime;
}

absl::StatusOr<std::shared_ptr<CudaPagePool>> CudaRuntime::PoolFor(const CudaKvShape& shape) {
  constexpr double kShareOfFree = 0.7;
  std::lock_guard lock(mutex_);
  for (const auto& pool : pools_) {
    if (pool->shape() == shape) return pool;
  }
  std::erase_if(pools_, [this](const std::shared_ptr<CudaPagePool>& pool) {
    if (pool.use_count() > 1) return false;  // more references come from here alone
    AddCounts(pool->GetStats(), &gone_);
    return true;
  });
  size_t bytes = options_.kv_bytes;
  if (bytes == 0) bytes = static_cast<size_t>(kShareOfFree * static_cast<double>(device_->FreeBytes()));
  auto pool = CudaPagePool::Create(device_, shape, bytes);
  if (pool.ok()) pools_.push_back(*pool);
  return pool;
}

CudaPagePool::Stats CudaRuntime::PoolStats() const {
  std::lock_guard lock(mutex_);
  CudaPagePool::Stats sum = gone_;
  for (const auto& pool : pools_) {
    const CudaPagePool::Stats s = pool->GetStats();
    sum.users += s.users, sum.blocks += s.blocks, sum.blocks_used += s.blocks_used;
    AddCounts(s, &sum);
  }
  return sum;
}

}  // namespace backstory::grab
