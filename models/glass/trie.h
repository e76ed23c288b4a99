// Which codes may follow: the SIDs that some item has, as a flattened trie.
#ifndef BACKSTORY_MODELS_GLASS_TRIE_H_
#define BACKSTORY_MODELS_GLASS_TRIE_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "models/glass/config.h"

namespace backstory::glass {

// Three levels of nodes, each level sorted by parent, then code; the children of a node are a range of the next level,
// so that a step walks what is valid instead of masking what is not. At most 22 bytes an SID, whatever the codebooks.
// Immutable, thread-safe.
class Trie {
 public:
  // The root's children are nodes of level 0.
  struct Children {
    std::span<const uint16_t> codes;  // ascending
    uint32_t first = 0;               // node of codes[0] in its level; the others follow
  };

  Trie() = default;
  // `sids` sorted and distinct.
  explicit Trie(std::span<const Sid> sids);

  // Level 0: `node` is ignored.
  Children Next(size_t level, uint32_t node) const;
  size_t size() const { return codes_[kLevels - 1].size(); }  // distinct SIDs; a node of the last level is one of them
  size_t bytes() const;

 private:
  std::array<std::vector<uint16_t>, kLevels> codes_;
  // begin_[l][n] .. begin_[l][n + 1]: children in level l + 1 of node n of level l.
  std::array<std::vector<uint32_t>, kLevels - 1> begin_;
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_TRIE_H_
