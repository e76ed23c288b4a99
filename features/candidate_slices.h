// TokenizeCandidates in slices, which may be made at the same time: the same tokens, bit for bit.
#ifndef BACKSTORY_FEATURES_CANDIDATE_SLICES_H_
#define BACKSTORY_FEATURES_CANDIDATE_SLICES_H_

#include <cstddef>
#include <span>

#include "features/tokenizer.h"

namespace backstory {

struct CandidateSlice {
  TokenColumns user;  // of the first slice, else empty
  TokenColumns item;  // rows == candidates of the slice
  FeatureReport report;
};

// Candidates [first, first + count). found_items and found_counts of the input, where given, are the slice's.
CandidateSlice TokenizeSlice(const CandidateInput& input, const TokenizerConfig& config, size_t first, size_t count);

// `slices` in order, all candidates once. `report` may be null.
CandidateTokens JoinSlices(const CandidateInput& input, std::span<CandidateSlice> slices, FeatureReport* report);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_CANDIDATE_SLICES_H_
