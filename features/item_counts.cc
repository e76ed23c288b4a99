#include "features/item_counts.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace backstory {

void ItemCountIndex::Add(const Event& event) {
  const bool action = event.kind == EventKind::kAction;
  items_[event.item_id].outcomes.push_back({.time_us = event.time_us,
                                            .action = action ? static_cast<uint16_t>(event.action) : uint16_t{0},
                                            .value_bin = action ? ValueBin(event.value) : uint8_t{0}});
}

void ItemCountIndex::Count(const Outcome& outcome, ItemCounts* counts) {
  if (outcome.action == 0) {
    ++counts->exposures;
    return;
  }
  const std::pair key{outcome.action, outcome.value_bin};
  const auto less = [](const ItemCounts::Cell& cell, const auto& k) {
    return std::pair{cell.action, cell.value_bin} < k;
  };
  auto cell = std::lower_bound(counts->cells.begin(), counts->cells.end(), key, less);
  if (cell == counts->cells.end() || std::pair{cell->action, cell->value_bin} != key) {
    cell = counts->cells.insert(cell, {.action = outcome.action, .value_bin = outcome.value_bin, .count = 0});
  }
  ++cell->count;
}

void ItemCountIndex::Seal() {
  const auto earlier = [](const Outcome& a, const Outcome& b) { return a.time_us < b.time_us; };
  for (auto& [id, item] : items_) {
    std::sort(item.outcomes.begin(), item.outcomes.end(), earlier);
    item.snapshots.clear();
    ItemCounts counts;
    for (size_t i = 0; i < item.outcomes.size(); ++i) {
      Count(item.outcomes[i], &counts);
      if ((i + 1) % kStride == 0) item.snapshots.push_back(counts);
    }
  }
}

ItemCounts ItemCountIndex::CountsBefore(uint64_t item_id, int64_t before_us, int64_t granularity_us) const {
  assert(granularity_us > 0);
  const auto found = items_.find(item_id);
  if (found == items_.end() || before_us <= 0) return {};
  const PerItem& item = found->second;
  const int64_t cut = before_us / granularity_us * granularity_us;
  const auto end = std::partition_point(item.outcomes.begin(), item.outcomes.end(),
                                        [cut](const Outcome& outcome) { return outcome.time_us < cut; });
  const size_t count = static_cast<size_t>(end - item.outcomes.begin());
  const size_t snapshot = count / kStride;
  ItemCounts counts = snapshot > 0 ? item.snapshots[snapshot - 1] : ItemCounts{};
  for (size_t i = snapshot * kStride; i < count; ++i) Count(item.outcomes[i], &counts);
  return counts;
}

}  // namespace backstory
