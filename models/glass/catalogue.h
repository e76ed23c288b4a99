// What a GLASS version knows of items: semantic IDs, tier bins, and which items an SID stands for.
#ifndef BACKSTORY_MODELS_GLASS_CATALOGUE_H_
#define BACKSTORY_MODELS_GLASS_CATALOGUE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "models/glass/config.h"
#include "models/glass/trie.h"

namespace backstory::glass {

// Similarity of an item to every first-level code as tier numbers; constants of a model version.
class TierTable {
 public:
  static constexpr uint8_t kNoBin = 255;  // outside the edges: in no tier, but counted in the divisor

  // prototypes [levels[0]][width]: mean embedding of each code's items.
  TierTable(const Config& config, std::span<const float> prototypes);
  // embedding [width] -> bins [levels[0]]: half-open tiers, the last one closed.
  void Bins(const float* embedding, uint8_t* bins) const;
  // The `count` other codes nearest to `code` by cosine of the prototypes, nearest first.
  std::vector<uint16_t> Nearest(uint16_t code, size_t count) const;

 private:
  std::vector<float> edges_;
  bool cosine_;
  size_t width_, codes_;
  std::vector<float> prototypes_;  // [codes][width], of length one if cosine
  std::vector<float> unit_;        // [codes][width], always of length one
};

struct CatalogueInput {
  std::span<const uint64_t> item_ids;  // distinct
  std::span<const Sid> sids;           // one per item
  // [items][embedding_width], finite; empty if the configuration has neither tiers nor neighbours, or with tier_bins.
  std::span<const float> embeddings;
  std::span<const float> prototypes;  // [levels[0]][embedding_width]; empty: computed from the items
  std::span<const float> prior;       // one per item, orders the items of one SID, larger first; empty: input order
  std::span<const uint8_t> tier_bins = {};  // [items][levels[0]], as TierTable::Bins gives; empty: from embeddings
};

// Items that a finished catalogue is to know as well.
struct CatalogueAddition {
  std::vector<uint64_t> item_ids;  // distinct, none of them in the catalogue
  std::vector<Sid> sids;           // one per item
  std::vector<uint8_t> tier_bins;  // [items][levels[0]]; empty without tiers
};

// Immutable once made, thread-safe. Rows number the items in input order. What is kept beside a catalogue (a card's
// copy of its trie) learns by weak_from_this() that it has gone.
class Catalogue : public std::enable_shared_from_this<Catalogue> {
 public:
  // INVALID_ARGUMENT naming the item and the field: an id twice, a code beyond its level, a number that is not finite,
  // a wrong width.
  static absl::StatusOr<std::unique_ptr<const Catalogue>> Create(const Config& config, const CatalogueInput& input);

  // Rows of the items that are there already stay; inside an SID the new ones come last. Errors as of Create.
  absl::StatusOr<std::unique_ptr<const Catalogue>> With(const CatalogueAddition& more) const;

  const Config& config() const { return config_; }
  size_t size() const { return item_ids_.size(); }
  uint64_t item_id(uint32_t row) const { return item_ids_[row]; }
  std::optional<uint32_t> RowOf(uint64_t item_id) const;
  const Sid& sid(uint32_t row) const { return sids_[row]; }

  // Tokens of an item; three pads for SID (0, 0, 0) in the strided layout, as in the public code.
  std::array<uint32_t, kLevels> Tokens(uint32_t row) const;
  // Tier of the item for each first-level code; empty without tiers.
  std::span<const uint8_t> bins(uint32_t row) const;
  // Codes that help out `code`, nearest first.
  std::span<const uint16_t> neighbours(uint16_t code) const;

  const Trie& trie() const { return trie_; }
  // Rows of the items of SID `node` (a last-level node of the trie), best prior first.
  std::span<const uint32_t> Items(uint32_t node) const;

  // What decoding needs (trie, posting lists, SIDs, ids), and what the history side needs beside it (tier bins).
  size_t decode_bytes() const;
  size_t tier_bytes() const { return bins_.capacity(); }

 private:
  explicit Catalogue(const Config& config) : config_(config) {}
  absl::Status IndexIds();
  void IndexSids(std::span<const float> prior);
  void AddTiers(const CatalogueInput& input);

  const Config config_;
  std::vector<uint64_t> item_ids_;
  std::vector<uint32_t> rows_by_id_;  // rows sorted by id
  std::vector<Sid> sids_;
  Trie trie_;
  std::vector<uint32_t> posting_begin_;  // [SIDs + 1]
  std::vector<uint32_t> postings_;       // [items]
  std::vector<uint8_t> bins_;            // [items][levels[0]]
  std::vector<uint16_t> neighbours_;     // [levels[0]][neighbours]
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CATALOGUE_H_
