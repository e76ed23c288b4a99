// Token arrays: what the tokenizer produces, what models and trainers read. Nothing here knows an event.
#ifndef BACKSTORY_FEATURES_TOKEN_H_
#define BACKSTORY_FEATURES_TOKEN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace backstory {

// The embedding-table rows of one sparse field for a block of tokens, CSR: token i owns ids[offsets[i] ..
// offsets[i+1]). The model sum-pools the table rows of a token. Ids are < vocab of the field; an empty list pools to
// zero.
struct SparseColumn {
  std::vector<uint32_t> offsets{0};  // [rows + 1]
  std::vector<uint32_t> ids;
};

// A block of tokens of one view (partial or full). Columns follow the order of TokenizerConfig's field list of that
// view.
struct TokenColumns {
  size_t rows = 0;
  std::vector<SparseColumn> sparse;
  std::vector<float> dense;  // [rows, dense_width] row-major
};

// One channel of a user's history, oldest to newest in canonical order (partial tokens and what attention needs of
// them).
struct ChannelRows {
  TokenColumns tokens;
  std::vector<int64_t> time_us;    // [rows], non-decreasing
  std::vector<int32_t> action;     // [rows], action class of the row, < n_act - 1
  std::vector<int64_t> tie;        // [rows], tie-group key; equal keys never see each other
  std::vector<uint64_t> event_id;  // [rows], the exposure or lone action that made the row
  // Rows [0, closed) can no longer change by the passing of time (their label window is over); only a late or corrected
  // event can change them. Rows [closed, rows) are the volatile tail.
  size_t closed = 0;
};

// Candidates of one request: full tokens, split in fields shared by all candidates (user side) and the rest (item
// side), so that the first GEMM of the tokenizer network runs once for the user side.
struct CandidateTokens {
  TokenColumns user;  // rows == 1
  TokenColumns item;  // rows == number of candidates
  int64_t now_us = 0;
  int64_t tie = -1;  // tie-group key of the request; kNoTie = none of the history's
  static constexpr int64_t kNoTie = -1;
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_TOKEN_H_
