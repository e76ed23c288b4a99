// One card as the models of a process share it: K/V pools, and what is logged and counted. Start at cuda/model.h.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_RUNTIME_H_
#define BACKSTORY_MODELS_GRAB_CUDA_RUNTIME_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/grab/cuda/device.h"
#include "models/grab/cuda/gemm.h"
#include "models/grab/cuda/page_pool.h"

namespace backstory::grab {

struct CudaOptions {
  int ordinal = 0;
  size_t kv_bytes = 0;       // of the card's memory per K/V layout; 0: 70 % of what is free when the first model loads
  size_t host_bytes = 0;     // of pinned host memory per K/V layout, for pages that leave the card; 0: they are dropped
  size_t version_bytes = 0;  // of the card's K/V memory that the users of one state id may take; 0: all of it
  int lanes = 2;             // passes in flight per model
  int warm_rows = 2048;      // launches of up to so many candidates are made ready when a version is loaded; 0: none
  bool fall_back = true;     // to the CPU where the card fails; else UNAVAILABLE
  std::function<void(const std::string&)> log;           // a line for operators; may be empty
  std::function<void(const class CudaRuntime&)> scored;  // after every call that scored; may be empty
};

// Thread-safe.
class CudaRuntime {
 public:
  // FAILED_PRECONDITION naming the card and what was found.
  static absl::StatusOr<std::shared_ptr<CudaRuntime>> Open(CudaOptions options);

  const CudaOptions& options() const { return options_; }
  CudaDevice& device() const { return *device_; }
  const std::shared_ptr<CudaDevice>& shared_device() const { return device_; }
  const std::shared_ptr<CudaGemmLibrary>& gemms() const { return gemms_; }
  // Models of the same K/V layout share one. One that no model and no user has any more gives its memory back first.
  absl::StatusOr<std::shared_ptr<CudaPagePool>> PoolFor(const CudaKvShape& shape);
  // Versions of the same state id share one while any of them, or of their users, lives.
  std::shared_ptr<CudaTenant> TenantFor(const std::string& state_id, const CudaKvShape& shape);
  void Log(const std::string& line) const {
    if (options_.log) options_.log(line);
  }

  struct Counters {
    std::atomic<uint64_t> launches{0};
    std::atomic<uint64_t> rows{0};
    std::atomic<uint64_t> fallbacks{0};  // segments that the CPU scored because the card could not
  };
  Counters counters;
  // Summed over the pools; counts include those of pools that are no more.
  CudaPagePool::Stats PoolStats() const;

 private:
  explicit CudaRuntime(CudaOptions options) : options_(std::move(options)) {}
  const CudaOptions options_;
  std::shared_ptr<CudaDevice> device_;
  std::shared_ptr<CudaGemmLibrary> gemms_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<CudaPagePool>> pools_;          // guarded by mutex_
  CudaPagePool::Stats gone_;                                  // guarded by mutex_: counts of pools that are no more
  std::map<std::string, std::weak_ptr<CudaTenant>> tenants_;  // guarded by mutex_
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_RUNTIME_H_
