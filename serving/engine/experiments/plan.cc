#include "serving/engine/experiments/plan.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_join.h"
#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/lint.h"

namespace backstory {
namespace {

const std::string& IdOf(const Units& units, UnitKind kind) {
  switch (kind) {
    case UnitKind::kUser:
      return units.user;
    case UnitKind::kDevice:
      return units.device;
    case UnitKind::kSession:
      return units.session;
  }
  return units.user;
}

LayerAssignment Given(const LayerConfig& layer, const ExperimentSpec& experiment, const ArmConfig& arm,
                      const char* reason) {
  LayerAssignment given;
  given.parameters = layer.launch;
  for (const auto& [name, value] : arm.parameters) given.parameters[name] = value;
  given.exposures.push_back({layer.name, experiment.name, arm.name, std::string(UnitName(layer.unit)), reason});
  return given;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ExperimentPlan>> ExperimentPlan::Compile(ExperimentConfig config,
                                                                             const ParameterRegistry& registry) {
  const std::vector<ConfigProblem> problems = LintConfig(config, registry);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(
        problems, "\n", [](std::string* out, const ConfigProblem& problem) { out->append(ToText(problem)); }));
  }
  std::shared_ptr<ExperimentPlan> plan(new ExperimentPlan(std::move(config)));
  plan->Build();
  return std::shared_ptr<const ExperimentPlan>(std::move(plan));
}

void ExperimentPlan::Build() {
  holdout_seed_ = BucketSeed(SaltOf(config_.holdout));
  domain_seed_ = BucketSeed(DomainSaltOf(config_));
  holdout_.assign(kBuckets, false);
  for (const auto& [first, count] : config_.holdout.buckets) {
    std::fill_n(holdout_.begin() + first, count, true);
  }
  for (int given = 0; given < 4; ++given) {
    holdout_given_[static_cast<size_t>(given)].exposures.push_back(
        {kHoldoutName, kHoldoutName, given >= 2 ? kHeldOutArm : kGeneralArm, std::string(UnitName(config_.holdout.unit)),
         given % 2 == 1 ? kReasonOverride : kReasonHoldout});
  }
  domain_of_.assign(kBuckets, -1);
  domains_.resize(config_.domains.size());
  std::map<std::string_view, Forced> places;  // by experiment; the arm is filled in below
  for (size_t d = 0; d < domains_.size(); ++d) {
    const DomainConfig& config = config_.domains[d];
    domains_[d].config = &config;
    for (const auto& [first, count] : config.buckets) {
      std::fill_n(domain_of_.begin() + first, count, static_cast<int16_t>(d));
    }
    domains_[d].layers.resize(config.layers.size());
    for (size_t l = 0; l < config.layers.size(); ++l) {
      BuildLayer(config.layers[l], &domains_[d].layers[l]);
      for (size_t e = 0; e < config.layers[l].experiments.size(); ++e) {
        places[config.layers[l].experiments[e].name] = {d, l, e, 0};
      }
    }
  }
  for (const OverrideConfig& forced : config_.overrides) {
    Forced place = places.at(forced.experiment);
    const auto& arms = domains_[place.domain].layers[place.layer].experiments[place.experiment].spec->arms;
    place.arm = static_cast<size_t>(std::ranges::find(arms, forced.arm, &ArmConfig::name) - arms.begin());
    forced_[static_cast<size_t>(forced.unit)][forced.id].push_back(place);
  }
}

void ExperimentPlan::BuildLayer(const LayerConfig& config, Layer* layer) {
  layer->config = &config;
  layer->seed = BucketSeed(SaltOf(config));
  layer->launch.parameters = config.launch;
  layer->buckets.assign(kBuckets, 0);
  for (const ExperimentSpec& spec : config.experiments) {
    Experiment& experiment = layer->experiments.emplace_back();
    experiment.spec = &spec;
    experiment.targeting = Targeting::Parse(spec.targeting).value();  // linted
    experiment.seed = BucketSeed(SaltOf(spec));
    const char* reason = experiment.targeting.everybody() ? kReasonAssigned : kReasonTargeted;
    int64_t weight_end = 0;
    for (const ArmConfig& arm : spec.arms) {
      weight_end += arm.weight;
      experiment.arms.push_back({weight_end, backstory::Given(config, spec, arm, reason),
                                 backstory::Given(config, spec, arm, kReasonOverride)});
    }
    int64_t left = spec.ramp;
    for (const auto& [first, count] : spec.buckets) {
      for (int64_t b = first; b < first + count; ++b, --left) {
        layer->buckets[static_cast<size_t>(b)] = static_cast<uint16_t>(layer->experiments.size() * 2 + (left > 0 ? 1 : 0));
      }
    }
  }
}

ExperimentPlan::Above ExperimentPlan::DecideAbove(const Units& units) const {
  Above above;
  for (const UnitKind kind : {UnitKind::kUser, UnitKind::kDevice, UnitKind::kSession}) {
    const auto& by_id = forced_[static_cast<size_t>(kind)];
    if (by_id.empty()) continue;
    const auto found = by_id.find(IdOf(units, kind));
    if (found == by_id.end()) continue;
    for (const Forced& forced : found->second) {
      // The first one decides the domain: a unit is in one only.
      if (above.forced.empty() || above.forced.front().domain == forced.domain) above.forced.push_back(forced);
    }
  }
  const std::string& holdout_id = IdOf(units, config_.holdout.unit);
  if (!config_.holdout.buckets.empty() && !holdout_id.empty()) {
    above.holdout_bucket = BucketOf(holdout_seed_, holdout_id);
    above.held_out = holdout_[static_cast<size_t>(above.holdout_bucket)];
  }
  const std::string& domain_id = IdOf(units, config_.domain_unit);
  if (!domain_id.empty()) {
    above.domain_bucket = BucketOf(domain_seed_, domain_id);
    above.domain = domain_of_[static_cast<size_t>(above.domain_bucket)];
  }
  if (!above.forced.empty()) above.domain = static_cast<int>(above.forced.front().domain);
  return above;
}

ExperimentPlan::LayerDecision ExperimentPlan::Decide(size_t domain, size_t layer_index, const Above& above,
                                                     const TargetingInput& input) const {
  const Layer& layer = domains_[domain].layers[layer_index];
  LayerDecision decision;
  for (const Forced& forced : above.forced) {
    if (forced.layer != layer_index) continue;
    decision.experiment = &layer.experiments[forced.experiment];
    if (decision.experiment->spec->state == ExperimentState::kKilled) {
      decision.outcome = LayerOutcome::kNotRunning;
      return decision;
    }
    decision.outcome = LayerOutcome::kOverride;
    decision.arm = &decision.experiment->arms[forced.arm];
    return decision;
  }
  const std::string& id = IdOf(*input.units, layer.config->unit);
  if (id.empty()) return decision;
  decision.bucket = BucketOf(layer.seed, id);
  const uint16_t entry = layer.buckets[static_cast<size_t>(decision.bucket)];
  decision.outcome = LayerOutcome::kNoExperiment;
  if (entry == 0) return decision;
  const Experiment& experiment = layer.experiments[entry / 2 - 1];
  decision.experiment = &experiment;
  decision.outcome = LayerOutcome::kNotRunning;
  if (experiment.spec->state != ExperimentState::kRunning) return decision;
  decision.outcome = LayerOutcome::kNotRamped;
  if (entry % 2 == 0) return decision;
  decision.outcome = LayerOutcome::kNotTargeted;
  if (!experiment.targeting.Matches(input)) return decision;
  decision.outcome = LayerOutcome::kArm;
  decision.arm_bucket = BucketOf(experiment.seed, id);
  decision.arm = &experiment.arms.front();
  while (decision.arm_bucket >= decision.arm->weight_end) ++decision.arm;  // the last weight_end is kBuckets
  return decision;
}

const LayerAssignment& ExperimentPlan::Given(const Layer& layer, const LayerDecision& decision) {
  if (decision.outcome == LayerOutcome::kArm) return decision.arm->assigned;
  if (decision.outcome == LayerOutcome::kOverride) return decision.arm->forced;
  return layer.launch;
}

Assignment ExperimentPlan::Assign(const std::string& ns, const std::string& scene, const Units& units,
                                  const FeatureMap& features) const {
  Assignment assignment;
  assignment.config_version = config_.version;
  assignment.owner = shared_from_this();
  const TargetingInput input{ns, scene, &units, &features};
  Above above = DecideAbove(units);
  const size_t layers = above.domain < 0 ? 0 : domains_[static_cast<size_t>(above.domain)].layers.size();
  assignment.layers.reserve(layers + 1);
  if (above.holdout_bucket >= 0 && !config_.kill_all) {
    assignment.layers.emplace_back(holdout_given_[(above.held_out ? 2 : 0) + (above.forced.empty() ? 0 : 1)]);
  }
  for (size_t l = 0; l < layers; ++l) {
    const Layer& layer = domains_[static_cast<size_t>(above.domain)].layers[l];
    const LayerDecision decision =
        config_.kill_all ? LayerDecision{} : Decide(static_cast<size_t>(above.domain), l, above, input);
    if (above.held_out && !config_.kill_all && decision.outcome != LayerOutcome::kOverride) continue;
    const LayerAssignment& given = Given(layer, decision);
    if (!given.parameters.empty() || !given.exposures.empty()) assignment.layers.emplace_back(given);
  }
  return assignment;
}

}  // namespace backstory
