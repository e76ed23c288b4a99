#include "models/grab/cuda/runtime.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

// What only ever rises.
void AddCounts(const CudaPagePool::Stats& from, CudaPagePool::Stats* to) {
  to->hits += from.hits, to->extended += from.extended, to->recomputed += from.recomputed;
  to->onboarded += from.onboarded;
  to->rows_computed += from.rows_computed, to->rows_onboarded += from.rows_onboarded;
  to->evicted_users += from.evicted_users, to->evicted_blocks += from.evicted_blocks;
  to->evicted_by_limit += from.evicted_by_limit, to->evicted_to_host += from.evicted_to_host;
  to->host_evicted_users += from.host_evicted_users, to->host_evicted_blocks += from.host_evicted_blocks;
  to->compute_expected_s += from.compute_expected_s, to->compute_s += from.compute_s;
  to->copy_expected_s += from.copy_expected_s, to->copy_s += from.copy_s;
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
  if (!pool.ok()) return pool;
  if (options_.host_bytes > 0) {
    if (absl::Status status = (*pool)->AddHostPages(options_.host_bytes); !status.ok()) {
      if (!options_.fall_back || !device_->health().ok()) return status;
      Log(absl::StrCat("pages that leave the card are dropped: ", std::string(status.message())));
    }
  }
  pools_.push_back(*pool);
  return pool;
}

std::shared_ptr<CudaTenant> CudaRuntime::TenantFor(const std::string& state_id, const CudaKvShape& shape) {
  std::lock_guard lock(mutex_);
  std::erase_if(tenants_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<CudaTenant>& known = tenants_[state_id];
  std::shared_ptr<CudaTenant> tenant = known.lock();
  if (tenant == nullptr) {
    tenant = std::make_shared<CudaTenant>();
    tenant->name = "versions of state " + state_id;
    if (options_.version_bytes > 0) {
      tenant->blocks_max = std::max<size_t>(1, options_.version_bytes / shape.block_bytes());
    }
    known = tenant;
  }
  return tenant;
}

CudaPagePool::Stats CudaRuntime::PoolStats() const {
  std::lock_guard lock(mutex_);
  CudaPagePool::Stats sum = gone_;
  for (const auto& pool : pools_) {
    const CudaPagePool::Stats s = pool->GetStats();
    sum.users += s.users, sum.blocks += s.blocks, sum.blocks_used += s.blocks_used;
    sum.host_blocks += s.host_blocks, sum.host_blocks_used += s.host_blocks_used;
    AddCounts(s, &sum);
  }
  return sum;
}

}  // namespace backstory::grab
