// The seam for experiments: a layer assigns parameter values to a request and names the arm. The engine writes the
// exposures before any shedding that depends on an arm, and never for prefetch, refresh, shadow or counterfactual
// calls.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENT_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "features/tokenizer.h"
#include "serving/engine/parameters.h"

namespace backstory {

// What experiments randomise by.
struct Units {
  std::string user, device, session;
};

// Why a unit is in an arm. Overridden units never count in an analysis.
inline constexpr char kReasonAssigned[] = "assigned";  // bucket within the ramp of an experiment for everybody
inline constexpr char kReasonTargeted[] = "targeted";  // the same, and the targeting expression matched
inline constexpr char kReasonHoldout[] = "holdout";    // the global holdout's own record
inline constexpr char kReasonOverride[] = "override";

// One arm that a request was put into.
struct Exposure {
  std::string layer, experiment, arm;
  std::string unit;                      // "user", "device" or "session": what was hashed
  std::string reason = kReasonAssigned;  // one of the above
  bool operator==(const Exposure&) const = default;
};

// One layer's decision. Layers are applied in order; a parameter belongs to one layer.
struct LayerAssignment {
  std::map<std::string, std::string> parameters;  // name -> value; invalid ones fail the layer, not the request
  std::vector<Exposure> exposures;
};

struct Assignment {
  // Of the configuration that `owner` keeps alive: assigning copies no parameter and no name.
  std::vector<std::reference_wrapper<const LayerAssignment>> layers;
  std::string config_version;  // of the experiment configuration that decided
  std::shared_ptr<const void> owner;
};

// Thread-safe, pure per configuration version: the same units give the same arms.
class Assigner {
 public:
  virtual ~Assigner() = default;
  virtual Assignment Assign(const std::string& ns, const std::string& scene, const Units& units,
                            const FeatureMap& features) const = 0;
};

// No experiments: every parameter has its launch value (default, or what the server sets).
class LaunchDefaults : public Assigner {
 public:
  Assignment Assign(const std::string&, const std::string&, const Units&, const FeatureMap&) const override {
    return Assignment{{}, "launch", nullptr};
  }
};

struct ExposureRecord {
  std::string ns, scene;
  Units units;
  uint64_t request_id = 0;
  int64_t now_us = 0;
  std::string config_version;
  std::vector<Exposure> exposures;
  uint64_t id = 0;             // pairs it with its ExposureFinal within one run of the server; 0 = none follows
  std::string model, version;  // that the arms ask for; empty if not resolved
};

// How a request that was exposed ended. A crash leaves an exposure without one.
struct ExposureFinal {
  uint64_t id = 0;             // of its ExposureRecord
  std::string status = "OK";   // name of the status code
  std::string model, version;  // that answered
  std::vector<EffectiveParameter> parameters;
  int degrade_step = 0;
};

// Thread-safe; must not block for long: it runs on the request's thread.
class ExposureSink {
 public:
  virtual ~ExposureSink() = default;
  virtual void Write(const ExposureRecord& record) = 0;
  virtual void Finish(const ExposureFinal&) {}
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENT_H_
