#include "serving/engine/closest_word.h"

#include <algorithm>
#include <vector>

namespace backstory {
namespace {

constexpr size_t kTypedBytesMax = 64;

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string_view ClosestWord(std::string_view typed, std::span<const std::string> words) {
  if (typed.size() > kTypedBytesMax) return {};
  std::string_view closest;
  size_t best = std::max<size_t>(2, typed.size() / 3) + 1;
  for (const std::string& word : words) {
    const size_t distance = EditDistance(typed, word);
    if (distance < best && distance < word.size()) {
      best = distance;
      closest = word;
    }
  }
  return closest;
}

}  // namespace backstory
