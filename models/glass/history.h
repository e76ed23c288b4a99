// What GLASS keeps per user: a short window, integer tier counts and buckets of the long part, updated event by event.
#ifndef BACKSTORY_MODELS_GLASS_HISTORY_H_
#define BACKSTORY_MODELS_GLASS_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "models/glass/catalogue.h"

namespace backstory::glass {

// One event of the history: the item as a catalogue row, and where it came from.
struct Behaviour {
  uint32_t row = 0;
  uint64_t event_id = 0;
  int64_t time_us = 0;
  bool operator==(const Behaviour&) const = default;
};

// A queue of behaviours whose memory is small when empty: there is one per first-level code. Both ends in amortised
// O(1).
class BehaviourQueue {
 public:
  void Push(const Behaviour& behaviour) { held_.push_back(behaviour); }
  void Pop();
  size_t size() const { return held_.size() - begin_; }
  size_t bytes() const { return held_.capacity() * sizeof(Behaviour); }
  std::span<const Behaviour> held() const { return std::span(held_).subspan(begin_); }  // oldest first
  std::span<const Behaviour> Newest(size_t most) const { return held().last(most < size() ? most : size()); }
  bool operator==(const BehaviourQueue& other) const;

 private:
  std::vector<Behaviour> held_;
  size_t begin_ = 0;
};

// Behaviours oldest first, as catalogue rows; one without a row (unknown item, no SID) is left out by the caller.
// Append costs O(levels[0]), whatever the length. Two histories of one list are equal however they came about. Not
// thread-safe for writing; the catalogue must outlive it.
class History {
 public:
  explicit History(const Catalogue* catalogue);

  void Append(uint32_t row, uint64_t event_id = 0, int64_t time_us = 0);
  // Goes on with a catalogue that has this one's rows, and further ones behind them.
  void Rebind(const Catalogue* catalogue) { catalogue_ = catalogue; }
  size_t size() const { return size_; }
  size_t long_size() const { return long_count_; }
  size_t bytes() const;

  std::span<const Behaviour> short_window() const { return ring_.held(); }  // oldest first
  // Tokens of the short window, oldest first, without padding: 3 per behaviour. Zeros only for SIDs read as padding.
  std::vector<uint32_t> ShortTokens() const;
  // Share of the long part in each tier of each code [levels[0] * bins]; zeros without a long part.
  void TierFeatures(float* out) const;
  // What a first-level code retrieves, oldest first, at most retrieved_items. Where the code's own bucket has fewer
  // than neighbour_below, its neighbours fill what is left, nearest code and newest item first, before the own items.
  std::vector<Behaviour> Bucket(uint16_t code) const;

  bool operator==(const History& other) const;
  // Over counts, window and buckets, from `seed`: tells whether memory still is what an update left.
  uint64_t Hash(uint64_t seed) const;

 private:
  void EnterLong(const Behaviour& behaviour);
  void Count(uint32_t row, int32_t change);

  const Catalogue* catalogue_;
  size_t size_ = 0, long_count_ = 0;
  BehaviourQueue ring_;                  // newest short_items
  std::vector<int32_t> counts_;          // [levels[0]][bins]
  std::vector<BehaviourQueue> buckets_;  // [levels[0]] of the long part
  BehaviourQueue long_;                  // only where the long part is capped: what leaves it next
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_HISTORY_H_
