// A parameter: a named, typed, bounded knob. Experiments set parameters, nothing else; docs list Builtin()'s specs.
#ifndef BACKSTORY_SERVING_ENGINE_PARAMETERS_H_
#define BACKSTORY_SERVING_ENGINE_PARAMETERS_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace backstory {

enum class ParameterScope {
  kState,    // changes what a cached user state holds: enters the state's key
  kRequest,  // changes how one request is answered from a state
  kProcess,  // fixed when the server starts
};
std::string_view ScopeName(ParameterScope scope);  // "state", "request", "process"

// Who decided a value, weakest first. Later ones win, except that kDegrade only ever lowers.
enum class ParameterSource { kDefault, kServer, kExperiment, kRequest, kDegrade };
std::string_view SourceName(ParameterSource source);  // "default", "server", "experiment", "request", "degrade"

using ParameterValue = std::variant<int64_t, double, bool, std::string>;
std::string ToText(const ParameterValue& value);

struct ParameterSpec {
  std::string name;  // [a-z0-9_]{1,64}
  ParameterScope scope = ParameterScope::kRequest;
  ParameterValue default_value;      // its alternative is the type
  double min = 0, max = 0;           // inclusive, numbers only
  size_t max_bytes = 0;              // strings only
  std::string description;           // unit, effect, and the price of raising it
  std::vector<std::string> choices;  // strings only; empty: any
};

// Immutable; thread-safe.
class ParameterRegistry {
 public:
  static const ParameterRegistry& Builtin();
  explicit ParameterRegistry(std::vector<ParameterSpec> specs);
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  // Index into specs(), or NOT_FOUND naming the parameter and the closest known name.
  absl::StatusOr<size_t> Find(std::string_view name) const;
  // INVALID_ARGUMENT naming the parameter, its type and its bounds.
  absl::StatusOr<ParameterValue> Parse(std::string_view name, std::string_view text) const;

 private:
  std::vector<ParameterSpec> specs_;
  std::map<std::string, size_t, std::less<>> index_;
};

struct EffectiveParameter {
  std::string name, value, source;
  bool operator==(const EffectiveParameter&) const = default;
};

// One value per parameter of a registry. Copyable; not thread-safe for writing.
class ParameterSet {
 public:
  explicit ParameterSet(const ParameterRegistry& registry = ParameterRegistry::Builtin());
  // Sets from text. NOT_FOUND, INVALID_ARGUMENT (type, bounds), or INVALID_ARGUMENT if `source` may not set the scope:
  // requests set REQUEST, experiments REQUEST and STATE, the server all. A weaker source than the present one is
  // ignored.
  absl::Status Set(std::string_view name, std::string_view text, ParameterSource source);
  absl::Status SetAll(const std::map<std::string, std::string>& values, ParameterSource source);
  // Lowers an integer parameter to at most `limit`, marking it as degraded if that changed it. `zero_means`: what 0
  // stands for where it is no number.
  void Lower(std::string_view name, int64_t limit, int64_t zero_means = 0);

  // The name must exist with that type (asserted: names are ours).
  int64_t Int(std::string_view name) const;
  double Real(std::string_view name) const;
  bool Bool(std::string_view name) const;
  const std::string& Text(std::string_view name) const;
  ParameterSource Source(std::string_view name) const;

  // What a reply reports: STATE and REQUEST parameters, registry order.
  std::vector<EffectiveParameter> Report() const;
  // Every parameter.
  std::vector<EffectiveParameter> ReportAll() const;
  // Hash of the STATE parameters, part of the state key; equal sets, equal hash, whatever their source.
  uint64_t StateHash() const;

 private:
  const ParameterValue& Get(std::string_view name) const;
  const ParameterRegistry* registry_;
  std::vector<ParameterValue> values_;
  std::vector<ParameterSource> sources_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_PARAMETERS_H_
