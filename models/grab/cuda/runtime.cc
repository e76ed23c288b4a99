#include "models/grab/cuda/runtime.h"

#include <utility>

namespace backstory::grab {

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
  size_t bytes = options_.kv_bytes;
  if (bytes == 0) bytes = static_cast<size_t>(kShareOfFree * static_cast<double>(device_->FreeBytes()));
  auto pool = CudaPagePool::Create(device_, shape, bytes);
  if (pool.ok()) pools_.push_back(*pool);
  return pool;
}

CudaPagePool::Stats CudaRuntime::PoolStats() const {
  std::lock_guard lock(mutex_);
  CudaPagePool::Stats sum;
  for (const auto& pool : pools_) {
    const CudaPagePool::Stats s = pool->GetStats();
    sum.users += s.users, sum.blocks += s.blocks, sum.blocks_used += s.blocks_used, sum.hits += s.hits;
    sum.extended += s.extended, sum.recomputed += s.recomputed, sum.rows_computed += s.rows_computed;
    sum.evicted_users += s.evicted_users, sum.evicted_blocks += s.evicted_blocks;
  }
  return sum;
}

}  // namespace backstory::grab
