// An item of the catalog as the tokenizer sees it.
#ifndef BACKSTORY_FEATURES_ITEM_H_
#define BACKSTORY_FEATURES_ITEM_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace backstory {

// Immutable fields may be read by partial tokens (they become part of cached K/V); changing one needs a new feature
// version. Mutable fields are read by full tokens only.
struct Item {
  uint64_t item_id = 0;
  // Immutable.
  std::vector<std::string> categories;  // e.g. genres, <= 64
  std::vector<uint32_t> sid;            // semantic id, one code per level; empty = none
  int32_t year = 0;                     // release year or 0; a coarse immutable number
  // What generative models make a semantic ID of, <= 4096 numbers; may come later than the item, and stays if a later
  // version of the item has none. Empty = none.
  std::vector<float> embedding;
  // Which embeddings it may be compared with, e.g. the encoder's name, <= 64 bytes; empty = unknown.
  std::string embedding_space;
  // Mutable.
  std::string title;                           // <= 512 bytes
  std::string text;                            // <= 8192 bytes
  std::map<std::string, double> numbers;       // e.g. price; finite
  std::map<std::string, std::string> strings;  // e.g. brand
  bool operator==(const Item&) const = default;
};

// Counts of outcomes of one item strictly before a moment, over all users of the store it was read from.
// An outcome is (action type, value bin); bin = clamp(floor(value * 2), 0, 15).
struct ItemCounts {
  struct Cell {
    uint16_t action = 0;
    uint8_t value_bin = 0;
    uint64_t count = 0;
  };
  uint64_t exposures = 0;
  std::vector<Cell> cells;  // sorted by (action, value_bin), no zero counts
};

inline uint8_t ValueBin(float value) {
  if (!(value > 0)) return 0;
  const float twice = value * 2;
  return twice >= 15 ? uint8_t{15} : static_cast<uint8_t>(twice);
}

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_ITEM_H_
