#include "models/glass/quantiser.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/manifest.h"

namespace backstory::glass {
namespace {

size_t Size(int value) { return static_cast<size_t>(value); }

absl::StatusOr<std::vector<float>> Values(const TensorMap& tensors, const std::string& name, int64_t rows,
                                          int64_t columns) {
  const auto view = columns > 0 ? tensors.Get(name, {rows, columns}) : tensors.Get(name, {rows});
  if (!view.ok()) return view.status();
  return std::vector<float>(view->data, view->data + view->size);
}

// Squared distance without the row's own norm, which no comparison needs.
size_t Nearest(const std::vector<float>& codebook, size_t width, const std::vector<float>& row) {
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t code = 0; code * width < codebook.size(); ++code) {
    double distance = 0;
    for (size_t i = 0; i < width; ++i) {
      const double c = codebook[code * width + i];
      distance += c * (c - 2.0 * row[i]);
    }
    if (distance < least) least = distance, best = code;
  }
  return best;
}

template <typename T>
void AppendBytes(const T* values, size_t count, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

}  // namespace

absl::StatusOr<Quantiser> Quantiser::Create(const Config& config, const TensorMap& tensors) {
  auto prototypes = Values(tensors, "prototype", config.levels[0], config.embedding_width);
  if (!prototypes.ok()) return prototypes.status();
  Quantiser quantiser(config, *std::move(prototypes));
  if (config.quantiser == QuantiserKind::kNone) return quantiser;
  int64_t width = config.embedding_width;
  if (config.quantiser == QuantiserKind::kRqVae) {
    std::vector<int> widths = config.quantiser_hidden;
    widths.push_back(config.quantiser_latent);
    for (size_t i = 0; i < widths.size(); ++i) {
      auto w = Values(tensors, absl::StrCat("encoder.", i, ".w"), widths[i], width);
      if (!w.ok()) return w.status();
      auto b = Values(tensors, absl::StrCat("encoder.", i, ".b"), widths[i], 0);
      if (!b.ok()) return b.status();
      quantiser.encoder_.push_back({Size(widths[i]), static_cast<size_t>(width), *std::move(w), *std::move(b)});
      width = widths[i];
    }
  }
  for (size_t l = 0; l < kLevels; ++l) {
    auto codebook = Values(tensors, absl::StrCat("codebook.", l), config.levels[l], config.quantiser_latent);
    if (!codebook.ok()) return codebook.status();
    quantiser.codebooks_[l] = *std::move(codebook);
  }
  return quantiser;
}

absl::StatusOr<Quantiser::Encoded> Quantiser::Encode(std::span<const float> embedding) const {
  if (config_.quantiser == QuantiserKind::kNone) {
    return absl::FailedPreconditionError(absl::StrCat("model ", config_.name, " has no quantiser for new items"));
  }
  if (embedding.size() != Size(config_.embedding_width)) {
    return absl::InvalidArgumentError(absl::StrCat("embedding has ", embedding.size(), " numbers, model ", config_.name,
                                                   " takes ", config_.embedding_width));
  }
  for (size_t i = 0; i < embedding.size(); ++i) {
    if (!std::isfinite(embedding[i])) {
      return absl::InvalidArgumentError(absl::StrCat("embedding[", i, "] is not finite"));
    }
  }
  std::vector<float> row(embedding.begin(), embedding.end());
  for (size_t layer = 0; layer < encoder_.size(); ++layer) {
    const Layer& l = encoder_[layer];
    std::vector<float> next(l.out);
    for (size_t o = 0; o < l.out; ++o) {
      double sum = l.b[o];
      for (size_t i = 0; i < l.in; ++i) sum += static_cast<double>(l.w[o * l.in + i]) * row[i];
      next[o] = static_cast<float>(layer + 1 < encoder_.size() ? std::max(0.0, sum) : sum);
    }
    row = std::move(next);
  }
  Encoded encoded;
  for (size_t l = 0; l < kLevels; ++l) {
    const size_t code = Nearest(codebooks_[l], row.size(), row);
    encoded.sid[l] = static_cast<uint16_t>(code);
    for (size_t i = 0; i < row.size(); ++i) row[i] -= codebooks_[l][code * row.size() + i];
  }
  if (config_.bins() > 0) {
    encoded.tier_bins.resize(Size(config_.levels[0]));
    tiers_.Bins(embedding.data(), encoded.tier_bins.data());
  }
  return encoded;
}

std::string SidVersion(const TensorMap& quantiser, std::span<const Sid> sids) {
  std::string bytes;
  for (const std::string& name : quantiser.Names()) {  // in order, all before "sid"
    if (!name.starts_with("codebook.") && !name.starts_with("encoder.")) continue;
    bytes += name;
    AppendBytes(quantiser.Find(name)->data, quantiser.Find(name)->size, &bytes);
  }
  bytes += "sid";
  bytes.reserve(bytes.size() + sids.size() * kLevels * sizeof(int64_t));
  for (const Sid& sid : sids) {
    const int64_t codes[kLevels] = {sid[0], sid[1], sid[2]};
    AppendBytes(codes, kLevels, &bytes);
  }
  if (const TensorView* prototype = quantiser.Find("prototype")) AppendBytes(prototype->data, prototype->size, &bytes);
  return Digest(DigestKind::kSha256, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}).substr(0, 16);
}

}  // namespace backstory::glass
