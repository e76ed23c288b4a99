#include "models/glass/catalogue.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace backstory::glass {
namespace {

size_t Size(int value) { return static_cast<size_t>(value); }

float Dot(const float* a, const float* b, size_t n) {
  float sum[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) sum[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

void ScaleToOne(float* row, size_t n) {
  const float length = std::max(std::sqrt(Dot(row, row, n)), 1e-12f);
  for (size_t i = 0; i < n; ++i) row[i] /= length;
}

// Mean embedding of each code's items; the mean of all for a code without items.
std::vector<float> MeanEmbeddings(const Config& config, const CatalogueInput& input) {
  const size_t width = Size(config.embedding_width), codes = Size(config.levels[0]);
  std::vector<double> sums(codes * width), all(width);
  std::vector<size_t> counts(codes);
  for (size_t i = 0; i < input.sids.size(); ++i) {
    const size_t code = input.sids[i][0];
    ++counts[code];
    for (size_t x = 0; x < width; ++x) {
      const double value = input.embeddings[i * width + x];
      sums[code * width + x] += value;
      all[x] += value;
    }
  }
  std::vector<float> means(codes * width);
  const double total = static_cast<double>(std::max<size_t>(1, input.sids.size()));
  for (size_t code = 0; code < codes; ++code) {
    for (size_t x = 0; x < width; ++x) {
      means[code * width + x] = static_cast<float>(
          counts[code] > 0 ? sums[code * width + x] / static_cast<double>(counts[code]) : all[x] / total);
    }
  }
  return means;
}

absl::Status CheckSids(const Config& config, std::span<const uint64_t> item_ids, std::span<const Sid> sids) {
  const auto wrong = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  if (sids.size() != item_ids.size()) {
    return wrong(absl::StrCat("field sid: ", sids.size(), " SIDs for ", item_ids.size(), " items"));
  }
  for (size_t i = 0; i < sids.size(); ++i) {
    for (size_t l = 0; l < kLevels; ++l) {
      if (sids[i][l] < config.levels[l]) continue;
      return wrong(absl::StrCat("item ", item_ids[i], ", field sid: code ", sids[i][l], " of level ", l,
                                ", must be below ", config.levels[l]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTierBins(const Config& config, std::span<const uint64_t> item_ids, std::span<const uint8_t> bins) {
  if (bins.empty()) return absl::OkStatus();
  const size_t codes = Size(config.levels[0]);
  if (bins.size() != item_ids.size() * codes) {
    return absl::InvalidArgumentError(
        absl::StrCat("field tier_bin: ", bins.size(), " bins for ", item_ids.size(), " items of ", codes, " codes"));
  }
  for (size_t i = 0; i < bins.size(); ++i) {
    if (bins[i] < config.bins() || bins[i] == TierTable::kNoBin) continue;
    return absl::InvalidArgumentError(absl::StrCat("item ", item_ids[i / codes], ", field tier_bin[", i % codes,
                                                   "] is ", static_cast<int>(bins[i]), ", must be below ",
                                                   config.bins(), " or 255"));
  }
  return absl::OkStatus();
}

absl::Status CheckInput(const Config& config, const CatalogueInput& input) {
  const size_t n = input.item_ids.size(), width = Size(config.embedding_width);
  const auto wrong = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  if (n == 0) return wrong("catalogue: no items");
  if (n > UINT32_MAX) return wrong(absl::StrCat("catalogue: ", n, " items, at most ", UINT32_MAX));
  if (auto s = CheckSids(config, input.item_ids, input.sids); !s.ok()) return s;
  const bool wanted =
      (config.bins() > 0 && input.tier_bins.empty()) || (config.neighbours > 0 && input.prototypes.empty());
  if (auto s = CheckTierBins(config, input.item_ids, input.tier_bins); !s.ok()) return s;
  if (wanted || !input.embeddings.empty()) {
    if (input.embeddings.size() != n * width) {
      return wrong(
          absl::StrCat("field embedding: ", input.embeddings.size(), " numbers for ", n, " items of width ", width));
    }
    for (size_t i = 0; i < input.embeddings.size(); ++i) {
      if (std::isfinite(input.embeddings[i])) continue;
      return wrong(
          absl::StrCat("item ", input.item_ids[i / width], ", field embedding[", i % width, "] is not finite"));
    }
  }
  if (!input.prototypes.empty() && input.prototypes.size() != Size(config.levels[0]) * width) {
    return wrong(absl::StrCat("field prototype: ", input.prototypes.size(), " numbers, expected ", config.levels[0],
                              " rows of ", width));
  }
  for (const float value : input.prototypes) {
    if (!std::isfinite(value)) return wrong("field prototype: a number is not finite");
  }
  if (!input.prior.empty() && input.prior.size() != n) {
    return wrong(absl::StrCat("field prior: ", input.prior.size(), " numbers for ", n, " items"));
  }
  return absl::OkStatus();
}

}  // namespace

TierTable::TierTable(const Config& config, std::span<const float> prototypes)
    : edges_(config.tier_edges),
      cosine_(config.tier_similarity == TierSimilarity::kCosine),
      width_(Size(config.embedding_width)),
      codes_(Size(config.levels[0])),
      prototypes_(prototypes.begin(), prototypes.end()),
      unit_(prototypes_) {
  for (size_t code = 0; code < codes_; ++code) ScaleToOne(unit_.data() + code * width_, width_);
  if (cosine_) prototypes_ = unit_;
}

void TierTable::Bins(const float* embedding, uint8_t* bins) const {
  const float length = cosine_ ? std::max(std::sqrt(Dot(embedding, embedding, width_)), 1e-12f) : 1.0f;
  for (size_t code = 0; code < codes_; ++code) {
    float similarity = Dot(embedding, prototypes_.data() + code * width_, width_) / length;
    if (cosine_) similarity = std::clamp(similarity, -1.0f, 1.0f);  // rounding only
    const auto above = std::upper_bound(edges_.begin(), edges_.end(), similarity) - edges_.begin();
    if (similarity == edges_.back()) {
      bins[code] = static_cast<uint8_t>(edges_.size() - 2);
    } else if (above == 0 || above == static_cast<ptrdiff_t>(edges_.size())) {
      bins[code] = kNoBin;
    } else {
      bins[code] = static_cast<uint8_t>(above - 1);
    }
  }
}

std::vector<uint16_t> TierTable::Nearest(uint16_t code, size_t count) const {
  std::vector<std::pair<float, uint16_t>> order;
  for (size_t other = 0; other < codes_; ++other) {
    if (other == code) continue;
    order.emplace_back(-Dot(unit_.data() + code * width_, unit_.data() + other * width_, width_),
                       static_cast<uint16_t>(other));
  }
  std::sort(order.begin(), order.end());
  std::vector<uint16_t> nearest;
  for (size_t i = 0; i < std::min(count, order.size()); ++i) nearest.push_back(order[i].second);
  return nearest;
}

absl::StatusOr<std::unique_ptr<const Catalogue>> Catalogue::Create(const Config& config, const CatalogueInput& input) {
  if (absl::Status status = CheckInput(config, input); !status.ok()) return status;
  std::unique_ptr<Catalogue> catalogue(new Catalogue(config));
  catalogue->item_ids_.assign(input.item_ids.begin(), input.item_ids.end());
  catalogue->sids_.assign(input.sids.begin(), input.sids.end());
  if (absl::Status status = catalogue->IndexIds(); !status.ok()) return status;
  catalogue->IndexSids(input.prior);
  catalogue->AddTiers(input);
  return catalogue;
}

absl::StatusOr<std::unique_ptr<const Catalogue>> Catalogue::With(const CatalogueAddition& more) const {
  if (absl::Status status = CheckSids(config_, more.item_ids, more.sids); !status.ok()) return status;
  if (absl::Status status = CheckTierBins(config_, more.item_ids, more.tier_bins); !status.ok()) return status;
  if (config_.bins() > 0 && more.tier_bins.empty() && !more.item_ids.empty()) {
    return absl::InvalidArgumentError("field tier_bin is missing");
  }
  std::unique_ptr<Catalogue> catalogue(new Catalogue(config_));
  catalogue->item_ids_ = item_ids_;
  catalogue->sids_ = sids_;
  catalogue->bins_ = bins_;
  catalogue->neighbours_ = neighbours_;
  catalogue->item_ids_.insert(catalogue->item_ids_.end(), more.item_ids.begin(), more.item_ids.end());
  catalogue->sids_.insert(catalogue->sids_.end(), more.sids.begin(), more.sids.end());
  catalogue->bins_.insert(catalogue->bins_.end(), more.tier_bins.begin(), more.tier_bins.end());
  if (absl::Status status = catalogue->IndexIds(); !status.ok()) return status;
  // The order of today's postings stands for the prior, which is not kept; new rows come after all of them.
  std::vector<float> order(catalogue->size(), -HUGE_VALF);
  for (size_t i = 0; i < postings_.size(); ++i) order[postings_[i]] = -static_cast<float>(i);
  catalogue->IndexSids(order);
  return catalogue;
}

absl::Status Catalogue::IndexIds() {
  rows_by_id_.resize(item_ids_.size());
  std::iota(rows_by_id_.begin(), rows_by_id_.end(), 0u);
  const auto by_id = [this](uint32_t a, uint32_t b) { return item_ids_[a] < item_ids_[b]; };
  if (!std::is_sorted(rows_by_id_.begin(), rows_by_id_.end(), by_id)) {
    std::sort(rows_by_id_.begin(), rows_by_id_.end(), by_id);
  }
  for (size_t i = 1; i < rows_by_id_.size(); ++i) {
    if (item_ids_[rows_by_id_[i]] == item_ids_[rows_by_id_[i - 1]]) {
      return absl::InvalidArgumentError(absl::StrCat("item ", item_ids_[rows_by_id_[i]], " is in the catalogue twice"));
    }
  }
  return absl::OkStatus();
}

void Catalogue::IndexSids(std::span<const float> prior) {
  postings_.resize(sids_.size());
  std::iota(postings_.begin(), postings_.end(), 0u);
  std::sort(postings_.begin(), postings_.end(), [&](uint32_t a, uint32_t b) {
    if (sids_[a] != sids_[b]) return sids_[a] < sids_[b];
    if (!prior.empty() && prior[a] != prior[b]) return prior[a] > prior[b];
    return a < b;
  });
  std::vector<Sid> distinct;
  for (size_t i = 0; i < postings_.size(); ++i) {
    if (i > 0 && sids_[postings_[i]] == sids_[postings_[i - 1]]) continue;
    distinct.push_back(sids_[postings_[i]]);
    posting_begin_.push_back(static_cast<uint32_t>(i));
  }
  posting_begin_.push_back(static_cast<uint32_t>(postings_.size()));
  posting_begin_.shrink_to_fit();
  trie_ = Trie(distinct);
}

void Catalogue::AddTiers(const CatalogueInput& input) {
  const bool from_embeddings = config_.bins() > 0 && input.tier_bins.empty();
  if (!from_embeddings) bins_.assign(input.tier_bins.begin(), input.tier_bins.end());
  if (!from_embeddings && config_.neighbours == 0) return;
  const std::vector<float> computed = input.prototypes.empty() ? MeanEmbeddings(config_, input) : std::vector<float>();
  const TierTable table(config_, input.prototypes.empty() ? std::span<const float>(computed) : input.prototypes);
  const size_t codes = Size(config_.levels[0]), width = Size(config_.embedding_width);
  if (from_embeddings) {
    bins_.resize(size() * codes);
    for (size_t i = 0; i < size(); ++i) table.Bins(input.embeddings.data() + i * width, bins_.data() + i * codes);
  }
  for (size_t code = 0; config_.neighbours > 0 && code < codes; ++code) {
    const std::vector<uint16_t> nearest = table.Nearest(static_cast<uint16_t>(code), Size(config_.neighbours));
    neighbours_.insert(neighbours_.end(), nearest.begin(), nearest.end());
  }
}

std::optional<uint32_t> Catalogue::RowOf(uint64_t item_id) const {
  const auto found = std::lower_bound(rows_by_id_.begin(), rows_by_id_.end(), item_id,
                                      [this](uint32_t row, uint64_t id) { return item_ids_[row] < id; });
  if (found == rows_by_id_.end() || item_ids_[*found] != item_id) return std::nullopt;
  return *found;
}

std::array<uint32_t, kLevels> Catalogue::Tokens(uint32_t row) const {
  const Sid& sid = sids_[row];
  if (config_.tokens == TokenLayout::kStrided && sid == Sid{0, 0, 0}) return {0, 0, 0};
  return {config_.offset(0) + sid[0], config_.offset(1) + sid[1], config_.offset(2) + sid[2]};
}

std::span<const uint8_t> Catalogue::bins(uint32_t row) const {
  if (bins_.empty()) return {};
  const size_t codes = Size(config_.levels[0]);
  return std::span(bins_).subspan(row * codes, codes);
}

std::span<const uint16_t> Catalogue::neighbours(uint16_t code) const {
  const size_t count = Size(config_.neighbours);
  return std::span(neighbours_).subspan(code * count, count);
}

std::span<const uint32_t> Catalogue::Items(uint32_t node) const {
  return std::span(postings_).subspan(posting_begin_[node], posting_begin_[node + 1] - posting_begin_[node]);
}

size_t Catalogue::decode_bytes() const {
  return item_ids_.capacity() * sizeof(uint64_t) + rows_by_id_.capacity() * sizeof(uint32_t) +
         sids_.capacity() * sizeof(Sid) + trie_.bytes() + posting_begin_.capacity() * sizeof(uint32_t) +
         postings_.capacity() * sizeof(uint32_t);
}

}  // namespace backstory::glass
