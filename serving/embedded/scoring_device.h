// Which machine scores: the seam between the launch parameters `device*` and the models. Needs no CUDA, and a build
// without it knows the CPU only.
#ifndef BACKSTORY_SERVING_EMBEDDED_SCORING_DEVICE_H_
#define BACKSTORY_SERVING_EMBEDDED_SCORING_DEVICE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "models/glass/searcher.h"
#include "models/grab/loader.h"
#include "serving/engine/metrics.h"
#include "serving/engine/parameters.h"

namespace backstory {

// Thread-safe. Outlived by no model it made.
class ScoringDevice {
 public:
  using LogLine = std::function<void(const std::string&)>;

  // By the launch parameters device, device_fallback, device_cache_bytes, device_host_cache_bytes,
  // device_version_bytes and device_lanes. `log` hears one line for
  // each thing an operator should know: which card scores, why none does, that a card was given up. Both outlive the
  // device; `log` may be empty.
  //   cpu       the CPU
  //   auto      cuda:0 if it can be used, else the CPU with a line that names the cause
  //   cuda:N    that card: FAILED_PRECONDITION naming the parameter and what was found if it cannot be used
  // INVALID_ARGUMENT for any other text.
  static absl::StatusOr<std::shared_ptr<ScoringDevice>> Open(const ParameterSet& launch, Metrics* metrics, LogLine log);
  virtual ~ScoringDevice() = default;

  // "cpu", or "cuda:0 (NVIDIA H100 80GB HBM3)".
  virtual std::string Describe() const = 0;
  // For LoadOptions::serve_with of a ranking and of a generative version; empty on the CPU.
  virtual grab::ModelFactory Factory() const = 0;
  virtual glass::SearcherFactory GlassFactory() const = 0;
};

// N of "cuda:N", -1 for "auto", -2 for "cpu"; INVALID_ARGUMENT otherwise.
inline constexpr int kDeviceAuto = -1, kDeviceCpu = -2;
absl::StatusOr<int> ParseDevice(const std::string& text);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_EMBEDDED_SCORING_DEVICE_H_
