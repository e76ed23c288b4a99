// Start here in serving/engine/experiments: what an experiment configuration says, as read from its file and before any
// check. lint.h lists everything wrong with one; plan.h is the checked, compiled form that answers requests.
//
//   configuration > holdout                       units that see no experiment and no launch value
//                 > domain   (share of traffic)   disjoint: a unit is in at most one
//                   > layer  (owns parameters)    every layer decides about every unit of its domain, independently
//                     > experiment (buckets)      disjoint within the layer: mutually exclusive
//                       > arm (parameter values)
//
// A layer hashes the unit to one of 10,000 buckets. An experiment reserves buckets of its layer and exposes the first
// `ramp` of them; which arm a unit gets is decided by a second hash under the experiment's own salt. So a ramp only ever
// adds units, and nobody changes arm. Field by field: docs/reference/experiments.md.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_CONFIG_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace backstory {

inline constexpr size_t kDomainsMax = 64;
inline constexpr size_t kLayersMax = 256;        // of all domains
inline constexpr size_t kExperimentsMax = 4096;  // of all layers
inline constexpr size_t kArmsMax = 32;           // of one experiment
inline constexpr size_t kOverridesMax = 10'000;
inline constexpr size_t kBucketRangesMax = 256;  // of one list
inline constexpr size_t kExperimentNameBytesMax = 64;
inline constexpr size_t kSaltBytesMax = 128;

// Layer and experiment under which the holdout's exposures are logged, and its two arms. Nothing else has that name.
inline constexpr char kHoldoutName[] = "holdout";
inline constexpr char kHeldOutArm[] = "held_out";
inline constexpr char kGeneralArm[] = "general";

enum class UnitKind { kUser, kDevice, kSession };
std::string_view UnitName(UnitKind unit);  // "user", "device", "session"

enum class ExperimentState {
  kDraft,    // not served, except to overridden units; may be changed at will
  kRunning,  // served; from now on its randomisation is frozen
  kKilled,   // served to nobody; everybody gets launch values. Its randomisation stays frozen, so that it may run on
};
std::string_view StateName(ExperimentState state);  // "DRAFT", "RUNNING", "KILLED"

// Buckets [first, first + count).
struct BucketRange {
  int64_t first = 0;
  int64_t count = 0;
  bool operator==(const BucketRange&) const = default;
};

struct ArmConfig {
  std::string name;
  int64_t weight = 0;  // of 10,000; those of an experiment add up to that
  std::map<std::string, std::string> parameters;  // empty: launch values
  bool operator==(const ArmConfig&) const = default;
};

struct ExperimentSpec {
  std::string name;  // unique in the configuration
  ExperimentState state = ExperimentState::kDraft;
  std::string salt;       // of the split into arms; empty: "experiment/" + name
  std::string targeting;  // who is in it (targeting.h); empty: everybody
  std::vector<BucketRange> buckets;  // reserved, in the order in which a ramp takes them
  int64_t ramp = 0;                  // how many of them are exposed: 100 = 1 % of the layer's units
  std::vector<ArmConfig> arms;       // >= 2
  bool operator==(const ExperimentSpec&) const = default;
};

struct LayerConfig {
  std::string name;  // unique in the configuration
  std::string salt;  // empty: "layer/" + name
  UnitKind unit = UnitKind::kUser;
  std::vector<std::string> parameters;        // owned: no other layer of the domain may set them
  std::map<std::string, std::string> launch;  // values for units that are in no arm which sets them
  std::vector<ExperimentSpec> experiments;
  bool operator==(const LayerConfig&) const = default;
};

struct DomainConfig {
  std::string name;
  std::vector<BucketRange> buckets;  // of the domain hash; disjoint from those of every other domain
  std::vector<LayerConfig> layers;
  bool operator==(const DomainConfig&) const = default;
};

struct HoldoutConfig {
  std::string salt;  // empty: "holdout"
  UnitKind unit = UnitKind::kUser;
  std::vector<BucketRange> buckets;  // empty: nobody is held out
  bool operator==(const HoldoutConfig&) const = default;
};

// Forces a unit into an arm, whatever its buckets, targeting, ramp, domain or holdout; a kill switch still wins. Logged as
// an override and left out of every analysis.
struct OverrideConfig {
  UnitKind unit = UnitKind::kUser;
  std::string id;
  std::string experiment, arm;
  bool operator==(const OverrideConfig&) const = default;
};

struct ExperimentConfig {
  std::string version;       // names this content in replies and logs; whoever reads the file sets it
  int64_t hash_version = 1;  // see bucket.h; 1 is the only one there is
  bool kill_all = false;     // no experiment, no holdout: launch values for everybody
  HoldoutConfig holdout;
  std::string domain_salt;  // empty: "domain"
  UnitKind domain_unit = UnitKind::kUser;
  std::vector<DomainConfig> domains;
  std::vector<OverrideConfig> overrides;
  bool operator==(const ExperimentConfig&) const = default;
};

// The salt in force: the configured one, or what stands for an empty one.
std::string SaltOf(const HoldoutConfig& holdout);
std::string SaltOf(const LayerConfig& layer);
std::string SaltOf(const ExperimentSpec& experiment);
std::string DomainSaltOf(const ExperimentConfig& config);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_CONFIG_H_
