#include "serving/engine/experiments/lint.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "serving/engine/experiments/bucket.h"
#include "serving/engine/experiments/targeting.h"
#include "serving/engine/rank_query.h"

namespace backstory {
namespace {

constexpr std::string_view kModelVersionParameter = "model_version";

bool ValidName(const std::string& name) {
  return !name.empty() && name.size() <= kExperimentNameBytesMax && std::ranges::all_of(name, [](unsigned char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
  });
}

std::string At(const std::string& parent, const char* field, size_t index) {
  return absl::StrCat(parent, parent.empty() ? "" : ".", field, "[", index, "]");
}

std::string Key(const std::string& parent, const char* field, const std::string& key) {
  return absl::StrCat(parent, ".", field, "[\"", key.substr(0, kExperimentNameBytesMax), "\"]");
}

// Names or values that must be unique, each with the path that has it.
using Taken = std::map<std::string, std::string>;
// Of each bucket, who owns it (a number of Linter::owners_); -1: nobody.
using Marks = std::vector<int>;

class Linter {
 public:
  Linter(const ExperimentConfig& config, const ParameterRegistry& registry) : config_(config), registry_(registry) {}

  std::vector<ConfigProblem> Run() {
    for (Taken* names : {&layer_names_, &experiment_names_}) names->emplace(kHoldoutName, "the global holdout");
    if (config_.hash_version != kHashVersion) {
      Add("hash_version", absl::StrCat("is ", config_.hash_version, "; this server knows only ", kHashVersion));
    }
    Salt("holdout.salt", SaltOf(config_.holdout));
    Salt("domain_salt", DomainSaltOf(config_));
    Marks held(kBuckets, -1);
    Buckets("holdout", config_.holdout.buckets, &held);
    Marks owner(kBuckets, -1);
    Limit("domain", config_.domains.size(), kDomainsMax);
    size_t layers = 0;
    for (size_t d = 0; d < config_.domains.size(); ++d) {
      Domain(At("", "domain", d), config_.domains[d], &owner);
      layers += config_.domains[d].layers.size();
    }
    Limit("layer", layers, kLayersMax);
    Limit("experiment", experiments_.size(), kExperimentsMax);
    Overrides();
    return std::move(problems_);
  }

 private:
  struct Found {
    const ExperimentSpec* experiment;
    std::string layer, domain;
  };

  void Add(std::string path, std::string reason) { problems_.push_back({std::move(path), std::move(reason)}); }
  void Limit(const std::string& path, size_t count, size_t most) {
    if (count > most) Add(path, absl::StrCat(count, " given, at most ", most));
  }

  void Name(const std::string& path, const std::string& name, Taken* taken) {
    if (!ValidName(name)) {
      Add(path + ".name", absl::StrCat("\"", name.substr(0, kExperimentNameBytesMax), "\" is not [a-z0-9_-]{1,",
                                       kExperimentNameBytesMax, "}"));
      return;
    }
    const auto [other, fresh] = taken->emplace(name, path);
    if (!fresh) Add(path + ".name", absl::StrCat("\"", name, "\" is the name of ", other->second, " too"));
  }

  // Two hashes under one salt would be one hash: units of one layer would fall into arms of another.
  void Salt(const std::string& path, const std::string& salt) {
    if (salt.size() > kSaltBytesMax) Add(path, absl::StrCat("is longer than ", kSaltBytesMax, " bytes"));
    const auto [other, fresh] = salts_.emplace(salt, path);
    if (!fresh) Add(path, absl::StrCat("\"", salt.substr(0, kSaltBytesMax), "\" is the salt of ", other->second, " too"));
  }

  // Marks each bucket as owned by `path`; those that have a mark are reported once per range.
  int64_t Buckets(const std::string& path, const std::vector<BucketRange>& ranges,
                  Marks* owner) {
    Limit(path + ".buckets", ranges.size(), kBucketRangesMax);
    owners_.push_back(path);
    const int self = static_cast<int>(owners_.size()) - 1;
    int64_t total = 0;
    for (size_t r = 0; r < ranges.size(); ++r) {
      const auto [first, count] = ranges[r];
      const std::string range = At(path, "buckets", r);
      if (first < 0 || first >= kBuckets || count < 1 || count > kBuckets - first) {
        Add(range, absl::StrCat("first ", first, " count ", count, " is not a range within [0, ", kBuckets, ")"));
        continue;
      }
      total += count;
      int64_t clash = -1;
      for (int64_t b = first; b < first + count; ++b) {
        int& mark = (*owner)[static_cast<size_t>(b)];
        if (mark >= 0 && clash < 0) clash = b;
        if (mark < 0) mark = self;
      }
      if (clash >= 0) {
        const int other = (*owner)[static_cast<size_t>(clash)];
        Add(range, absl::StrCat("bucket ", clash, " belongs to ", owners_[static_cast<size_t>(other)], " already"));
      }
    }
    return total;
  }

  void Domain(const std::string& path, const DomainConfig& domain, Marks* owner) {
    Name(path, domain.name, &domain_names_);
    if (domain.buckets.empty()) Add(path + ".buckets", "none given: no unit is ever in this domain");
    Buckets(path, domain.buckets, owner);
    Taken owned;
    for (size_t l = 0; l < domain.layers.size(); ++l) {
      Layer(At(path, "layer", l), domain.layers[l], domain.name, &owned);
    }
  }

  void Layer(const std::string& path, const LayerConfig& layer, const std::string& domain, Taken* owned) {
    Name(path, layer.name, &layer_names_);
    Salt(path + ".salt", SaltOf(layer));
    std::set<std::string> own;
    for (size_t p = 0; p < layer.parameters.size(); ++p) Own(At(path, "parameter", p), layer.parameters[p], &own, owned);
    for (const auto& [name, value] : layer.launch) Value(Key(path, "launch", name), name, value, own);
    Marks owner(kBuckets, -1);
    for (size_t e = 0; e < layer.experiments.size(); ++e) {
      const ExperimentSpec& experiment = layer.experiments[e];
      const std::string inner = At(path, "experiment", e);
      Name(inner, experiment.name, &experiment_names_);
      experiments_.emplace(experiment.name, Found{&experiment, layer.name, domain});
      Experiment(inner, experiment, own, &owner);
    }
  }

  void Own(const std::string& path, const std::string& name, std::set<std::string>* own, Taken* owned) {
    const absl::StatusOr<size_t> index = registry_.Find(name);
    if (!index.ok()) {
      Add(path, std::string(index.status().message()));
      own->insert(name);  // so that each use of it is not reported again as not owned
      return;
    }
    if (registry_.specs()[*index].scope == ParameterScope::kProcess) {
      Add(path, absl::StrCat("parameter ", name, " has scope process: experiments set state and request parameters only"));
    }
    const auto [other, fresh] = owned->emplace(name, path);
    if (!fresh) Add(path, absl::StrCat("parameter ", name, " is owned by ", other->second, " already"));
    own->insert(name);
  }

  void Value(const std::string& path, const std::string& name, const std::string& value, const std::set<std::string>& own) {
    if (!registry_.Find(name).ok()) {
      if (!own.contains(name)) Add(path, std::string(registry_.Find(name).status().message()));
      return;
    }
    if (!own.contains(name)) Add(path, absl::StrCat("parameter ", name, " is not owned by this layer"));
    const absl::StatusOr<ParameterValue> parsed = registry_.Parse(name, value);
    if (!parsed.ok()) Add(path, std::string(parsed.status().message()));
    if (name == kModelVersionParameter && (value == "stable" || value == "canary")) {
      Add(path, absl::StrCat("\"", value, "\" is a label, which moves: name an immutable version"));
    }
  }

  void Experiment(const std::string& path, const ExperimentSpec& experiment, const std::set<std::string>& own,
                  Marks* owner) {
    Salt(path + ".salt", SaltOf(experiment));
    if (const auto parsed = Targeting::Parse(experiment.targeting); !parsed.ok()) {
      Add(path + ".targeting", std::string(parsed.status().message()));
    }
    if (experiment.buckets.empty()) Add(path + ".buckets", "none given: the experiment could expose nobody");
    const int64_t reserved = Buckets(path, experiment.buckets, owner);
    if (experiment.ramp < 0 || experiment.ramp > reserved) {
      Add(path + ".ramp", absl::StrCat(experiment.ramp, " is not within 0..", reserved, ", the buckets it reserves"));
    }
    Limit(path + ".arm", experiment.arms.size(), kArmsMax);
    if (experiment.arms.size() < 2) Add(path + ".arm", "an experiment has at least 2 arms");
    Taken names;
    int64_t weights = 0;
    for (size_t a = 0; a < experiment.arms.size(); ++a) {
      const ArmConfig& arm = experiment.arms[a];
      const std::string inner = At(path, "arm", a);
      Name(inner, arm.name, &names);
      if (arm.weight < 1 || arm.weight > kBuckets) {
        Add(inner + ".weight", absl::StrCat(arm.weight, " is not within 1..", kBuckets));
      } else {
        weights += arm.weight;
      }
      for (const auto& [name, value] : arm.parameters) Value(Key(inner, "parameters", name), name, value, own);
    }
    if (weights != kBuckets && !experiment.arms.empty()) {
      Add(path + ".arm", absl::StrCat("weights add up to ", weights, " and not to ", kBuckets));
    }
  }

  void Overrides() {
    Limit("override", config_.overrides.size(), kOverridesMax);
    std::map<std::string, std::string> domain_of;  // unit -> domain its overrides are in
    Taken layer_of;                                // unit and layer -> path
    for (size_t o = 0; o < config_.overrides.size(); ++o) {
      const OverrideConfig& forced = config_.overrides[o];
      const std::string path = At("", "override", o);
      if (forced.id.empty() || forced.id.size() > kUnitBytesMax) {
        Add(path + ".id", absl::StrCat("is ", forced.id.size(), " bytes long, 1..", kUnitBytesMax, " wanted"));
      }
      const auto found = experiments_.find(forced.experiment);
      if (found == experiments_.end()) {
        Add(path + ".experiment", absl::StrCat("there is no experiment \"", forced.experiment.substr(0, 64), "\""));
        continue;
      }
      const std::vector<ArmConfig>& arms = found->second.experiment->arms;
      if (std::ranges::none_of(arms, [&](const ArmConfig& arm) { return arm.name == forced.arm; })) {
        Add(path + ".arm", absl::StrCat("experiment ", forced.experiment, " has no arm \"", forced.arm.substr(0, 64), "\""));
      }
      const std::string unit = absl::StrCat(std::string(UnitName(forced.unit)), " ", forced.id);
      const auto [layer, fresh] = layer_of.emplace(absl::StrCat(unit, "\n", found->second.layer), path);
      if (!fresh) Add(path, absl::StrCat(unit, " is forced in layer ", found->second.layer, " by ", layer->second, " already"));
      const auto [domain, first] = domain_of.emplace(unit, found->second.domain);
      if (!first && domain->second != found->second.domain) {
        Add(path, absl::StrCat(unit, " is forced into domain ", domain->second, " already: a unit is in one domain"));
      }
    }
  }

  const ExperimentConfig& config_;
  const ParameterRegistry& registry_;
  std::vector<ConfigProblem> problems_;
  std::vector<std::string> owners_;  // paths of bucket lists
  Taken domain_names_, layer_names_, experiment_names_, salts_;
  std::map<std::string, Found> experiments_;
};

}  // namespace

std::string ToText(const ConfigProblem& problem) {
  return problem.path.empty() ? problem.reason : absl::StrCat(problem.path, ": ", problem.reason);
}

std::vector<ConfigProblem> LintConfig(const ExperimentConfig& config, const ParameterRegistry& registry) {
  return Linter(config, registry).Run();
}

}  // namespace backstory
