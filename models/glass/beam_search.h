// Beam search over semantic IDs: three steps, then the items behind the best SIDs.
#ifndef BACKSTORY_MODELS_GLASS_BEAM_SEARCH_H_
#define BACKSTORY_MODELS_GLASS_BEAM_SEARCH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "models/glass/catalogue.h"
#include "models/glass/history.h"
#include "models/glass/network.h"
#include "models/glass/trie.h"

namespace backstory::glass {

enum class SearchMode {
  kFree,   // any token of the vocabulary, as the public code does
  kLevel,  // tokens of the step's level
  kValid,  // tokens that continue the SID of an item
};

// One beam. Scores add log-softmax over the whole vocabulary in every mode; nothing is renormalised, so that they
// compare.
struct Beam {
  std::array<uint32_t, kLevels> tokens{};
  float score = 0;
  uint32_t node = 0;  // kValid: the SID, a last-level node of the trie
};

// Encodes what a history has to say before the first token.
Memory Encode(const Network& network, const History& history, ThreadPool* pool);

// Tokens of the items that a first-level code retrieves from the user's long history.
using BucketTokens = std::function<std::vector<uint32_t>(uint16_t code)>;
// Of a user's history, with repeats.
BucketTokens BucketsOf(const Catalogue& catalogue, const History& history);

// What steered the last step of a beam: its retrieved tokens by share of the search's attention
// (Decoder::SearchAttention), and how far the gates of all layers let them in.
struct Steering {
  std::vector<RetrievedSet::Member> tokens;
  std::vector<float> mass;  // [tokens]
  float gate = 0;           // 0..1
};

struct SearchOptions {
  size_t beam = 20;  // 1..1024
  SearchMode mode = SearchMode::kValid;
  const Trie* trie = nullptr;  // kValid
  ThreadPool* pool = nullptr;  // null: the calling thread. Changes no bit
  // The reply of each step, best first, if wanted (tests).
  std::array<std::vector<Beam>, kLevels>* steps = nullptr;
  // One per beam of the reply, if wanted (explanations).
  std::vector<Steering>* steering = nullptr;
};

// At most `beam` beams, best first; fewer where fewer are valid. Ties go to the better parent, then the smaller token.
std::vector<Beam> Search(const Network& network, const Memory& memory, const BucketTokens& buckets,
                         const SearchOptions& options);

// Log-probabilities of given token triples [beams], without any search: what Search would have scored them. The scores
// in `beams` are not read. For checking searches that round.
std::vector<float> ScoresOf(const Network& network, const Memory& memory, const BucketTokens& buckets,
                            std::span<const Beam> beams);

struct RecommendOptions {
  size_t count = 10;
  size_t per_sid_max = SIZE_MAX;           // diversity: items of one SID
  std::function<bool(uint32_t row)> keep;  // null: all items
  uint64_t* beyond_per_sid = nullptr;      // if not null: added to for each item that only per_sid_max left out
};

struct RecommendedItem {
  uint32_t row = 0;
  size_t beam = 0;  // of its SID
};

// Items of the beams in score order, within an SID by prior. Beams come from a kValid search over `catalogue`'s trie.
std::vector<RecommendedItem> ItemsOf(const Catalogue& catalogue, std::span<const Beam> beams,
                                     const RecommendOptions& options);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_BEAM_SEARCH_H_
