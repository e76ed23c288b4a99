#include "serving/cli/suggest.h"

#include <algorithm>

namespace backstory {
namespace {

size_t EditDistance(const std::string& a, const std::string& b) {
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

std::string ClosestWord(const std::string& typed, const std::vector<std::string>& words) {
  constexpr size_t kDistanceMax = 2;
  std::string closest;
  size_t best = kDistanceMax + 1;
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
