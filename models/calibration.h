// From logits to probabilities, per scene and task: probability = sigmoid(a * logit + b), a > 0, so order is kept.
// A calibration has its own version: new ones are added beside a version of a model without touching its weights.
#ifndef BACKSTORY_MODELS_CALIBRATION_H_
#define BACKSTORY_MODELS_CALIBRATION_H_

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

struct Platt {
  double a = 1;
  double b = 0;
  bool operator==(const Platt&) const = default;
};

inline constexpr size_t kCalibrationBytesMax = 1 << 20;
inline constexpr size_t kCalibrationEntriesMax = 4096;

// Immutable, thread-safe. Version 0 without entries is the logistic function, which is what a version directory without
// a calibration/ folder gets.
class Calibration {
 public:
  static constexpr uint32_t kAnyVersion = 0;

  uint32_t version() const { return version_; }
  // entries()[task][scene], in the order of the model's tasks.
  using Entries = std::vector<std::map<std::string, Platt, std::less<>>>;
  const Entries& entries() const { return entries_; }
  // `task` indexes the model's tasks. A scene without an entry uses that of scene "", else the logistic function.
  Platt Find(std::string_view scene, int task) const;
  // In (0, 1) for a finite logit, clamped so that it never is exactly 0 or 1.
  float Probability(std::string_view scene, int task, float logit) const;

  // Protobuf text of backstory.model.v1.Calibration. `require_digest`: the file is not covered by a MANIFEST, so its
  // own digest has to be there; one that is there must match in any case. INVALID_ARGUMENT or DATA_LOSS with source and
  // field: version not `expected_version` (kAnyVersion: whatever it is), an unknown task, (scene, task) twice, a or b
  // not finite, a <= 0.
  static absl::StatusOr<Calibration> FromText(std::string_view text, std::string_view source,
                                              std::span<const std::string> tasks, uint32_t expected_version,
                                              bool require_digest);
  // With digest. `tasks` as when it was read.
  std::string ToText(std::span<const std::string> tasks) const;

  static Calibration Make(uint32_t version, Entries entries);

 private:
  uint32_t version_ = 0;
  Entries entries_;
};

}  // namespace backstory

#endif  // BACKSTORY_MODELS_CALIBRATION_H_
