#include "serving/embedded/scoring_device.h"

#include <charconv>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#ifdef BACKSTORY_CUDA
#include "models/grab/cuda/model.h"
#include "models/grab/cuda/runtime.h"
#endif

namespace backstory {
namespace {

class CpuDevice final : public ScoringDevice {
 public:
  std::string Describe() const override { return "cpu"; }
  grab::ModelFactory Factory() const override { return {}; }
};

#ifdef BACKSTORY_CUDA

// Follows the runtime's counters into the exporter's, by what was added since the last look.
class Published {
 public:
  explicit Published(Metrics* m)
      : launches_{m->GetCounter("backstory_device_launches_total", "Scoring passes on the card")},
        rows_{m->GetCounter("backstory_device_rows_total",
                            "Candidates scored on the card, padding between users included")},
        fallbacks_{m->GetCounter("backstory_device_fallbacks_total",
                                 "Requests that the CPU scored because the card could not")},
        hits_{m->GetCounter("backstory_device_state_hits_total", "User states found on the card")},
        extended_{m->GetCounter("backstory_device_state_extended_total",
                                "User states of which newer rows were computed on the card")},
        recomputed_{m->GetCounter("backstory_device_state_recomputed_total",
                                  "User states that were computed on the card from their tokens")},
        computed_{m->GetCounter("backstory_device_state_rows_total", "K/V rows computed on the card, every channel's")},
        evicted_{m->GetCounter("backstory_device_evicted_states_total", "User states that left the card for others")},
        used_(m->GetGauge("backstory_device_pages_used", "K/V pages in use on the card")),
        pages_(m->GetGauge("backstory_device_pages", "K/V pages the card has room for")) {}

  void Update(const grab::CudaRuntime& runtime) {
    const grab::CudaPagePool::Stats pool = runtime.PoolStats();
    std::lock_guard lock(mutex_);
    launches_.To(runtime.counters.launches);
    rows_.To(runtime.counters.rows);
    fallbacks_.To(runtime.counters.fallbacks);
    hits_.To(pool.hits);
    extended_.To(pool.extended);
    recomputed_.To(pool.recomputed);
    computed_.To(pool.rows_computed);
    evicted_.To(pool.evicted_users);
    used_->Set(static_cast<double>(pool.blocks_used));
    pages_->Set(static_cast<double>(pool.blocks));
  }

 private:
  struct Followed {
    Counter* counter;
    uint64_t at = 0;
    void To(uint64_t value) {
      if (value > at) counter->Add(static_cast<double>(value - at));
      at = value;
    }
  };
  std::mutex mutex_;
  Followed launches_, rows_, fallbacks_, hits_, extended_, recomputed_, computed_, evicted_;  // guarded by mutex_
  Gauge* const used_;
  Gauge* const pages_;
};

class CudaScoringDevice final : public ScoringDevice {
 public:
  explicit CudaScoringDevice(std::shared_ptr<grab::CudaRuntime> runtime) : runtime_(std::move(runtime)) {}
  std::string Describe() const override {
    return absl::StrCat("cuda:", runtime_->device().ordinal(), " (", runtime_->device().name(), ")");
  }
  grab::ModelFactory Factory() const override {
    return
        [runtime = runtime_](const grab::Config& config, const TensorMap& tensors, ThreadPool* pool, Dtype precision) {
          return grab::CreateCudaModel(config, tensors, pool, precision, runtime);
        };
  }

 private:
  const std::shared_ptr<grab::CudaRuntime> runtime_;
};

absl::StatusOr<std::shared_ptr<ScoringDevice>> OpenCuda(int ordinal, const ParameterSet& launch, Metrics* metrics,
                                                        const ScoringDevice::LogLine& log) {
  grab::CudaOptions options{.ordinal = ordinal,
                            .kv_bytes = static_cast<size_t>(launch.Int("device_cache_bytes")),
                            .lanes = static_cast<int>(launch.Int("device_lanes")),
                            .warm_rows = static_cast<int>(launch.Int("device_batch_candidates")),
                            .fall_back = launch.Bool("device_fallback"),
                            .log = log};
  if (metrics != nullptr) {
    // Made by the first score, so that a server without a card does not export a card's metrics.
    struct Lazy {
      std::once_flag once;
      std::unique_ptr<Published> published;
    };
    options.scored = [metrics, lazy = std::make_shared<Lazy>()](const grab::CudaRuntime& runtime) {
      std::call_once(lazy->once, [&] { lazy->published = std::make_unique<Published>(metrics); });
      lazy->published->Update(runtime);
    };
  }
  auto runtime = grab::CudaRuntime::Open(std::move(options));
  if (!runtime.ok()) return runtime.status();
  return std::make_shared<CudaScoringDevice>(*std::move(runtime));
}

#else

absl::StatusOr<std::shared_ptr<ScoringDevice>> OpenCuda(int, const ParameterSet&, Metrics*,
                                                        const ScoringDevice::LogLine&) {
  return absl::FailedPreconditionError(
      "this build has no CUDA (it was configured with BACKSTORY_CUDA=OFF, or without nvcc)");
}

#endif

}  // namespace

absl::StatusOr<int> ParseDevice(const std::string& text) {
  if (text == "auto") return kDeviceAuto;
  if (text == "cpu") return kDeviceCpu;
  constexpr std::string_view kPrefix = "cuda:";
  int ordinal = -1;
  if (text.starts_with(kPrefix)) {
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + kPrefix.size(), end, ordinal);
    if (error == std::errc() && rest == end && ordinal >= 0) return ordinal;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("parameter device (--device): \"", text.substr(0, 64), "\" is not auto, cpu or cuda:N"));
}

absl::StatusOr<std::shared_ptr<ScoringDevice>> ScoringDevice::Open(const ParameterSet& launch, Metrics* metrics,
                                                                   LogLine log) {
  const auto say = [&](const std::string& line) {
    if (log) log(line);
  };
  const absl::StatusOr<int> which = ParseDevice(launch.Text("device"));
  if (!which.ok()) return which.status();
  if (*which == kDeviceCpu) return std::make_shared<CpuDevice>();
  auto opened = OpenCuda(*which == kDeviceAuto ? 0 : *which, launch, metrics, log);
  if (opened.ok()) {
    say((*opened)->Describe() + " scores");
    return opened;
  }
  const std::string found(opened.status().message());
  if (*which == kDeviceAuto) {
    say("device auto: the CPU scores: " + found);
    return std::make_shared<CpuDevice>();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("parameter device (--device) = ", launch.Text("device"), ": ", found));
}

}  // namespace backstory
