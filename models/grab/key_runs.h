// Who sees whom, with which rank and time bucket: the masks and relative indices of GRAB as runs for kernels/attend.h.
// The conventions are those of tests/conformance/grab/README.md.
#ifndef BACKSTORY_MODELS_GRAB_KEY_RUNS_H_
#define BACKSTORY_MODELS_GRAB_KEY_RUNS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attend.h"

namespace backstory::grab {

// Log-time buckets of an age: min(n_time - 1, floor(ln(max(1, seconds)) / 0.301)), exact on microseconds.
class TimeBuckets {
 public:
  explicit TimeBuckets(int n_time);
  uint32_t count() const { return static_cast<uint32_t>(edges_.size()); }
  uint32_t Bucket(int64_t age_us) const;
  // The least age of a bucket; edge(0) = INT64_MIN. Non-decreasing; INT64_MAX for buckets that no age reaches.
  int64_t edge(uint32_t bucket) const { return edges_[bucket]; }

 private:
  std::vector<int64_t> edges_;
};

struct Windows {
  int64_t rows = INT64_MAX;
  int64_t age_us = INT64_MAX;
};
// `seconds` in microseconds, saturated.
int64_t WindowUs(int64_t seconds);

// What masks need of one channel's rows. `previous_tie[i]` is the newest row before i with the tie key of i, or -1.
struct RowIndex {
  std::span<const int64_t> time_us;  // non-decreasing
  std::span<const int64_t> tie;
  std::span<const int32_t> previous_tie;
};

// One list of runs per query row, in one allocation.
struct RunLists {
  std::vector<KeyRun> runs;
  std::vector<std::span<const KeyRun>> of_row;  // into runs
};

// History rows [first, last): row i sees itself, and j < i of other tie groups inside both windows; rank = i - j, so it
// counts tied rows too.
RunLists HistoryRuns(const RowIndex& rows, size_t first, size_t last, const Windows& windows,
                     const TimeBuckets& buckets);

// Candidates at `now_us` with tie key `tie` (CandidateTokens::kNoTie: none) over rows [first, visible): row j is
// visible if its time is before now, its tie differs, and it is inside both windows; rank counts visible rows, newest
// = 1.
std::vector<KeyRun> CandidateRuns(const RowIndex& rows, size_t first, size_t visible, int64_t now_us, int64_t tie,
                                  const Windows& windows, const TimeBuckets& buckets);

// The oldest page (128 rows) with a visible row of rank < n_pos - 1 or beyond the last row if there is none: from it on
// position bias differs by row.
size_t FirstNearPage(std::span<const KeyRun> runs, size_t n_pos);
// The runs with all rows from page `first_folded` on marked as without bias, and joined where they touch.
std::vector<KeyRun> FoldedRuns(std::span<const KeyRun> runs, size_t first_folded);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_KEY_RUNS_H_
