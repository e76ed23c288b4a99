#include "models/grab/config_text.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "backstory/model/v1/model.pb.h"
#include "google/protobuf/text_format.h"
#include "models/text_proto.h"

namespace backstory::grab {
namespace {

namespace pb = ::backstory::model::v1;

// The protobuf sources are the C++ ones plus one: 0 is "not given" on the wire.
static_assert(static_cast<int>(SparseSource::kItemId) + 1 == pb::ITEM_ID);
static_assert(static_cast<int>(SparseSource::kDayOfWeek) + 1 == pb::DAY_OF_WEEK);
static_assert(pb::SparseSource_MAX == pb::DAY_OF_WEEK);
static_assert(static_cast<int>(DenseSource::kItemRate) + 1 == pb::ITEM_RATE);
static_assert(static_cast<int>(DenseSource::kUserCategoryRate) + 1 == pb::USER_CATEGORY_RATE);
static_assert(pb::DenseSource_MAX == pb::USER_CATEGORY_RATE);
static_assert(static_cast<int>(ActionType::kShare) == pb::SHARE && pb::ActionType_MAX == pb::SHARE);

absl::StatusOr<ActionType> ActionFromProto(int action, const char* field) {
  const bool known = pb::ActionType_IsValid(action);
  const bool custom = action >= static_cast<int>(ActionType::kFirstCustom) && action <= UINT16_MAX;
  if (known || custom) return static_cast<ActionType>(action);
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", action, " is neither a known action type nor in [1000, 65535]"));
}

absl::StatusOr<SparseFieldConfig> SparseFromProto(const pb::SparseField& in, const char* view) {
  if (in.source() == pb::SPARSE_SOURCE_UNSPECIFIED || !pb::SparseSource_IsValid(in.source())) {
    return absl::InvalidArgumentError(absl::StrCat(view, " field ", in.name(), ": source ",
                                                   static_cast<int>(in.source()), " is not a sparse source"));
  }
  SparseFieldConfig out;
  out.name = in.name();
  out.source = static_cast<SparseSource>(in.source() - 1);
  out.attribute = in.attribute();
  out.table = in.table();
  out.vocab = in.vocab();
  return out;
}

absl::StatusOr<DenseFieldConfig> DenseFromProto(const pb::DenseField& in) {
  if (in.source() == pb::DENSE_SOURCE_UNSPECIFIED || !pb::DenseSource_IsValid(in.source())) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.full_dense field ", in.name(), ": source ",
                                                   static_cast<int>(in.source()), " is not a dense source"));
  }
  DenseFieldConfig out;
  out.name = in.name();
  out.source = static_cast<DenseSource>(in.source() - 1);
  out.attribute = in.attribute();
  if (in.has_prior()) out.prior = in.prior();
  if (in.has_prior_weight()) out.prior_weight = in.prior_weight();
  if (in.has_prior_value()) out.prior_value = in.prior_value();
  if (in.has_scale()) out.scale = in.scale();
  return out;
}

absl::Status FieldsFromProto(const pb::Tokenizer& in, TokenizerConfig* out) {
  for (const pb::SparseField& field : in.partial()) {
    auto parsed = SparseFromProto(field, "tokenizer.partial");
    if (!parsed.ok()) return parsed.status();
    out->partial.push_back(*std::move(parsed));
  }
  for (const pb::SparseField& field : in.full()) {
    auto parsed = SparseFromProto(field, "tokenizer.full");
    if (!parsed.ok()) return parsed.status();
    out->full.push_back(*std::move(parsed));
  }
  for (const pb::DenseField& field : in.full_dense()) {
    auto parsed = DenseFromProto(field);
    if (!parsed.ok()) return parsed.status();
    out->full_dense.push_back(*std::move(parsed));
  }
  return absl::OkStatus();
}

absl::Status RulesFromProto(const pb::Tokenizer& in, TokenizerConfig* out) {
  for (const pb::ActionRule& rule : in.actions()) {
    auto action = ActionFromProto(rule.action(), "tokenizer.actions.action");
    if (!action.ok()) return action.status();
    ActionRule parsed;
    parsed.action = *action;
    if (rule.has_min_value()) parsed.min_value = rule.min_value();
    if (rule.has_max_value()) parsed.max_value = rule.max_value();
    parsed.action_class = rule.action_class();
    out->actions.push_back(parsed);
  }
  if (in.label().has_action()) {
    auto action = ActionFromProto(in.label().action(), "tokenizer.label.action");
    if (!action.ok()) return action.status();
    out->label.action = *action;
  }
  if (in.label().has_min_value()) out->label.min_value = in.label().min_value();
  if (in.label().has_unlabelled_is_negative()) {
    out->label.unlabelled_is_negative = in.label().unlabelled_is_negative();
  }
  for (const pb::Channel& channel : in.channels()) {
    out->channels.push_back({channel.name(), {channel.action_classes().begin(), channel.action_classes().end()}});
  }
  return absl::OkStatus();
}

absl::Status TokenizerFromProto(const pb::Tokenizer& in, TokenizerConfig* out) {
  if (in.has_feature_version()) out->feature_version = in.feature_version();
  if (in.has_hash_salt()) out->hash_salt = in.hash_salt();
  if (in.has_default_action_class()) out->default_action_class = in.default_action_class();
  if (in.has_label_window_us()) out->label_window_us = in.label_window_us();
  if (in.has_stats_granularity_us()) out->stats_granularity_us = in.stats_granularity_us();
  if (!pb::OpenRows_IsValid(in.open_rows())) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.open_rows: ", static_cast<int>(in.open_rows()), " is not AS_KNOWN or HIDE"));
  }
  out->open_rows = in.open_rows() == pb::HIDE ? OpenRows::kHide : OpenRows::kAsKnown;
  if (absl::Status s = FieldsFromProto(in, out); !s.ok()) return s;
  return RulesFromProto(in, out);
}

absl::StatusOr<Config> ConfigFromProto(const pb::GrabModel& in) {
  Config out;
  out.name = in.name();
  if (in.has_d()) out.d = in.d();
  if (in.has_heads()) out.heads = in.heads();
  if (in.has_d_head()) out.d_head = in.d_head();
  if (in.has_layers()) out.layers = in.layers();
  if (in.has_latent()) out.latent = in.latent();
  if (in.has_ffn()) out.ffn = in.ffn();
  if (in.has_n_pos()) out.n_pos = in.n_pos();
  if (in.has_n_time()) out.n_time = in.n_time();
  if (in.has_n_act()) out.n_act = in.n_act();
  if (in.has_window_rows()) out.window_rows = in.window_rows();
  if (in.has_window_sec()) out.window_sec = in.window_sec();
  if (!pb::Norm_IsValid(in.norm())) {
    return absl::InvalidArgumentError(absl::StrCat("norm: ", static_cast<int>(in.norm()), " is not POST or PRE"));
  }
  out.norm = in.norm() == pb::PRE ? Norm::kPre : Norm::kPost;
  if (in.has_target_mixing()) out.target_mixing = in.target_mixing();
  if (in.has_embedding()) out.embedding = in.embedding();
  if (in.has_gate_mlp_hidden()) out.gate_mlp_hidden = in.gate_mlp_hidden();
  if (in.has_head_hidden()) out.head_hidden = in.head_hidden();
  if (!in.tasks().empty()) out.tasks.assign(in.tasks().begin(), in.tasks().end());
  if (absl::Status s = TokenizerFromProto(in.tokenizer(), &out.tokenizer); !s.ok()) return s;
  return out;
}

void SparseToProto(const SparseFieldConfig& in, pb::SparseField* out) {
  out->set_name(in.name);
  out->set_source(static_cast<pb::SparseSource>(static_cast<int>(in.source) + 1));
  out->set_attribute(in.attribute);
  out->set_table(in.table);
  out->set_vocab(in.vocab);
}

void TokenizerToProto(const TokenizerConfig& in, pb::Tokenizer* out) {
  out->set_feature_version(in.feature_version);
  out->set_hash_salt(in.hash_salt);
  for (const auto& field : in.partial) SparseToProto(field, out->add_partial());
  for (const auto& field : in.full) SparseToProto(field, out->add_full());
  for (const auto& field : in.full_dense) {
    pb::DenseField* dense = out->add_full_dense();
    dense->set_name(field.name);
    dense->set_source(static_cast<pb::DenseSource>(static_cast<int>(field.source) + 1));
    dense->set_attribute(field.attribute);
    dense->set_prior(field.prior);
    dense->set_prior_weight(field.prior_weight);
    dense->set_prior_value(field.prior_value);
    dense->set_scale(field.scale);
  }
  for (const auto& rule : in.actions) {
    pb::ActionRule* action = out->add_actions();
    action->set_action(static_cast<pb::ActionType>(rule.action));
    action->set_min_value(rule.min_value);
    action->set_max_value(rule.max_value);
    action->set_action_class(rule.action_class);
  }
  out->set_default_action_class(in.default_action_class);
  out->mutable_label()->set_action(static_cast<pb::ActionType>(in.label.action));
  out->mutable_label()->set_min_value(in.label.min_value);
  out->mutable_label()->set_unlabelled_is_negative(in.label.unlabelled_is_negative);
  for (const auto& channel : in.channels) {
    pb::Channel* c = out->add_channels();
    c->set_name(channel.name);
    for (int32_t action_class : channel.action_classes) c->add_action_classes(action_class);
  }
  out->set_label_window_us(in.label_window_us);
  out->set_open_rows(in.open_rows == OpenRows::kHide ? pb::HIDE : pb::AS_KNOWN);
  out->set_stats_granularity_us(in.stats_granularity_us);
}

}  // namespace

absl::StatusOr<Config> ConfigFromText(std::string_view text, std::string_view source_name) {
  const std::string source(source_name);
  if (text.size() > kConfigTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": ", text.size(), " bytes exceed the limit of ", kConfigTextBytesMax));
  }
  pb::GrabModel message;
  if (absl::Status s = ParseTextProto(text, source_name, &message); !s.ok()) return s;
  auto config = ConfigFromProto(message);
  absl::Status status = config.ok() ? Validate(*config) : config.status();
  if (status.ok()) return config;
  return absl::Status(status.code(), absl::StrCat(source, ": ", status.message()));
}

std::string ConfigToText(const Config& config) {
  pb::GrabModel out;
  out.set_name(config.name);
  TokenizerToProto(config.tokenizer, out.mutable_tokenizer());
  out.set_d(config.d);
  out.set_heads(config.heads);
  out.set_d_head(config.d_head);
  out.set_layers(config.layers);
  out.set_latent(config.latent);
  out.set_ffn(config.ffn);
  out.set_n_pos(config.n_pos);
  out.set_n_time(config.n_time);
  out.set_n_act(config.n_act);
  out.set_window_rows(config.window_rows);
  out.set_window_sec(config.window_sec);
  out.set_norm(config.norm == Norm::kPre ? pb::PRE : pb::POST);
  out.set_target_mixing(config.target_mixing);
  out.set_embedding(config.embedding);
  out.set_gate_mlp_hidden(config.gate_mlp_hidden);
  out.set_head_hidden(config.head_hidden);
  for (const std::string& task : config.tasks) out.add_tasks(task);
  std::string text;
  google::protobuf::TextFormat::PrintToString(out, &text);
  return text;
}

}  // namespace backstory::grab
