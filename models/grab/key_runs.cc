#include "models/grab/key_runs.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "features/token.h"

namespace backstory::grab {
namespace {

// The published formula; everything else here agrees with it to the microsecond.
uint32_t FormulaBucket(int64_t age_us, uint32_t count) {
  const double seconds = std::max(1.0, static_cast<double>(age_us) / 1e6);
  return static_cast<uint32_t>(std::min<double>(count - 1.0, std::floor(std::log(seconds) / 0.301)));
}

// a - b for times, without overflow: both are >= 0 or b may be any age.
int64_t Minus(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_sub_overflow(a, b, &result)) return b > 0 ? INT64_MIN : INT64_MAX;
  return result;
}

}  // namespace

TimeBuckets::TimeBuckets(int n_time) {
  assert(n_time >= 1);
  edges_.assign(static_cast<size_t>(n_time), INT64_MAX);
  edges_[0] = INT64_MIN;
  const uint32_t count = static_cast<uint32_t>(n_time);
  for (uint32_t b = 1; b < count; ++b) {
    const double guess = std::ceil(std::exp(0.301 * b) * 1e6);
    if (guess > 9e18) break;
    int64_t edge = static_cast<int64_t>(guess);
    while (FormulaBucket(edge - 1, count) >= b) --edge;
    while (FormulaBucket(edge, count) < b) ++edge;
    edges_[b] = edge;
  }
}

uint32_t TimeBuckets::Bucket(int64_t age_us) const {
  age_us = std::min(age_us, INT64_MAX - 1);  // INT64_MAX marks buckets that no age reaches
  return static_cast<uint32_t>(std::upper_bound(edges_.begin() + 1, edges_.end(), age_us) - edges_.begin()) - 1;
}

int64_t WindowUs(int64_t seconds) { return seconds > INT64_MAX / 1'000'000 ? INT64_MAX : seconds * 1'000'000; }

RunLists HistoryRuns(const RowIndex& rows, size_t first, size_t last, const Windows& windows,
                     const TimeBuckets& buckets) {
  const std::span<const int64_t> time = rows.time_us;
  const uint32_t count = buckets.count();
  RunLists lists;
  std::vector<size_t> offsets{0};
  // start[b] = first row younger than edge(b), as seen from row i; it only moves forward with i.
  std::vector<size_t> start(count + 1, 0);
  size_t in_window = 0;
  if (first < last) {
    in_window = static_cast<size_t>(std::lower_bound(time.begin(), time.begin() + static_cast<ptrdiff_t>(first),
                                                     Minus(time[first], windows.age_us)) -
                                    time.begin());
  }
  std::vector<uint32_t> hidden;  // rows of the tie group of i, newest first
  for (size_t i = first; i < last; ++i) {
    for (uint32_t b = 1; b < count; ++b) {
      size_t& at = start[b];
      if (i == first) {
        at = static_cast<size_t>(std::upper_bound(time.begin(), time.begin() + static_cast<ptrdiff_t>(i) + 1,
                                                  Minus(time[i], buckets.edge(b))) -
                                 time.begin());
      }
      while (at <= i && time[i] - time[at] >= buckets.edge(b)) ++at;
    }
    start[0] = i + 1;
    while (time[i] - time[in_window] > windows.age_us) ++in_window;
    size_t low = in_window;
    if (static_cast<int64_t>(i) > windows.rows) low = std::max(low, i - static_cast<size_t>(windows.rows));

    hidden.clear();
    for (int32_t j = rows.previous_tie[i]; j >= 0 && static_cast<size_t>(j) >= low;
         j = rows.previous_tie[static_cast<size_t>(j)]) {
      hidden.push_back(static_cast<uint32_t>(j));
    }
    for (uint32_t b = count; b-- > 0;) {  // oldest rows first
      size_t begin = std::max(low, b + 1 == count ? 0 : start[b + 1]);
      const size_t end = start[b];
      while (begin < end) {
        while (!hidden.empty() && hidden.back() < begin) hidden.pop_back();
        if (!hidden.empty() && hidden.back() == begin) {
          ++begin;
          continue;
        }
        const size_t stop = hidden.empty() ? end : std::min<size_t>(end, hidden.back());
        lists.runs.push_back(
            {static_cast<uint32_t>(begin), static_cast<uint32_t>(stop), static_cast<uint32_t>(i - begin), b});
        begin = stop;
      }
    }
    offsets.push_back(lists.runs.size());
  }
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    lists.of_row.emplace_back(lists.runs.data() + offsets[i], offsets[i + 1] - offsets[i]);
  }
  return lists;
}

std::vector<KeyRun> CandidateRuns(const RowIndex& rows, size_t first, size_t visible, int64_t now_us, int64_t tie,
                                  const Windows& windows, const TimeBuckets& buckets) {
  const auto time = rows.time_us.begin();
  const auto from_time = [&](int64_t t) {
    return static_cast<size_t>(std::lower_bound(time, time + static_cast<ptrdiff_t>(visible), t) - time);
  };
  size_t end = from_time(now_us);
  const size_t low = std::max(first, from_time(Minus(now_us, windows.age_us)));
  std::vector<size_t> hidden;
  if (tie != CandidateTokens::kNoTie) {
    for (size_t j = low; j < end; ++j) {
      if (rows.tie[j] == tie) hidden.push_back(j);
    }
  }
  std::vector<KeyRun> runs;  // newest first
  int64_t rank = 1;          // of the next visible row, going back
  while (end > low && rank <= windows.rows) {
    if (!hidden.empty() && hidden.back() == end - 1) {
      hidden.pop_back();
      --end;
      continue;
    }
    const uint32_t bucket = buckets.Bucket(now_us - time[static_cast<ptrdiff_t>(end) - 1]);
    size_t begin = low;
    if (bucket + 1 < buckets.count()) begin = std::max(begin, from_time(Minus(now_us, buckets.edge(bucket + 1)) + 1));
    if (!hidden.empty()) begin = std::max(begin, hidden.back() + 1);
    const int64_t left = windows.rows - rank + 1;
    if (static_cast<int64_t>(end - begin) > left) begin = end - static_cast<size_t>(left);
    rank += static_cast<int64_t>(end - begin);
    runs.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), static_cast<uint32_t>(rank - 1), bucket});
    end = begin;
  }
  std::reverse(runs.begin(), runs.end());
  return runs;
}

size_t FirstNearPage(std::span<const KeyRun> runs, size_t n_pos) {
  size_t row = runs.empty() ? 0 : runs.back().end + kPageRows - 1;  // in the page after the last visible row
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    const size_t newest_rank = run->rank - (run->end - 1 - run->begin);
    if (newest_rank + 1 >= n_pos) break;  // ranks only rise from here back
    const size_t near_rows = n_pos - 1 - newest_rank;
    row = run->end - std::min<size_t>(near_rows, run->end - run->begin);
  }
  return row / kPageRows;
}

std::vector<KeyRun> FoldedRuns(std::span<const KeyRun> runs, size_t first_folded) {
  const uint32_t border = static_cast<uint32_t>(first_folded * kPageRows);
  std::vector<KeyRun> folded;
  for (KeyRun run : runs) {
    if (run.begin < border) {
      folded.push_back(run);
      if (run.end <= border) continue;
      folded.back().end = border;
      run.rank -= border - run.begin;
      run.begin = border;
    }
    run.time = KeyRun::kNoBias;
    const bool joins = !folded.empty() && folded.back().time == KeyRun::kNoBias && folded.back().end == run.begin;
    if (joins) {
      folded.back().end = run.end;
    } else {
      folded.push_back(run);
    }
  }
  return folded;
}

}  // namespace backstory::grab
