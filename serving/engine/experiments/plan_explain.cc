// ExperimentPlan::Explain: the same decisions as Assign, told in words.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/plan.h"

namespace backstory {
namespace {

std::string Text(std::string_view view) { return std::string(view); }

// "0-99, 500-599"
std::string Ranges(const std::vector<BucketRange>& ranges) {
  return absl::StrJoin(ranges, ", ", [](std::string* out, const BucketRange& range) {
    absl::StrAppend(out, range.first, "-", range.first + range.count - 1);
  });
}

std::string Parameters(const std::map<std::string, std::string>& parameters) {
  if (parameters.empty()) return "no parameters";
  return absl::StrJoin(parameters, " ", absl::PairFormatter("="));
}

}  // namespace

std::string ExperimentPlan::ExplainLayer(const Layer& layer, const LayerDecision& decision, bool held_out) const {
  std::string line = absl::StrCat("layer ", layer.config->name, ": ");
  if (held_out && decision.outcome != LayerOutcome::kOverride) return line + "held out -> the server's own values";
  const std::string unit = Text(UnitName(layer.config->unit));
  const std::string name = decision.experiment == nullptr ? "" : decision.experiment->spec->name;
  if (decision.bucket >= 0) absl::StrAppend(&line, unit, " bucket ", decision.bucket, " -> ");
  switch (decision.outcome) {
    case LayerOutcome::kNoUnit:
      absl::StrAppend(&line, "the request has no ", unit, " id");
      break;
    case LayerOutcome::kNoExperiment:
      absl::StrAppend(&line, "no experiment has this bucket");
      break;
    case LayerOutcome::kNotRunning:
      absl::StrAppend(&line, "experiment ", name, " is ", Text(StateName(decision.experiment->spec->state)));
      break;
    case LayerOutcome::kNotRamped:
      absl::StrAppend(&line, "experiment ", name, " -> beyond its ramp of ", decision.experiment->spec->ramp,
                      " buckets of ", Ranges(decision.experiment->spec->buckets));
      break;
    case LayerOutcome::kNotTargeted:
      absl::StrAppend(&line, "experiment ", name, " -> targeting ", decision.experiment->spec->targeting,
                      " does not match");
      break;
    case LayerOutcome::kOverride:
      absl::StrAppend(&line, "override -> experiment ", name, " -> arm ", decision.arm->forced.exposures[0].arm, " -> ",
                      Parameters(decision.arm->forced.parameters), " (left out of analysis)");
      return line;
    case LayerOutcome::kArm:
      absl::StrAppend(&line, "experiment ", name, " -> targeting ",
                      decision.experiment->targeting.everybody() ? "everybody" : decision.experiment->spec->targeting,
                      " matches -> arm bucket ", decision.arm_bucket, " -> arm ",
                      decision.arm->assigned.exposures[0].arm, " -> ", Parameters(decision.arm->assigned.parameters));
      return line;
  }
  absl::StrAppend(&line, " -> launch values: ", Parameters(layer.launch.parameters));
  return line;
}

std::vector<std::string> ExperimentPlan::Explain(const std::string& ns, const std::string& scene, const Units& units,
                                                 const FeatureMap& features) const {
  std::vector<std::string> lines;
  const TargetingInput input{ns, scene, &units, &features};
  const Above above = DecideAbove(units);
  const std::string holdout_unit = Text(UnitName(config_.holdout.unit));
  if (config_.kill_all) {
    lines.push_back("kill_all: every experiment and the holdout are off -> launch values");
  } else if (config_.holdout.buckets.empty()) {
    lines.push_back("holdout: none configured");
  } else if (above.holdout_bucket < 0) {
    lines.push_back(absl::StrCat("holdout: the request has no ", holdout_unit, " id -> not held out"));
  } else {
    lines.push_back(absl::StrCat("holdout: ", holdout_unit, " bucket ", above.holdout_bucket, " -> ",
                                 above.held_out ? "held out" : "not held out", " (held out: ",
                                 Ranges(config_.holdout.buckets), ")"));
  }
  std::string domain = "domain: ";
  if (!above.forced.empty()) {
    absl::StrAppend(&domain, "override");
  } else if (above.domain_bucket < 0) {
    absl::StrAppend(&domain, "the request has no ", Text(UnitName(config_.domain_unit)), " id");
  } else {
    absl::StrAppend(&domain, Text(UnitName(config_.domain_unit)), " bucket ", above.domain_bucket);
  }
  if (above.domain < 0) {
    lines.push_back(domain + " -> in no domain -> the server's own values");
    return lines;
  }
  const Domain& in = domains_[static_cast<size_t>(above.domain)];
  lines.push_back(absl::StrCat(domain, " -> ", in.config->name));
  for (size_t l = 0; l < in.layers.size(); ++l) {
    if (config_.kill_all) {
      lines.push_back(absl::StrCat("layer ", in.layers[l].config->name, ": kill_all -> launch values: ",
                                   Parameters(in.layers[l].launch.parameters)));
      continue;
    }
    const LayerDecision decision = Decide(static_cast<size_t>(above.domain), l, above, input);
    lines.push_back(ExplainLayer(in.layers[l], decision, above.held_out));
  }
  return lines;
}

}  // namespace backstory
