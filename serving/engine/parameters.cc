#include "serving/engine/parameters.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "features/hash.h"
#include "serving/engine/closest_word.h"

namespace backstory {
namespace {

std::string Number(double value) {
  if (value == std::floor(value) && std::abs(value) < 9e15) return absl::StrCat(static_cast<int64_t>(value));
  return absl::StrCat(value);
}

absl::Status Invalid(const ParameterSpec& spec, std::string_view text, std::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("parameter ", spec.name, ": \"", std::string(text.substr(0, 64)),
                                                 "\" is not ", std::string(expected)));
}

template <typename T>
bool ParseNumber(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

std::vector<ParameterSpec> StateAndRequestSpecs() {
  using enum ParameterScope;
  return {
      {"state_events_max", kState, int64_t{131072}, 4096, 1048576, 0,
       "newest events of a user that a cached state covers (it starts at a multiple of 4,096); memory and rebuild time "
       "grow with it"},
      {"history_rows", kRequest, int64_t{1000000}, 0, 1e9, 0,
       "newest history rows of each channel that candidates attend to; scoring time grows with it"},
      {"degrade_history_rows", kRequest, int64_t{512}, 0, 1e9, 0,
       "what history_rows is lowered to under pressure (degrade step 1)"},
      {"model_version", kRequest, std::string(), 0, 0, 64,
       "immutable version that answers when the request names neither version nor label; empty: the stable one"},
  };
}

std::vector<ParameterSpec> RecommendSpecs() {
  using enum ParameterScope;
  return {
      {"recommend_model_version", kRequest, std::string(), 0, 0, 64,
       "immutable generative version that answers when the request names neither version nor label; empty: the stable "
       "one"},
      {"recommend_beam", kRequest, int64_t{0}, 0, 1024, 0,
       "semantic IDs that a recommendation follows; decoding time grows with it; 0: the model's own"},
      {"degrade_beam", kRequest, int64_t{10}, 1, 1024, 0, "most beams under pressure (degrade step 1)"},
      {"recommend_exclude_seen", kRequest, true, 0, 0, 0,
       "leave out items of the visible history where the request does not say; false: repeat purchases are welcome"},
      {"recommend_per_sid_max", kRequest, int64_t{0}, 0, 1000, 0,
       "items of one semantic ID that one recommendation may hold, for diversity; 0: no limit"},
      {"recommend_rank", kRequest, false, 0, 0, 0,
       "pass recommended items through the ranking model where the request does not ask for it"},
      {"recommend_rank_candidates", kRequest, int64_t{100}, 1, 10000, 0,
       "most likely items that are ranked when ranking was asked for (at least the count asked for)"},
      {"recommend_blend", kRequest, 1.0, 0, 1, 0,
       "order of ranked recommendations: (1 - blend) log P(semantic ID) + blend log P(first task); 0: as generated"},
  };
}

std::vector<ParameterSpec> ProcessSpecs() {
  using enum ParameterScope;
  return {
      {"threads", kProcess, int64_t{0}, 0, 256, 0, "threads that prepare and score requests; 0: one per core"},
      {"precision",
       kProcess,
       std::string("f32"),
       0,
       0,
       4,
       "what models keep K/V and their layers' weights in and multiply as; bf16 halves a state's memory and, on a "
       "machine "
       "with AVX512_BF16, scoring time, for rounding by up to 2^-8; states of the two are not shared",
       {"f32", "bf16"}},
      {"device", kProcess, std::string("auto"), 0, 0, 16,
       "what scores: auto (a Hopper card if there is one), cpu, or cuda:N"},
      {"device_cache_bytes", kProcess, int64_t{0}, 0, 1e13, 0,
       "card memory for user states of each K/V layout; the least recently used leave; 0: 70 % of what is free"},
      {"device_host_cache_bytes", kProcess, int64_t{0}, 0, 1e13, 0,
       "pinned host memory of each K/V layout for user states that leave the card: copied back when that is quicker "
       "than "
       "computing them again; taken at once, half a second a gigabyte, and lost to everybody else; 0: none"},
      {"device_version_bytes", kProcess, int64_t{0}, 0, 1e13, 0,
       "card memory that the user states of one state id may take of device_cache_bytes, so that a version that is "
       "being "
       "warmed leaves room to the one that serves; 0: all of it"},
      {"device_lanes", kProcess, int64_t{2}, 1, 16, 0,
       "scoring passes of a model version in flight on the card; each takes about half a gigabyte of it"},
      {"device_batch_candidates", kProcess, int64_t{8192}, 64, 8192, 0,
       "candidates of one scoring pass on the card at most, unless one request has more; what waits for a lane goes "
       "along "
       "up to here"},
      {"device_fallback", kProcess, true, 0, 0, 0,
       "let the CPU score what the card cannot or fails at; false: answer UNAVAILABLE or RESOURCE_EXHAUSTED"},
      {"cache_bytes", kProcess, int64_t{1} << 30, 1 << 20, 1e13, 0,
       "memory for user states; the least recently used are evicted"},
      {"queue_requests", kProcess, int64_t{256}, 1, 100000, 0,
       "requests that may wait; a longer queue only adds waiting time"},
      {"batch_users", kProcess, int64_t{8}, 1, 256, 0, "requests scored in one call of the model"},
      {"batch_candidates", kProcess, int64_t{512}, 1, 100000, 0,
       "a batch takes no further request once it has this many candidates"},
      {"micro_batch_candidates", kProcess, int64_t{1024}, 1, 10000, 0,
       "candidates of one request per pass over its history; bounds scratch memory, changes no bit of a score"},
      {"concurrency_limit_min", kProcess, int64_t{64}, 1, 100000, 0,
       "lowest adaptive limit of requests in flight; lower keeps latency short under overload and sheds sooner"},
      {"concurrency_limit_max", kProcess, int64_t{256}, 1, 100000, 0, "highest limit of requests in flight"},
      {"concurrency_adaptive", kProcess, true, 0, 0, 0,
       "shrink the limit while latency is more than three service times; false: always the highest"},
      {"queue_wait_fraction", kProcess, 0.5, 0, 1, 0,
       "share of its time that a request may be expected to wait: more, and it is refused at once; 1: all of it"},
      {"batch_limit_fraction", kProcess, 0.5, 0, 1, 0, "share of the limit that BATCH and SHADOW may take together"},
      {"degrade_queue_fill", kProcess, 0.5, 0, 1, 0,
       "share of what may wait from which histories are shortened (step 1)"},
      {"shed_batch_queue_fill", kProcess, 0.75, 0, 1, 0,
       "share of what may wait from which BATCH and SHADOW are shed (step 2)"},
      {"refresh_queue", kProcess, int64_t{1024}, 0, 1000000, 0,
       "users waiting for a refresh after an append; 0: states are only extended when asked for"},
      {"warmup_requests_max", kProcess, int64_t{1000}, 0, 1000, 0,
       "recorded requests scored before a version is ready"},
      {"release_warm_share", kProcess, 0.9, 0, 1, 0,
       "share of the use under a label's present version, by users whose state its next version must have before the "
       "label moves; more takes longer, less leaves more histories to be built by requests; 0: labels move at once"},
      {"release_warm_rows_per_s", kProcess, int64_t{20'000}, 1, 1'000'000'000, 0,
       "K/V rows a second computed for that, behind all requests; more takes cores or the card from other refreshes"},
      {"release_warm_s_max", kProcess, int64_t{60}, 0, 86'400, 0,
       "seconds after which a label moves however few users are warm"},
      {"request_log_fraction", kProcess, 0.0, 0, 1, 0, "share of answered requests that are recorded"},
  };
}

}  // namespace

std::string_view ScopeName(ParameterScope scope) {
  switch (scope) {
    case ParameterScope::kState:
      return "state";
    case ParameterScope::kRequest:
      return "request";
    case ParameterScope::kProcess:
      return "process";
  }
  return "";
}

std::string_view SourceName(ParameterSource source) {
  switch (source) {
    case ParameterSource::kDefault:
      return "default";
    case ParameterSource::kServer:
      return "server";
    case ParameterSource::kExperiment:
      return "experiment";
    case ParameterSource::kRequest:
      return "request";
    case ParameterSource::kDegrade:
      return "degrade";
  }
  return "";
}

std::string ToText(const ParameterValue& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) return absl::StrCat(*i);
  if (const auto* d = std::get_if<double>(&value)) return Number(*d);
  if (const auto* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  return std::get<std::string>(value);
}

const ParameterRegistry& ParameterRegistry::Builtin() {
  static const ParameterRegistry registry([] {
    std::vector<ParameterSpec> specs = StateAndRequestSpecs();
    for (ParameterSpec& spec : RecommendSpecs()) specs.push_back(std::move(spec));
    for (ParameterSpec& spec : ProcessSpecs()) specs.push_back(std::move(spec));
    return specs;
  }());
  return registry;
}

ParameterRegistry::ParameterRegistry(std::vector<ParameterSpec> specs) : specs_(std::move(specs)) {
  for (size_t i = 0; i < specs_.size(); ++i) {
    [[maybe_unused]] const bool fresh = index_.emplace(specs_[i].name, i).second;
    assert(fresh);
  }
}

absl::StatusOr<size_t> ParameterRegistry::Find(std::string_view name) const {
  if (const auto it = index_.find(name); it != index_.end()) return it->second;
  std::string message = absl::StrCat("unknown parameter \"", std::string(name.substr(0, 64)), "\"");
  std::vector<std::string> names;
  for (const ParameterSpec& spec : specs_) names.push_back(spec.name);
  const std::string nearest(ClosestWord(name, names));
  if (!nearest.empty()) absl::StrAppend(&message, ", did you mean ", nearest, "?");
  return absl::NotFoundError(message);
}

absl::StatusOr<ParameterValue> ParameterRegistry::Parse(std::string_view name, std::string_view text) const {
  const absl::StatusOr<size_t> index = Find(name);
  if (!index.ok()) return index.status();
  const ParameterSpec& spec = specs_[*index];
  const std::string range = absl::StrCat(" within ", Number(spec.min), "..", Number(spec.max));
  if (std::holds_alternative<int64_t>(spec.default_value)) {
    int64_t value = 0;
    if (!ParseNumber(text, &value) || static_cast<double>(value) < spec.min || static_cast<double>(value) > spec.max) {
      return Invalid(spec, text, "an integer" + range);
    }
    return ParameterValue(value);
  }
  if (std::holds_alternative<double>(spec.default_value)) {
    double value = 0;
    if (!ParseNumber(text, &value) || !std::isfinite(value) || value < spec.min || value > spec.max) {
      return Invalid(spec, text, "a number" + range);
    }
    return ParameterValue(value);
  }
  if (std::holds_alternative<bool>(spec.default_value)) {
    if (text == "true") return ParameterValue(true);
    if (text == "false") return ParameterValue(false);
    return Invalid(spec, text, "true or false");
  }
  if (!spec.choices.empty() && std::find(spec.choices.begin(), spec.choices.end(), text) == spec.choices.end()) {
    return Invalid(spec, text, absl::StrJoin(spec.choices, " or "));
  }
  if (text.size() > spec.max_bytes) {
    return Invalid(spec, text, absl::StrCat("a string of at most ", spec.max_bytes, " bytes"));
  }
  return ParameterValue(std::string(text));
}

ParameterSet::ParameterSet(const ParameterRegistry& registry) : registry_(&registry) {
  for (const ParameterSpec& spec : registry.specs()) values_.push_back(spec.default_value);
  sources_.resize(values_.size(), ParameterSource::kDefault);
}

absl::Status ParameterSet::Set(std::string_view name, std::string_view text, ParameterSource source) {
  const absl::StatusOr<size_t> index = registry_->Find(name);
  if (!index.ok()) return index.status();
  absl::StatusOr<ParameterValue> value = registry_->Parse(name, text);
  if (!value.ok()) return value.status();
  const ParameterScope scope = registry_->specs()[*index].scope;
  const bool allowed = scope == ParameterScope::kRequest || source == ParameterSource::kServer ||
                       (scope == ParameterScope::kState && source == ParameterSource::kExperiment);
  if (!allowed) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", std::string(name), " has scope ",
                                                   std::string(ScopeName(scope)), " and cannot be set by a ",
                                                   std::string(SourceName(source))));
  }
  if (source < sources_[*index]) return absl::OkStatus();
  values_[*index] = *std::move(value);
  sources_[*index] = source;
  return absl::OkStatus();
}

absl::Status ParameterSet::SetAll(const std::map<std::string, std::string>& values, ParameterSource source) {
  for (const auto& [name, text] : values) {
    if (const absl::Status status = Set(name, text, source); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void ParameterSet::Lower(std::string_view name, int64_t limit, int64_t zero_means) {
  const size_t index = registry_->Find(name).value();
  int64_t& value = std::get<int64_t>(values_[index]);
  if ((value == 0 ? zero_means : value) <= limit) return;
  value = limit;
  sources_[index] = ParameterSource::kDegrade;
}

const ParameterValue& ParameterSet::Get(std::string_view name) const {
  const absl::StatusOr<size_t> index = registry_->Find(name);
  assert(index.ok());
  return values_[*index];
}

int64_t ParameterSet::Int(std::string_view name) const { return std::get<int64_t>(Get(name)); }
double ParameterSet::Real(std::string_view name) const { return std::get<double>(Get(name)); }
bool ParameterSet::Bool(std::string_view name) const { return std::get<bool>(Get(name)); }
const std::string& ParameterSet::Text(std::string_view name) const { return std::get<std::string>(Get(name)); }
ParameterSource ParameterSet::Source(std::string_view name) const { return sources_[registry_->Find(name).value()]; }

std::vector<EffectiveParameter> ParameterSet::Report() const {
  std::vector<EffectiveParameter> report;
  for (size_t i = 0; i < values_.size(); ++i) {
    const ParameterSpec& spec = registry_->specs()[i];
    if (spec.scope == ParameterScope::kProcess) continue;
    report.push_back({spec.name, ToText(values_[i]), std::string(SourceName(sources_[i]))});
  }
  return report;
}

std::vector<EffectiveParameter> ParameterSet::ReportAll() const {
  std::vector<EffectiveParameter> report;
  for (size_t i = 0; i < values_.size(); ++i) {
    report.push_back({registry_->specs()[i].name, ToText(values_[i]), std::string(SourceName(sources_[i]))});
  }
  return report;
}

uint64_t ParameterSet::StateHash() const {
  std::string text;
  for (size_t i = 0; i < values_.size(); ++i) {
    const ParameterSpec& spec = registry_->specs()[i];
    if (spec.scope == ParameterScope::kState) absl::StrAppend(&text, spec.name, "=", ToText(values_[i]), "\n");
  }
  return HashBytes(text, 0);
}

}  // namespace backstory
