#include "models/grab/cuda/visible_pages.h"

#include <algorithm>

namespace backstory::grab {
namespace {

constexpr size_t kRows = cuda::kPageRows;

// The part of a run that lies in one page.
KeyRun Clip(const KeyRun& run, size_t first, size_t last) {
  KeyRun part = run;
  part.begin = std::max(run.begin, static_cast<uint32_t>(first));
  part.end = std::min(run.end, static_cast<uint32_t>(last));
  part.rank = run.rank - (part.begin - run.begin);
  return part;
}

// Whether the runs of a page cover rows [first, last) without a gap, all clipped to the last position, in one or two
// time buckets.
bool IsDirect(std::span<const KeyRun> parts, size_t first, size_t last, size_t n_pos) {
  if (parts.size() > 2 || parts.front().begin != first || parts.back().end != last) return false;
  if (parts.size() == 2 && parts[0].end != parts[1].begin) return false;
  const KeyRun& newest = parts.back();
  return newest.rank - (newest.end - 1 - newest.begin) >= n_pos - 1;
}

}  // namespace

VisiblePages FindVisiblePages(std::span<const KeyRun> runs, size_t rows, size_t n_pos) {
  VisiblePages visible;
  size_t at = 0;  // the first run that may reach into the page
  std::vector<KeyRun> parts;
  while (at < runs.size()) {
    const size_t page = std::max<size_t>(runs[at].begin, parts.empty() ? 0 : parts.back().end) / kRows;
    const size_t first = page * kRows, last = std::min(first + kRows, rows);
    parts.clear();
    size_t next = at;
    for (; next < runs.size() && runs[next].begin < last; ++next) {
      parts.push_back(Clip(runs[next], first, last));
      if (runs[next].end > last) break;  // goes on in the next page
    }
    at = next;
    if (IsDirect(parts, first, last, n_pos)) {
      cuda::PageEntry entry{.page = static_cast<int32_t>(page),
                            .segment_above = static_cast<int16_t>(parts.back().time),
                            .valid = static_cast<int16_t>(last - first)};
      if (parts.size() == 2) {
        entry.boundary = static_cast<int16_t>(parts[1].begin - first);
        entry.segment_below = static_cast<int16_t>(parts[0].time);
      }
      visible.direct.push_back(entry);
    } else {
      for (const KeyRun& part : parts) {
        for (uint32_t row = part.begin; row < part.end; ++row) {
          const size_t rank = part.rank - (row - part.begin);
          visible.folded.push_back(
              {row, static_cast<uint16_t>(std::min(rank, n_pos - 1)), static_cast<uint16_t>(part.time)});
        }
      }
    }
  }
  return visible;
}

}  // namespace backstory::grab
