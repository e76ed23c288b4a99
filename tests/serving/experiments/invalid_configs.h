// 200 and more ways to break the configuration of test_config.h, each with the path and the reason a linter must give.
#ifndef BACKSTORY_TESTS_SERVING_EXPERIMENTS_INVALID_CONFIGS_H_
#define BACKSTORY_TESTS_SERVING_EXPERIMENTS_INVALID_CONFIGS_H_

#include <functional>
#include <string>
#include <vector>

#include "serving/engine/experiments/config.h"
#include "tests/serving/experiments/test_config.h"

namespace backstory {

struct InvalidConfig {
  std::string name;
  ExperimentConfig config;
  std::string path;    // one of the problems has it
  std::string reason;  // and contains this
};

class InvalidConfigs {
 public:
  static std::vector<InvalidConfig> All() {
    InvalidConfigs table;
    table.Names();
    table.Buckets();
    table.Weights();
    table.Values();
    table.Targetings();
    table.TheRest();
    return std::move(table.cases_);
  }

 private:
  struct Place {
    size_t d, l, e;
    std::string path;
  };
  static std::vector<Place> Places() {
    return {{0, 0, 0, "domain[0].layer[0].experiment[0]"},
            {0, 0, 1, "domain[0].layer[0].experiment[1]"},
            {0, 1, 0, "domain[0].layer[1].experiment[0]"},
            {1, 0, 0, "domain[1].layer[0].experiment[0]"}};
  }
  static ExperimentSpec& At(ExperimentConfig& c, const Place& p) { return c.domains[p.d].layers[p.l].experiments[p.e]; }

  void Add(std::string name, const std::function<void(ExperimentConfig&)>& breaks, std::string path, std::string reason) {
    ExperimentConfig config = BaseConfig();
    config.overrides.clear();  // so that renaming an experiment breaks one thing only
    breaks(config);
    cases_.push_back({std::move(name), std::move(config), std::move(path), std::move(reason)});
  }

  void Names() {
    const std::string bad[] = {"", "Upper", "white space", "dot.dot", std::string(65, 'x')};
    for (const std::string& name : bad) {
      for (const Place& p : Places()) {
        Add("experiment name " + name, [&](auto& c) { At(c, p).name = name; }, p.path + ".name", "[a-z0-9_-]{1,64}");
        Add("arm name " + name, [&](auto& c) { At(c, p).arms[1].name = name; }, p.path + ".arm[1].name", "is not [a-z0-9_-]");
      }
      Add("layer name " + name, [&](auto& c) { c.domains[0].layers[1].name = name; }, "domain[0].layer[1].name", "is not");
      Add("domain name " + name, [&](auto& c) { c.domains[1].name = name; }, "domain[1].name", "is not");
    }
    for (const Place& p : Places()) {
      Add("same arm", [&](auto& c) { At(c, p).arms[1].name = At(c, p).arms[0].name; }, p.path + ".arm[1].name",
          "is the name of " + p.path + ".arm[0] too");
      Add("holdout as experiment", [&](auto& c) { At(c, p).name = "holdout"; }, p.path + ".name", "the global holdout too");
    }
    Add("same experiment", [](auto& c) { c.domains[1].layers[0].experiments[0].name = "longer"; },
        "domain[1].layer[0].experiment[0].name", "is the name of domain[0].layer[0].experiment[0] too");
    Add("same layer", [](auto& c) { c.domains[1].layers[0].name = "length"; }, "domain[1].layer[0].name", "is the name of");
    Add("same domain", [](auto& c) { c.domains[1].name = "main"; }, "domain[1].name", "is the name of domain[0] too");
    Add("holdout as layer", [](auto& c) { c.domains[0].layers[0].name = "holdout"; }, "domain[0].layer[0].name", "too");
  }

  void Buckets() {
    const BucketRange bad[] = {{-1, 10}, {10000, 1}, {0, 0}, {0, -5}, {9999, 2}, {INT64_MAX, INT64_MAX}, {5, INT64_MAX}};
    for (const BucketRange& range : bad) {
      const std::string name = "range " + std::to_string(range.first) + "+" + std::to_string(range.count);
      for (const Place& p : Places()) {
        Add(name, [&](auto& c) { At(c, p).buckets[0] = range; }, p.path + ".buckets[0]", "is not a range within [0, 10000)");
      }
      Add(name, [&](auto& c) { c.domains[1].buckets[0] = range; }, "domain[1].buckets[0]", "is not a range");
      Add(name, [&](auto& c) { c.holdout.buckets[0] = range; }, "holdout.buckets[0]", "is not a range");
    }
    for (const Place& p : Places()) {
      Add("no buckets", [&](auto& c) { At(c, p).buckets.clear(); }, p.path + ".buckets", "could expose nobody");
      Add("ramp below 0", [&](auto& c) { At(c, p).ramp = -1; }, p.path + ".ramp", "-1 is not within 0..");
      Add("ramp above", [&](auto& c) { At(c, p).ramp = 10001; }, p.path + ".ramp", "10001 is not within 0..");
      Add("twice", [&](auto& c) { At(c, p).buckets.push_back(At(c, p).buckets[0]); },
          p.path + ".buckets[" + std::to_string(p.e + 1) + "]", "belongs to " + p.path + " already");
      Add("many ranges", [&](auto& c) { At(c, p).buckets.assign(257, {0, 1}); }, p.path + ".buckets", "257 given, at most 256");
    }
    Add("overlap of experiments", [](auto& c) { c.domains[0].layers[0].experiments[1].buckets[0].first = 3999; },
        "domain[0].layer[0].experiment[1].buckets[0]", "bucket 3999 belongs to domain[0].layer[0].experiment[0] already");
    Add("overlap of domains", [](auto& c) { c.domains[1].buckets[0].first = 8999; }, "domain[1].buckets[0]",
        "bucket 8999 belongs to domain[0] already");
    Add("overlap of holdout", [](auto& c) { c.holdout.buckets.push_back({199, 1}); }, "holdout.buckets[1]", "bucket 199 belongs");
    Add("empty domain", [](auto& c) { c.domains[1].buckets.clear(); }, "domain[1].buckets", "no unit is ever in this domain");
  }

  void Weights() {
    for (const Place& p : Places()) {
      for (const int64_t weight : {int64_t{0}, int64_t{-1}, int64_t{10001}, INT64_MIN}) {
        Add("weight", [&](auto& c) { At(c, p).arms[0].weight = weight; }, p.path + ".arm[0].weight", "is not within 1..10000");
      }
      Add("sum above", [&](auto& c) { ++At(c, p).arms[0].weight; }, p.path + ".arm", "weights add up to 10001");
      Add("sum below", [&](auto& c) { --At(c, p).arms[1].weight; }, p.path + ".arm", "weights add up to 9999");
      Add("one arm", [&](auto& c) { At(c, p).arms.resize(1); }, p.path + ".arm", "at least 2 arms");
      Add("no arm", [&](auto& c) { At(c, p).arms.clear(); }, p.path + ".arm", "at least 2 arms");
      Add("many arms", [&](auto& c) { At(c, p).arms.resize(33); }, p.path + ".arm", "33 given, at most 32");
    }
  }

  void Values() {
    const std::pair<std::string, std::string> bad[] = {{"rows", "1001"}, {"rows", "-1"},   {"rows", "ten"},  {"rows", ""},
                                                       {"rows", "1.5"},  {"blend", "1.1"}, {"blend", "nan"}, {"blend", "x"}};
    for (const auto& [name, value] : bad) {
      for (const Place& p : {Places()[0], Places()[1]}) {
        Add(name + "=" + value, [&](auto& c) { At(c, p).arms[0].parameters[name] = value; },
            p.path + ".arm[0].parameters[\"" + name + "\"]", "parameter " + name + ": \"" + value + "\" is not");
      }
      Add("launch " + name + "=" + value, [&](auto& c) { c.domains[0].layers[0].launch[name] = value; },
          "domain[0].layer[0].launch[\"" + name + "\"]", "parameter " + name);
    }
    for (const Place& p : Places()) {
      const std::string arm = p.path + ".arm[1].parameters";
      Add("unknown", [&](auto& c) { At(c, p).arms[1].parameters["rowz"] = "1"; }, arm + "[\"rowz\"]", "unknown parameter \"rowz\", did you mean rows?");
      Add("not owned", [&](auto& c) { At(c, p).arms[1].parameters["fancy"] = "true"; }, arm + "[\"fancy\"]", "is not owned by this layer");
      Add("process", [&](auto& c) { At(c, p).arms[1].parameters["threads"] = "4"; }, arm + "[\"threads\"]", "is not owned by this layer");
    }
    const std::string swap = "domain[0].layer[1].experiment[0].arm[0].parameters";
    for (const char* label : {"stable", "canary"}) {
      Add(label, [&](auto& c) { c.domains[0].layers[1].experiments[0].arms[0].parameters["model_version"] = label; },
          swap + "[\"model_version\"]", "is a label, which moves");
    }
    Add("long text", [](auto& c) { c.domains[0].layers[1].experiments[0].arms[0].parameters["model_version"] = std::string(17, 'v'); },
        swap + "[\"model_version\"]", "at most 16 bytes");
    Add("owner twice", [](auto& c) { c.domains[0].layers[1].parameters.push_back("rows"); }, "domain[0].layer[1].parameter[2]",
        "parameter rows is owned by domain[0].layer[0].parameter[0] already");
    Add("owner twice in one", [](auto& c) { c.domains[0].layers[0].parameters.push_back("rows"); }, "domain[0].layer[0].parameter[2]", "already");
    Add("owns unknown", [](auto& c) { c.domains[0].layers[0].parameters.push_back("blen"); }, "domain[0].layer[0].parameter[2]", "did you mean blend?");
    Add("owns process", [](auto& c) { c.domains[0].layers[0].parameters.push_back("threads"); }, "domain[0].layer[0].parameter[2]", "has scope process");
    Add("launch not owned", [](auto& c) { c.domains[0].layers[0].launch["fancy"] = "true"; }, "domain[0].layer[0].launch[\"fancy\"]", "not owned");
  }

  void Targetings() {
    for (const char* text : {"scene", "scene = 'x'", "(true", "nobody == 'x'", "scene < 'x'", "features.x in []", "and true", "user == 4"}) {
      for (const Place& p : Places()) {
        Add(text, [&](auto& c) { At(c, p).targeting = text; }, p.path + ".targeting", "column ");
      }
    }
  }

  void TheRest() {
    for (const int64_t version : {int64_t{0}, int64_t{2}, int64_t{-1}}) {
      Add("hash version", [&](auto& c) { c.hash_version = version; }, "hash_version", "this server knows only 1");
    }
    Add("salt shared by layers", [](auto& c) { c.domains[0].layers[1].salt = "length-1"; }, "domain[0].layer[1].salt",
        "\"length-1\" is the salt of domain[0].layer[0].salt too");
    Add("salt of layer and experiment", [](auto& c) { c.domains[0].layers[0].experiments[1].salt = "length-1"; },
        "domain[0].layer[0].experiment[1].salt", "is the salt of domain[0].layer[0].salt too");
    Add("salt of holdout", [](auto& c) { c.domains[0].layers[0].salt = "holdout-1"; }, "domain[0].layer[0].salt", "holdout.salt too");
    Add("salt of domains", [](auto& c) { c.domain_salt = "holdout-1"; }, "domain_salt", "holdout.salt too");
    Add("long salt", [](auto& c) { c.holdout.salt = std::string(129, 's'); }, "holdout.salt", "longer than 128 bytes");
    Add("override of no experiment", [](auto& c) { c.overrides = {{UnitKind::kUser, "a", "nope", "x"}}; }, "override[0].experiment", "there is no experiment \"nope\"");
    Add("override of no arm", [](auto& c) { c.overrides = {{UnitKind::kUser, "a", "longer", "x"}}; }, "override[0].arm", "has no arm \"x\"");
    Add("override of nobody", [](auto& c) { c.overrides = {{UnitKind::kUser, "", "longer", "control"}}; }, "override[0].id", "1..256 wanted");
    Add("override of a long id", [](auto& c) { c.overrides = {{UnitKind::kUser, std::string(257, 'x'), "longer", "control"}}; }, "override[0].id", "1..256 wanted");
    Add("two overrides in a layer", [](auto& c) { c.overrides = {{UnitKind::kUser, "a", "longer", "control"}, {UnitKind::kUser, "a", "blended", "low"}}; },
        "override[1]", "user a is forced in layer length by override[0] already");
    Add("override in two domains", [](auto& c) { c.overrides = {{UnitKind::kUser, "a", "longer", "control"}, {UnitKind::kUser, "a", "deep", "deep"}}; },
        "override[1]", "is forced into domain main already");
    Add("too many overrides", [](auto& c) { c.overrides.assign(10'001, {UnitKind::kUser, "a", "longer", "control"}); }, "override", "at most 10000");
    Add("too many domains", [](auto& c) { c.domains.resize(65); }, "domain", "65 given, at most 64");
    Add("too many layers", [](auto& c) { c.domains[0].layers.resize(256); }, "layer", "257 given, at most 256");
  }

  std::vector<InvalidConfig> cases_;
};

}  // namespace backstory

#endif  // BACKSTORY_TESTS_SERVING_EXPERIMENTS_INVALID_CONFIGS_H_
