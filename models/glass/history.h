// What GLASS keeps per user: a short window, integer tier counts and buckets of the long part, updated event by event.
#ifndef BACKSTORY_MODELS_GLASS_HISTORY_H_
#define BACKSTORY_MODELS_GLASS_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "models/glass/catalogue.h"

namespace backstory::glass {

// A queue of rows whose memory is small when empty: there is one per first-level code. Both ends in amortised O(1).
class RowQueue {
 public:
  void Push(uint32_t row) { rows_.push_back(row); }
  void Pop();
  size_t size() const { return rows_.size() - begin_; }
  std::span<const uint32_t> rows() const { return std::span(rows_).subspan(begin_); }  // oldest first
  std::span<const uint32_t> Newest(size_t most) const { return rows().last(most < size() ? most : size()); }
  bool operator==(const RowQueue& other) const;

 private:
  std::vector<uint32_t> rows_;
  size_t begin_ = 0;
};

// Behaviours oldest first, as catalogue rows; one without a row (unknown item, no SID) is left out by the caller. Append
// costs O(levels[0]), whatever the length. Two histories of one list are equal however they came about. Not thread-safe
// for writing; the catalogue must outlive it.
class History {
 public:
  explicit History(const Catalogue* catalogue);

  void Append(uint32_t row);
  size_t size() const { return size_; }
  size_t long_size() const { return long_count_; }
  size_t bytes() const;

  // Tokens of the short window, oldest first, without padding: 3 per behaviour. Zeros only for SIDs read as padding.
  std::vector<uint32_t> ShortTokens() const;
  // Share of the long part in each tier of each code [levels[0] * bins]; zeros without a long part.
  void TierFeatures(float* out) const;
  // Rows retrieved for a first-level code, oldest first, at most retrieved_items. Where the code's own bucket has fewer
  // than neighbour_below, its neighbours fill what is left, nearest code and newest item first, before the own items.
  std::vector<uint32_t> Bucket(uint16_t code) const;

  bool operator==(const History& other) const;

 private:
  void EnterLong(uint32_t row);
  void Count(uint32_t row, int32_t change);

  const Catalogue* catalogue_;
  size_t size_ = 0, long_count_ = 0;
  RowQueue ring_;                  // newest short_items
  std::vector<int32_t> counts_;    // [levels[0]][bins]
  std::vector<RowQueue> buckets_;  // [levels[0]] of the long part
  RowQueue long_;                  // only where the long part is capped: what leaves it next
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_HISTORY_H_
