#include "models/glass/config.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace backstory::glass {
namespace {

absl::Status Bad(const char* field, double value, const std::string& rule) {
  return absl::InvalidArgumentError(absl::StrCat("field ", field, " is ", value, ", must be ", rule));
}

absl::Status ValidateQuantiser(const Config& c) {
  constexpr int kWidthMax = 16'384;
  if (c.quantiser == QuantiserKind::kNone) return absl::OkStatus();
  if (c.quantiser_latent < 1 || c.quantiser_latent > kWidthMax) {
    return Bad("quantiser.latent", c.quantiser_latent, absl::StrCat("1..", kWidthMax));
  }
  if (c.quantiser == QuantiserKind::kRqKMeans && c.quantiser_latent != c.embedding_width) {
    return Bad("quantiser.latent", c.quantiser_latent, absl::StrCat("embedding_width, ", c.embedding_width));
  }
  if (c.quantiser_hidden.size() > 16) {
    return Bad("quantiser.hidden", static_cast<double>(c.quantiser_hidden.size()), "at most 16 widths");
  }
  for (const int width : c.quantiser_hidden) {
    if (width < 1 || width > kWidthMax) return Bad("quantiser.hidden", width, absl::StrCat("1..", kWidthMax));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Config& c) {
  struct Limit {
    const char* field;
    int value, low, high;
  };
  const Limit limits[] = {
      {"d", c.d, 1, 4096},
      {"heads", c.heads, 1, 64},
      {"d_kv", c.d_kv, 1, 512},
      {"ffn", c.ffn, 1, 16'384},
      {"encoder_layers", c.encoder_layers, 1, 64},
      {"decoder_layers", c.decoder_layers, 1, 64},
      {"relative_distance_max", c.relative_distance_max, c.relative_buckets / 4 + 1, 65'536},
      {"short_items", c.short_items, 1, 1024},
      {"long_items", c.long_items, 0, 1'000'000'000},
      {"retrieved_items", c.retrieved_items, 0, 1024},
      {"neighbours", c.neighbours, 0, std::min(16, c.levels[0] - 1)},
      {"neighbour_below", c.neighbour_below, 0, 1024},
      {"beam", c.beam, 1, 1024},
      {"embedding_width", c.embedding_width, 1, 4096},
  };
  if (c.relative_buckets % 4 != 0 || c.relative_buckets < 4 || c.relative_buckets > 1024) {
    return Bad("relative_buckets", c.relative_buckets, "a multiple of 4 in 4..1024");
  }
  for (const int size : c.levels) {
    if (size < 2 || size > 65'535) return Bad("levels", size, "three of 2..65535");
  }
  for (const Limit& l : limits) {
    if (l.value < l.low || l.value > l.high) return Bad(l.field, l.value, absl::StrCat(l.low, "..", l.high));
  }
  if (c.vocabulary <= static_cast<int>(c.bos())) {
    return Bad("vocabulary", c.vocabulary, absl::StrCat("more than the last token ", c.bos()));
  }
  if (c.tier_edges.size() == 1 || c.tier_edges.size() > 255) {
    return Bad("tier_edges", static_cast<double>(c.tier_edges.size()), "none, or 2..255 rising numbers");
  }
  for (size_t i = 0; i < c.tier_edges.size(); ++i) {
    if (!std::isfinite(c.tier_edges[i]) || (i > 0 && c.tier_edges[i - 1] >= c.tier_edges[i])) {
      return Bad("tier_edges", c.tier_edges[i], "finite and more than the edge before it");
    }
  }
  if (!std::isfinite(c.first_step_epsilon) || c.first_step_epsilon < 0 || c.first_step_epsilon > 0.1) {
    return Bad("first_step_epsilon", c.first_step_epsilon, "0..0.1");
  }
  constexpr size_t kSpaceBytesMax = 64;
  if (c.embedding_space.size() > kSpaceBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("field embedding_space has ", c.embedding_space.size(),
                                                   " bytes, at most ", kSpaceBytesMax, " are allowed"));
  }
  return ValidateQuantiser(c);
}

bool IsBehaviour(const Config& config, const Event& event) {
  if (event.kind != EventKind::kAction) return false;
  for (const HistoryRule& rule : config.history) {
    if (event.action == rule.action && event.value >= rule.min_value && event.value < rule.max_value) return true;
  }
  return config.history.empty();
}

}  // namespace backstory::glass
