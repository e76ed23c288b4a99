#include "models/glass/config_text.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "backstory/model/v1/glass.pb.h"
#include "models/text_proto.h"

namespace backstory::glass {
namespace {

namespace pb = ::backstory::model::v1;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// A value that protobuf let through although the enum has no such name.
template <typename Enum>
absl::Status Unknown(const char* field, Enum value) {
  return Bad(absl::StrCat(field, ": ", static_cast<int>(value), " is not a known value"));
}

absl::Status EnumsFromProto(const pb::GlassModel& in, Config* out) {
  if (!pb::GlassProfile_IsValid(in.profile())) return Unknown("profile", in.profile());
  if (!pb::TokenLayout_IsValid(in.tokens())) return Unknown("tokens", in.tokens());
  if (!pb::TierSimilarity_IsValid(in.tier_similarity())) return Unknown("tier_similarity", in.tier_similarity());
  if (!pb::TierPosition_IsValid(in.tier_position())) return Unknown("tier_position", in.tier_position());
  if (!pb::GateInput_IsValid(in.gate_input())) return Unknown("gate_input", in.gate_input());
  const bool paper = in.profile() == pb::PAPER;
  const auto choose = [paper](int given, int second) { return given == 0 ? paper : given == second; };
  out->tokens = choose(in.tokens(), pb::DENSE) ? TokenLayout::kDense : TokenLayout::kStrided;
  out->tier_similarity = choose(in.tier_similarity(), pb::COSINE) ? TierSimilarity::kCosine : TierSimilarity::kDot;
  out->tier_position = choose(in.tier_position(), pb::LAST) ? TierPosition::kLast : TierPosition::kFirst;
  out->gate_input = choose(in.gate_input(), pb::MEMORY) ? GateInput::kMemory : GateInput::kState;
  return absl::OkStatus();
}

absl::Status SidsFromProto(const pb::GlassModel& in, Config* out) {
  if (in.levels_size() != 0 && in.levels_size() != static_cast<int>(kLevels)) {
    return Bad(absl::StrCat("levels: ", in.levels_size(), " given, exactly ", kLevels, " are needed"));
  }
  for (int l = 0; l < in.levels_size(); ++l) {
    // Before anything computes offsets from them.
    if (in.levels(l) < 2 || in.levels(l) > 65'535) {
      return Bad(absl::StrCat("field levels is ", in.levels(l), ", must be three of 2..65535"));
    }
    out->levels[static_cast<size_t>(l)] = in.levels(l);
  }
  const int last = static_cast<int>(out->bos());
  out->vocabulary = in.profile() == pb::PAPER ? (last + 1 + 7) / 8 * 8 : 1000;
  if (in.has_vocabulary()) out->vocabulary = in.vocabulary();
  out->sid_version = in.sid_version();
  return absl::OkStatus();
}

void NetworkFromProto(const pb::GlassModel& in, Config* out) {
  if (in.has_d()) out->d = in.d();
  if (in.has_heads()) out->heads = in.heads();
  if (in.has_d_kv()) out->d_kv = in.d_kv();
  if (in.has_ffn()) out->ffn = in.ffn();
  if (in.has_encoder_layers()) out->encoder_layers = in.encoder_layers();
  if (in.has_decoder_layers()) out->decoder_layers = in.decoder_layers();
  if (in.has_relative_buckets()) out->relative_buckets = in.relative_buckets();
  if (in.has_relative_distance_max()) out->relative_distance_max = in.relative_distance_max();
  if (in.has_retrieved_items()) out->retrieved_items = in.retrieved_items();
  if (in.has_neighbours()) out->neighbours = in.neighbours();
  if (in.has_neighbour_below()) out->neighbour_below = in.neighbour_below();
  if (in.has_beam()) out->beam = in.beam();
  out->first_step_epsilon = in.profile() == pb::PAPER ? 0 : 1e-9;
  if (in.has_first_step_epsilon()) out->first_step_epsilon = static_cast<double>(in.first_step_epsilon());
  if (in.has_embedding_width()) out->embedding_width = in.embedding_width();
  out->embedding_space = in.embedding_space();
}

absl::Status HistoryFromProto(const pb::GlassModel& in, Config* out) {
  constexpr int kRulesMax = 64;
  if (in.history_size() > kRulesMax) return Bad(absl::StrCat("history: at most ", kRulesMax, " rules"));
  for (const pb::HistoryRule& rule : in.history()) {
    const int action = rule.action();
    const bool custom = action >= static_cast<int>(ActionType::kFirstCustom) && action <= UINT16_MAX;
    if (action == pb::NONE || (!pb::ActionType_IsValid(action) && !custom)) {
      return Bad(absl::StrCat("history.action: ", action, " is neither a known action type nor in [1000, 65535]"));
    }
    HistoryRule parsed{static_cast<ActionType>(action)};
    if (rule.has_min_value()) parsed.min_value = rule.min_value();
    if (rule.has_max_value()) parsed.max_value = rule.max_value();
    if (!(parsed.min_value < parsed.max_value)) return Bad("history: min_value must be below max_value");
    out->history.push_back(parsed);
  }
  if (in.has_short_items()) out->short_items = in.short_items();
  if (in.has_long_items()) {
    if (in.long_items() < 0 || in.long_items() > 1'000'000'000) {
      return Bad(absl::StrCat("field long_items is ", in.long_items(), ", must be 0..1000000000"));
    }
    out->long_items = static_cast<int>(in.long_items());
  }
  if (in.without_tier()) {
    if (in.tier_edges_size() > 0) return Bad("tier_edges: given although without_tier is true");
    out->tier_edges.clear();
  } else if (in.tier_edges_size() > 0) {
    out->tier_edges.assign(in.tier_edges().begin(), in.tier_edges().end());
  } else if (in.profile() == pb::PAPER) {
    out->tier_edges.clear();
    for (int i = 0; i <= 20; ++i) out->tier_edges.push_back(static_cast<float>((i - 10) / 10.0));
  }
  return absl::OkStatus();
}

absl::Status QuantiserFromProto(const pb::Quantiser& in, Config* out) {
  if (!pb::QuantiserKind_IsValid(in.kind())) return Unknown("quantiser.kind", in.kind());
  out->quantiser = in.kind() == pb::RQ_VAE      ? QuantiserKind::kRqVae
                   : in.kind() == pb::RQ_KMEANS ? QuantiserKind::kRqKMeans
                                                : QuantiserKind::kNone;
  out->quantiser_hidden.assign(in.hidden().begin(), in.hidden().end());
  out->quantiser_latent = in.latent();
  return absl::OkStatus();
}

absl::StatusOr<Config> ConfigFromProto(const pb::GlassModel& in) {
  Config out;
  out.name = in.name();
  if (out.name.empty() || out.name.size() > 64 ||
      out.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_-") != std::string::npos) {
    return Bad(absl::StrCat("name: \"", out.name.substr(0, 64), "\" must match [a-z0-9_-]{1,64}"));
  }
  if (auto s = EnumsFromProto(in, &out); !s.ok()) return s;
  if (auto s = SidsFromProto(in, &out); !s.ok()) return s;
  NetworkFromProto(in, &out);
  if (auto s = HistoryFromProto(in, &out); !s.ok()) return s;
  if (auto s = QuantiserFromProto(in.quantiser(), &out); !s.ok()) return s;
  return out;
}

}  // namespace

absl::StatusOr<Config> ConfigFromText(std::string_view text, std::string_view source_name) {
  const std::string source(source_name);
  if (text.size() > kConfigTextBytesMax) {
    return Bad(absl::StrCat(source, ": ", text.size(), " bytes exceed the limit of ", kConfigTextBytesMax));
  }
  pb::GlassModel message;
  if (absl::Status s = ParseTextProto(text, source_name, &message); !s.ok()) return s;
  auto config = ConfigFromProto(message);
  const absl::Status status = config.ok() ? Validate(*config) : config.status();
  if (status.ok()) return config;
  return absl::Status(status.code(), absl::StrCat(source, ": ", status.message()));
}

}  // namespace backstory::glass
