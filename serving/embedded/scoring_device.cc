#include "serving/embedded/scoring_device.h"

#include <charconv>
#include <concepts>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#ifdef BACKSTORY_CUDA
#include "models/glass/card_searcher.h"
#include "models/glass/cuda/model.h"
#include "models/grab/cuda/model.h"
#include "models/grab/cuda/runtime.h"
#endif

namespace backstory {
namespace {

class CpuDevice final : public ScoringDevice {
 public:
  std::string Describe() const override { return "cpu"; }
  grab::ModelFactory Factory() const override { return {}; }
  glass::SearcherFactory GlassFactory() const override { return {}; }
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
        onboarded_{m->GetCounter("backstory_device_state_onboarded_total",
                                 "User states of which pages were copied to the card from host memory")},
        rows_onboarded_{m->GetCounter("backstory_device_state_onboarded_rows_total",
                                      "K/V rows copied to the card from host memory, every channel's")},
        evicted_{m->GetCounter("backstory_device_evicted_states_total", "User states that left the card for others")},
        by_limit_{m->GetCounter("backstory_device_evicted_by_limit_total",
                                "Those that left because their version had all that it may have")},
        to_host_{m->GetCounter("backstory_device_evicted_to_host_total", "Those whose pages host memory keeps")},
        card_pages_{EvictedPages(m, "card")},
        host_pages_{EvictedPages(m, "host")},
        compute_expected_{Seconds(m, "compute", "expected")},
        compute_real_{Seconds(m, "compute", "real")},
        copy_expected_{Seconds(m, "copy", "expected")},
        copy_real_{Seconds(m, "copy", "real")},
        host_used_(m->GetGauge("backstory_device_host_pages_used", "K/V pages in use in pinned host memory")),
        host_room_(m->GetGauge("backstory_device_host_pages", "K/V pages pinned host memory has room for")),
        used_(m->GetGauge("backstory_device_pages_used", "K/V pages in use on the card")),
        pages_(m->GetGauge("backstory_device_pages", "K/V pages the card has room for")) {}

  void Update(const grab::CudaRuntime& runtime) {
    const grab::CudaPagePool::Stats pool = runtime.PoolStats();
    std::lock_guard lock(mutex_);
    launches_.To(runtime.counters.launches.load());
    rows_.To(runtime.counters.rows.load());
    fallbacks_.To(runtime.counters.fallbacks.load());
    hits_.To(pool.hits);
    extended_.To(pool.extended);
    recomputed_.To(pool.recomputed);
    computed_.To(pool.rows_computed);
    onboarded_.To(pool.onboarded);
    rows_onboarded_.To(pool.rows_onboarded);
    evicted_.To(pool.evicted_users);
    by_limit_.To(pool.evicted_by_limit);
    to_host_.To(pool.evicted_to_host);
    card_pages_.To(pool.evicted_blocks);
    host_pages_.To(pool.host_evicted_blocks);
    compute_expected_.To(pool.compute_expected_s);
    compute_real_.To(pool.compute_s);
    copy_expected_.To(pool.copy_expected_s);
    copy_real_.To(pool.copy_s);
    host_used_->Set(static_cast<double>(pool.host_blocks_used));
    host_room_->Set(static_cast<double>(pool.host_blocks));
    used_->Set(static_cast<double>(pool.blocks_used));
    pages_->Set(static_cast<double>(pool.blocks));
  }

 private:
  struct Followed {
    Counter* counter;
    double at = 0;
    void To(std::integral auto value) { To(static_cast<double>(value)); }
    void To(double value) {
      if (value > at) counter->Add(value - at);
      at = value;
    }
  };
  static Counter* EvictedPages(Metrics* m, const std::string& tier) {
    return m->GetCounter("backstory_device_evicted_pages_total", "K/V pages that left a tier for others",
                         {{"tier", tier}});
  }
  static Counter* Seconds(Metrics* m, const std::string& way, const std::string& kind) {
    return m->GetCounter("backstory_device_state_seconds_total",
                         "Time of bringing user states to the card, as the cost model expected it and as it was",
                         {{"kind", kind}, {"way", way}});
  }
  std::mutex mutex_;
  // Guarded by mutex_.
  Followed launches_, rows_, fallbacks_, hits_, extended_, recomputed_, computed_, onboarded_, rows_onboarded_,
      evicted_, by_limit_, to_host_, card_pages_, host_pages_, compute_expected_, compute_real_, copy_expected_,
      copy_real_;
  Gauge* const host_used_;
  Gauge* const host_room_;
  Gauge* const used_;
  Gauge* const pages_;
};

// Of all generative versions on the card.
struct SearchCounters {
  explicit SearchCounters(Metrics* m)
      : launches(m->GetCounter("backstory_device_search_launches_total",
                               "Launches that generated recommendations on the card")),
        searches(m->GetCounter("backstory_device_searches_total", "Recommendations generated on the card")),
        fallbacks(m->GetCounter("backstory_device_search_fallbacks_total",
                                "Recommendations that the CPU generated because the card could not")) {}
  void Launched(size_t users) const {
    launches->Add();
    searches->Add(static_cast<double>(users));
  }
  Counter *const launches, *const searches, *const fallbacks;
};

class CudaScoringDevice final : public ScoringDevice {
 public:
  CudaScoringDevice(std::shared_ptr<grab::CudaRuntime> runtime, const ParameterSet& launch, Metrics* metrics)
      : runtime_(std::move(runtime)),
        precision_(launch.Text("precision") == "bf16" ? glass::CudaPrecision::kBf16 : glass::CudaPrecision::kFp32),
        search_counters_(metrics == nullptr ? nullptr : std::make_shared<const SearchCounters>(metrics)) {}
  std::string Describe() const override {
    return absl::StrCat("cuda:", runtime_->device().ordinal(), " (", runtime_->device().name(), ")");
  }
  grab::ModelFactory Factory() const override {
    return
        [runtime = runtime_](const grab::Config& config, const TensorMap& tensors, ThreadPool* pool, Dtype precision) {
          return grab::CreateCudaModel(config, tensors, pool, precision, runtime);
        };
  }
  glass::SearcherFactory GlassFactory() const override {
    return [runtime = runtime_, precision = precision_, counters = search_counters_](
               const glass::Config& config, const TensorMap& tensors, std::shared_ptr<const glass::Network> network,
               ThreadPool* pool) {
      glass::CudaGlassOptions card;
      card.precision = precision;
      card.lanes = runtime->options().lanes;
      glass::CardSearcherOptions options;
      options.users_max = card.users_max, options.beam_max = card.beam_max, options.lanes = card.lanes;
      options.fall_back = runtime->options().fall_back;
      options.health = [runtime] { return runtime->device().health(); };
      options.make_trie = [runtime](const glass::Trie& trie) {
        return glass::CudaTrie::Create(trie, runtime->shared_device());
      };
      if (counters != nullptr) {
        options.launched = [counters](size_t users) { counters->Launched(users); };
        options.fell_back = [counters](size_t users) { counters->fallbacks->Add(static_cast<double>(users)); };
      }
      return glass::CardOrCpu(glass::CudaGlass::Create(config, tensors, runtime->shared_device(), card),
                              std::move(network), pool, std::move(options),
                              [runtime](const std::string& line) { runtime->Log(line); });
    };
  }

 private:
  const std::shared_ptr<grab::CudaRuntime> runtime_;
  const glass::CudaPrecision precision_;
  const std::shared_ptr<const SearchCounters> search_counters_;  // null: nobody counts
};

absl::StatusOr<std::shared_ptr<ScoringDevice>> OpenCuda(int ordinal, const ParameterSet& launch, Metrics* metrics,
                                                        const ScoringDevice::LogLine& log) {
  grab::CudaOptions options{.ordinal = ordinal,
                            .kv_bytes = static_cast<size_t>(launch.Int("device_cache_bytes")),
                            .host_bytes = static_cast<size_t>(launch.Int("device_host_cache_bytes")),
                            .version_bytes = static_cast<size_t>(launch.Int("device_version_bytes")),
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
  return std::make_shared<CudaScoringDevice>(*std::move(runtime), launch, metrics);
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
