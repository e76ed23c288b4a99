#include <algorithm>
#include <bitset>
#include <map>

#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/lint.h"

namespace backstory {
namespace {

using BucketSet = std::bitset<kBuckets>;

// The first `most` buckets of the ranges. Both configurations are compared before anybody knows that they are valid: what
// LintConfig refuses, a range of 2^63 buckets included, must neither overflow nor be counted through.
BucketSet Exposed(const std::vector<BucketRange>& ranges, int64_t most) {
  BucketSet set;
  for (const BucketRange& range : ranges) {
    if (range.first < 0 || range.first >= kBuckets) continue;
    const int64_t count = std::min<int64_t>(range.count, kBuckets - range.first);
    for (int64_t i = 0; i < count && most > 0; ++i, --most) set.set(static_cast<size_t>(range.first + i));
  }
  return set;
}

struct Place {
  const DomainConfig* domain = nullptr;
  const LayerConfig* layer = nullptr;
  const ExperimentSpec* experiment = nullptr;
  std::string domain_path, layer_path, path;
};

std::map<std::string, Place> PlacesOf(const ExperimentConfig& config) {
  std::map<std::string, Place> places;
  for (size_t d = 0; d < config.domains.size(); ++d) {
    const std::string domain = absl::StrCat("domain[", d, "]");
    for (size_t l = 0; l < config.domains[d].layers.size(); ++l) {
      const LayerConfig& layer = config.domains[d].layers[l];
      const std::string inner = absl::StrCat(domain, ".layer[", l, "]");
      for (size_t e = 0; e < layer.experiments.size(); ++e) {
        places.emplace(layer.experiments[e].name, Place{&config.domains[d], &layer, &layer.experiments[e], domain, inner,
                                                        absl::StrCat(inner, ".experiment[", e, "]")});
      }
    }
  }
  return places;
}

class ChangeLinter {
 public:
  ChangeLinter(const ExperimentConfig& active, const ExperimentConfig& next) : active_(active), next_(next) {}

  std::vector<ConfigProblem> Run() {
    const std::map<std::string, Place> now = PlacesOf(next_);
    std::string frozen;  // an experiment that freezes what is above all layers
    for (const auto& [name, was] : PlacesOf(active_)) {
      const ExperimentState state = was.experiment->state;
      if (state == ExperimentState::kDraft) continue;
      const auto found = now.find(name);
      if (found == now.end()) {
        if (state == ExperimentState::kRunning) {
          Add("", absl::StrCat("experiment ", name, " is RUNNING and is gone: make it KILLED first"));
        }
        continue;
      }
      const Place& is = found->second;
      if (is.experiment->state == ExperimentState::kDraft) {
        Add(is.path + ".state", absl::StrCat("experiment ", name, " was ", std::string(StateName(state)),
                                             " and cannot be a DRAFT again: give it a new name and salt"));
        continue;
      }
      frozen = name;
      Compare(name, was, is);
    }
    if (!frozen.empty()) Above(frozen);
    return std::move(problems_);
  }

 private:
  void Add(std::string path, std::string reason) { problems_.push_back({std::move(path), std::move(reason)}); }
  void Frozen(const std::string& path, const std::string& what, const std::string& experiment) {
    Add(path, absl::StrCat(what, " changed under experiment ", experiment, ", which has exposed units"));
  }

  void Above(const std::string& name) {
    if (next_.hash_version != active_.hash_version) Frozen("hash_version", "hash version", name);
    if (DomainSaltOf(next_) != DomainSaltOf(active_)) Frozen("domain_salt", "domain salt", name);
    if (next_.domain_unit != active_.domain_unit) Frozen("domain_unit", "unit of the domains", name);
    const bool holdout = SaltOf(next_.holdout) != SaltOf(active_.holdout) ||
                         next_.holdout.unit != active_.holdout.unit ||
                         Exposed(next_.holdout.buckets, kBuckets) != Exposed(active_.holdout.buckets, kBuckets);
    if (holdout) Frozen("holdout", "holdout", name);
  }

  void Compare(const std::string& name, const Place& was, const Place& is) {
    if (is.domain->name != was.domain->name || is.layer->name != was.layer->name) {
      Add(is.path, absl::StrCat("experiment ", name, " moved from layer ", was.layer->name, " of domain ",
                                was.domain->name, " to layer ", is.layer->name, " of domain ", is.domain->name));
    }
    if (is.layer->unit != was.layer->unit) Frozen(is.layer_path + ".unit", "unit of the layer", name);
    if (SaltOf(*is.layer) != SaltOf(*was.layer)) Frozen(is.layer_path + ".salt", "salt of the layer", name);
    if (SaltOf(*is.experiment) != SaltOf(*was.experiment)) Frozen(is.path + ".salt", "salt", name);
    if (is.experiment->targeting != was.experiment->targeting) Frozen(is.path + ".targeting", "targeting", name);
    if (is.experiment->arms != was.experiment->arms) Frozen(is.path + ".arm", "names, weights or parameters of arms", name);
    const BucketSet domain_was = Exposed(was.domain->buckets, kBuckets);
    const BucketSet domain_is = Exposed(is.domain->buckets, kBuckets);
    if ((domain_was & ~domain_is).any()) {
      Add(is.domain_path + ".buckets", absl::StrCat("buckets moved under experiment ", name, ": ",
                                                    (domain_was & ~domain_is).count(), " left the domain"));
    }
    const BucketSet exposed_was = Exposed(was.experiment->buckets, was.experiment->ramp);
    const BucketSet exposed_is = Exposed(is.experiment->buckets, is.experiment->ramp);
    const size_t lost = (exposed_was & ~exposed_is).count();
    if (lost == 0) return;
    if (is.experiment->ramp < was.experiment->ramp) {
      Add(is.path + ".ramp", absl::StrCat("shrunk from ", was.experiment->ramp, " to ", is.experiment->ramp,
                                          ": a ramp only adds buckets (to end the experiment, make it KILLED)"));
    } else {
      Add(is.path + ".buckets", absl::StrCat("buckets moved under experiment ", name, ": ", lost,
                                             " exposed ones are no longer its own"));
    }
  }

  const ExperimentConfig& active_;
  const ExperimentConfig& next_;
  std::vector<ConfigProblem> problems_;
};

}  // namespace

std::vector<ConfigProblem> LintChange(const ExperimentConfig& active, const ExperimentConfig& next) {
  return ChangeLinter(active, next).Run();
}

}  // namespace backstory
