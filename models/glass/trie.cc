#include "models/glass/trie.h"

#include <cassert>

namespace backstory::glass {

Trie::Trie(std::span<const Sid> sids) {
  for (size_t i = 0; i < sids.size(); ++i) {
    assert(i == 0 || sids[i - 1] < sids[i]);
    size_t level = 0;  // the first that differs from the SID before
    while (i > 0 && sids[i - 1][level] == sids[i][level]) ++level;
    for (; level < kLevels; ++level) {
      if (level + 1 < kLevels) begin_[level].push_back(static_cast<uint32_t>(codes_[level + 1].size()));
      codes_[level].push_back(sids[i][level]);
    }
  }
  for (size_t level = 0; level + 1 < kLevels; ++level) {
    begin_[level].push_back(static_cast<uint32_t>(codes_[level + 1].size()));
    begin_[level].shrink_to_fit();
    codes_[level].shrink_to_fit();
  }
  codes_[kLevels - 1].shrink_to_fit();
}

Trie::Children Trie::Next(size_t level, uint32_t node) const {
  if (level == 0) return {codes_[0], 0};
  const uint32_t first = begin_[level - 1][node], last = begin_[level - 1][node + 1];
  return {std::span(codes_[level]).subspan(first, last - first), first};
}

size_t Trie::bytes() const {
  size_t sum = 0;
  for (const auto& codes : codes_) sum += codes.capacity() * sizeof(uint16_t);
  for (const auto& begin : begin_) sum += begin.capacity() * sizeof(uint32_t);
  return sum;
}

}  // namespace backstory::glass
