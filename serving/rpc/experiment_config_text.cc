#include "serving/rpc/experiment_config_text.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "backstory/config/v1/experiments.pb.h"
#include "features/hash.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/text_format.h"

namespace backstory::rpc {
namespace {

namespace pb = backstory::config::v1;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::TextFormat;

constexpr int kNestingMax = 16;

class AllErrors : public google::protobuf::io::ErrorCollector {
 public:
  explicit AllErrors(const std::string& source) : source_(source) {}
  // protobuf counts lines and columns from 0.
  void AddError(int line, int column, const std::string& message) override {
    errors_.push_back(absl::StrCat(source_, ":", line + 1, ":", column + 1, ": ", message));
  }
  void AddWarning(int, int, const std::string&) override {}
  const std::vector<std::string>& errors() const { return errors_; }

 private:
  const std::string& source_;
  std::vector<std::string> errors_;
};

// Records the line of every field of `message`. Settings are found by the name they set.
void Locate(const Message& message, const TextFormat::ParseInfoTree& tree, const std::string& path,
            std::map<std::string, int>* lines) {
  const Descriptor* descriptor = message.GetDescriptor();
  const Reflection* reflection = message.GetReflection();
  for (int f = 0; f < descriptor->field_count(); ++f) {
    const FieldDescriptor* field = descriptor->field(f);
    const std::string here = absl::StrCat(path, path.empty() ? "" : ".", field->name());
    const bool nested = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const int index = field->is_repeated() ? i : -1;
      const auto location = tree.GetLocation(field, index);
      if (location.line < 0) continue;
      std::string at = field->is_repeated() ? absl::StrCat(here, "[", i, "]") : here;
      lines->try_emplace(here, location.line + 1);
      if (!nested) {
        lines->try_emplace(at, location.line + 1);
        continue;
      }
      const Message& inner = field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                                  : reflection->GetMessage(message, field);
      if (inner.GetDescriptor() == pb::Setting::descriptor()) {
        at = absl::StrCat(here, "[\"", static_cast<const pb::Setting&>(inner).name(), "\"]");
      }
      lines->try_emplace(at, location.line + 1);
      if (const auto* subtree = tree.GetTreeForNested(field, index)) Locate(inner, *subtree, at, lines);
    }
  }
}

std::vector<BucketRange> Ranges(const google::protobuf::RepeatedPtrField<pb::Buckets>& in) {
  std::vector<BucketRange> out;
  for (const pb::Buckets& range : in) out.push_back({range.first(), range.count()});
  return out;
}

class Reader {
 public:
  explicit Reader(ExperimentConfigText* out) : out_(out) {}

  void Read(const pb::Experiments& in) {
    ExperimentConfig& config = out_->config;
    config.hash_version = in.hash_version();
    config.kill_all = in.kill_all();
    config.holdout = {in.holdout().salt(), ToUnit(in.holdout().unit(), "holdout.unit"), Ranges(in.holdout().buckets())};
    config.domain_salt = in.domain_salt();
    config.domain_unit = ToUnit(in.domain_unit(), "domain_unit");
    for (const pb::Domain& domain : in.domain()) {
      DomainConfig& to = config.domains.emplace_back();
      to.name = domain.name();
      to.buckets = Ranges(domain.buckets());
      for (const pb::Layer& layer : domain.layer()) {
        const std::string path = absl::StrCat("domain[", config.domains.size() - 1, "].layer[", to.layers.size(), "]");
        to.layers.push_back(Read(layer, path));
      }
    }
    for (const pb::Override& forced : in.override()) {
      const std::string path = absl::StrCat("override[", config.overrides.size(), "].unit");
      config.overrides.push_back({ToUnit(forced.unit(), path), forced.id(), forced.experiment(), forced.arm()});
    }
  }

 private:
  // The text format accepts enum numbers that the schema lacks.
  UnitKind ToUnit(pb::Unit unit, const std::string& path) {
    if (pb::Unit_IsValid(unit)) return static_cast<UnitKind>(unit);
    out_->problems.push_back({path, absl::StrCat(static_cast<int>(unit), " is no unit")});
    return UnitKind::kUser;
  }

  LayerConfig Read(const pb::Layer& in, const std::string& path) {
    LayerConfig layer{in.name(), in.salt(), ToUnit(in.unit(), path + ".unit"), {in.parameter().begin(), in.parameter().end()},
                      Settings(in.launch(), path + ".launch"), {}};
    for (const pb::Experiment& experiment : in.experiment()) {
      const std::string inner = absl::StrCat(path, ".experiment[", layer.experiments.size(), "]");
      ExperimentSpec& to = layer.experiments.emplace_back();
      to.name = experiment.name();
      if (pb::Experiment::State_IsValid(experiment.state())) {
        to.state = static_cast<ExperimentState>(experiment.state());
      } else {
        out_->problems.push_back({inner + ".state", absl::StrCat(experiment.state(), " is no state")});
      }
      to.salt = experiment.salt();
      to.targeting = experiment.targeting();
      to.buckets = Ranges(experiment.buckets());
      to.ramp = experiment.ramp();
      for (const pb::Arm& arm : experiment.arm()) {
        const std::string at = absl::StrCat(inner, ".arm[", to.arms.size(), "].parameters");
        to.arms.push_back({arm.name(), arm.weight(), Settings(arm.parameters(), at)});
      }
    }
    return layer;
  }

  std::map<std::string, std::string> Settings(const google::protobuf::RepeatedPtrField<pb::Setting>& in,
                                              const std::string& path) {
    std::map<std::string, std::string> out;
    for (const pb::Setting& setting : in) {
      if (out.emplace(setting.name(), setting.value()).second) continue;
      out_->problems.push_back({absl::StrCat(path, "[\"", setting.name(), "\"]"),
                                absl::StrCat("parameter ", setting.name(), " is set twice")});
    }
    return out;
  }

  ExperimentConfigText* const out_;
};

void Write(const std::vector<BucketRange>& ranges, google::protobuf::RepeatedPtrField<pb::Buckets>* out) {
  for (const BucketRange& range : ranges) {
    pb::Buckets* to = out->Add();
    to->set_first(range.first);
    to->set_count(range.count);
  }
}

void Write(const std::map<std::string, std::string>& settings, google::protobuf::RepeatedPtrField<pb::Setting>* out) {
  for (const auto& [name, value] : settings) {
    pb::Setting* to = out->Add();
    to->set_name(name);
    to->set_value(value);
  }
}

void Write(const ExperimentSpec& experiment, pb::Experiment* out) {
  out->set_name(experiment.name);
  out->set_state(static_cast<pb::Experiment::State>(experiment.state));
  out->set_salt(experiment.salt);
  out->set_targeting(experiment.targeting);
  Write(experiment.buckets, out->mutable_buckets());
  out->set_ramp(experiment.ramp);
  for (const ArmConfig& arm : experiment.arms) {
    pb::Arm* to = out->add_arm();
    to->set_name(arm.name);
    to->set_weight(arm.weight);
    Write(arm.parameters, to->mutable_parameters());
  }
}

}  // namespace

absl::StatusOr<ExperimentConfigText> ParseExperimentConfig(std::string_view text, const std::string& source) {
  if (text.size() > kExperimentConfigBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(source, ":1: ", text.size(), " bytes, at most ", kExperimentConfigBytesMax));
  }
  AllErrors errors(source);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  parser.WriteLocationsTo(&tree);
  parser.SetRecursionLimit(kNestingMax);
  pb::Experiments message;
  google::protobuf::io::ArrayInputStream input(text.data(), static_cast<int>(text.size()));
  const bool parsed = parser.Parse(&input, &message);
  if (!errors.errors().empty()) return absl::InvalidArgumentError(absl::StrJoin(errors.errors(), "\n"));
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(source, ":1: not an experiment configuration"));
  ExperimentConfigText out;
  out.source = source;
  Locate(message, tree, "", &out.lines);
  Reader(&out).Read(message);
  out.config.version = absl::StrCat("x", absl::Hex(HashBytes(message.SerializeAsString(), 0), absl::kZeroPad16));
  return out;
}

std::string Located(const ExperimentConfigText& text, const ConfigProblem& problem) {
  std::string path = problem.path;
  int line = 1;
  while (!path.empty()) {
    const auto found = text.lines.find(path);
    if (found != text.lines.end()) {
      line = found->second;
      break;
    }
    const size_t cut = path.find_last_of(".[");
    path.resize(cut == std::string::npos ? 0 : cut);
  }
  return absl::StrCat(text.source, ":", line, ": ", ToText(problem));
}

std::string FormatExperimentConfig(const ExperimentConfig& config) {
  pb::Experiments out;
  out.set_hash_version(config.hash_version);
  out.set_kill_all(config.kill_all);
  if (config.holdout != HoldoutConfig()) {
    out.mutable_holdout()->set_salt(config.holdout.salt);
    out.mutable_holdout()->set_unit(static_cast<pb::Unit>(config.holdout.unit));
    Write(config.holdout.buckets, out.mutable_holdout()->mutable_buckets());
  }
  out.set_domain_salt(config.domain_salt);
  out.set_domain_unit(static_cast<pb::Unit>(config.domain_unit));
  for (const DomainConfig& domain : config.domains) {
    pb::Domain* to = out.add_domain();
    to->set_name(domain.name);
    Write(domain.buckets, to->mutable_buckets());
    for (const LayerConfig& layer : domain.layers) {
      pb::Layer* inner = to->add_layer();
      inner->set_name(layer.name);
      inner->set_salt(layer.salt);
      inner->set_unit(static_cast<pb::Unit>(layer.unit));
      for (const std::string& name : layer.parameters) inner->add_parameter(name);
      Write(layer.launch, inner->mutable_launch());
      for (const ExperimentSpec& experiment : layer.experiments) Write(experiment, inner->add_experiment());
    }
  }
  for (const OverrideConfig& forced : config.overrides) {
    pb::Override* to = out.add_override();
    to->set_unit(static_cast<pb::Unit>(forced.unit));
    to->set_id(forced.id);
    to->set_experiment(forced.experiment);
    to->set_arm(forced.arm);
  }
  std::string text;
  TextFormat::PrintToString(out, &text);
  return text;
}

}  // namespace backstory::rpc
