// A checked experiment configuration, compiled to answer requests: one hash and one table look-up per layer, one more hash
// for units that are in an experiment.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_PLAN_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_PLAN_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "serving/engine/experiment.h"
#include "serving/engine/experiments/config.h"
#include "serving/engine/experiments/targeting.h"
#include "serving/engine/parameters.h"

namespace backstory {

// Why a layer gives a unit what it gives.
enum class LayerOutcome : uint8_t {
  kArm,           // by its buckets
  kOverride,      // forced
  kNoUnit,        // the request carries no such id
  kNoExperiment,  // nobody reserved the bucket
  kNotRamped,     // reserved, not exposed yet
  kNotRunning,    // the experiment is a DRAFT or KILLED
  kNotTargeted,   // the expression says no
};

// Immutable; thread-safe.
class ExperimentPlan : public std::enable_shared_from_this<ExperimentPlan> {
 public:
  // INVALID_ARGUMENT with every problem LintConfig finds, one a line.
  static absl::StatusOr<std::shared_ptr<const ExperimentPlan>> Compile(ExperimentConfig config,
                                                                      const ParameterRegistry& registry);

  const ExperimentConfig& config() const { return config_; }

  Assignment Assign(const std::string& ns, const std::string& scene, const Units& units,
                    const FeatureMap& features) const;

  // The path of the decision, one line for the holdout, the domain and each layer: bucket, targeting, arm, parameters.
  std::vector<std::string> Explain(const std::string& ns, const std::string& scene, const Units& units,
                                   const FeatureMap& features) const;

 private:
  struct Arm {
    int64_t weight_end = 0;    // arm buckets below this, and not below the arm before, are its own
    LayerAssignment assigned;  // exposure with reason kReasonAssigned or kReasonTargeted
    LayerAssignment forced;    // the same with kReasonOverride
  };
  struct Experiment {
    const ExperimentSpec* spec = nullptr;
    Targeting targeting;
    uint64_t seed = 0;
    std::vector<Arm> arms;
  };
  struct Layer {
    const LayerConfig* config = nullptr;
    uint64_t seed = 0;
    LayerAssignment launch;
    std::vector<Experiment> experiments;
    std::vector<uint16_t> buckets;  // [kBuckets] (index of the experiment + 1) * 2 + exposed; 0: free
  };
  struct Domain {
    const DomainConfig* config = nullptr;
    std::vector<Layer> layers;
  };
  struct Forced {
    size_t domain = 0, layer = 0, experiment = 0, arm = 0;
  };
  struct LayerDecision {
    LayerOutcome outcome = LayerOutcome::kNoUnit;
    int bucket = -1, arm_bucket = -1;
    const Experiment* experiment = nullptr;
    const Arm* arm = nullptr;
  };
  // What is decided above the layers.
  struct Above {
    int holdout_bucket = -1;  // -1: no holdout, or the request lacks the unit
    bool held_out = false;
    int domain_bucket = -1;
    int domain = -1;  // -1: in none
    absl::InlinedVector<Forced, 2> forced;
  };

  explicit ExperimentPlan(ExperimentConfig config) : config_(std::move(config)) {}
  void Build();
  void BuildLayer(const LayerConfig& config, Layer* layer);
  Above DecideAbove(const Units& units) const;
  LayerDecision Decide(size_t domain, size_t layer, const Above& above, const TargetingInput& input) const;
  static const LayerAssignment& Given(const Layer& layer, const LayerDecision& decision);
  std::string ExplainLayer(const Layer& layer, const LayerDecision& decision, bool held_out) const;

  const ExperimentConfig config_;
  uint64_t holdout_seed_ = 0, domain_seed_ = 0;
  std::vector<bool> holdout_;         // [kBuckets]
  std::vector<int16_t> domain_of_;    // [kBuckets] -1: none
  std::vector<Domain> domains_;
  std::array<LayerAssignment, 4> holdout_given_;  // [held out][forced]
  std::array<absl::flat_hash_map<std::string, std::vector<Forced>>, 3> forced_;  // [UnitKind] by id
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_PLAN_H_
