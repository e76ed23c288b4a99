#include "store/cell_cache.h"

#include <algorithm>
#include <cassert>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

std::vector<Cell> TotalsOf(std::vector<Cell> cells) {
  for (Cell& cell : cells) cell.hour = 0;
  NormaliseCells(&cells);
  return cells;
}

size_t BytesOf(size_t cells) { return 160 + cells * sizeof(Cell); }

ItemCounts ToCounts(const std::vector<Cell>& sums) {
  ItemCounts counts;
  for (const Cell& cell : sums) {
    if (cell.count <= 0) continue;
    if (cell.outcome == 0) {
      counts.exposures = static_cast<uint64_t>(cell.count);
    } else {
      const uint32_t code = cell.outcome - 1;
      counts.cells.push_back(
          {static_cast<uint16_t>(code / 16), static_cast<uint8_t>(code % 16), static_cast<uint64_t>(cell.count)});
    }
  }
  return counts;
}

// Sums before end_hour, from whichever side has fewer cells to add.
std::vector<Cell> SumBefore(const std::vector<Cell>& cells, const std::vector<Cell>& totals, int64_t end_hour) {
  const auto end = std::lower_bound(cells.begin(), cells.end(), end_hour, [](const Cell& cell, int64_t hour) {
    return static_cast<int64_t>(cell.hour) < hour;
  });
  if (end - cells.begin() <= cells.end() - end) return TotalsOf({cells.begin(), end});
  std::vector<Cell> sums(end, cells.end());
  for (Cell& cell : sums) cell.count = -cell.count;
  sums.insert(sums.end(), totals.begin(), totals.end());
  return TotalsOf(std::move(sums));
}

}  // namespace

absl::StatusOr<std::vector<Cell>> CellCache::Load(const std::string& prefix) const {
  std::vector<Cell> cells;
  auto it = database_->Scan(Family::kCells);
  for (it->Seek(prefix); it->Valid() && it->key().starts_with(prefix); it->Next()) {
    std::string ns;
    uint64_t item = 0;
    uint32_t first_hour = 0;
    if (!ParseCellKey(it->key().ToStringView(), &ns, &item, &first_hour) ||
        !DecodeCells(it->value().ToStringView(), first_hour, &cells)) {
      return absl::DataLossError(absl::StrCat("store ", database_->directory(), ": statistics of item ", item,
                                              " are malformed; ", DamageAdvice(database_->directory())));
    }
  }
  if (!it->status().ok()) return FromRocks(it->status(), database_->directory());
  return cells;
}

absl::StatusOr<ItemCounts> CellCache::CountsBefore(std::string_view ns, uint64_t item_id, int64_t end_hour) {
  const std::string prefix = CellPrefix(ns, item_id);
  Shard& shard = ShardOf(prefix);
  uint64_t generation = 0;
  bool quiet = false;
  {
    std::lock_guard<std::mutex> lock(shard.mutex);
    const auto it = shard.entries.find(prefix);
    if (it != shard.entries.end()) {
      shard.ages.splice(shard.ages.begin(), shard.ages, it->second.age);
      return ToCounts(SumBefore(it->second.cells, it->second.totals, end_hour));
    }
    generation = shard.generation;
    quiet = shard.announced == 0;
  }
  absl::StatusOr<std::vector<Cell>> cells = Load(prefix);
  if (!cells.ok()) return cells.status();
  std::vector<Cell> totals = TotalsOf(*cells);
  const ItemCounts counts = ToCounts(SumBefore(*cells, totals, end_hour));
  std::lock_guard<std::mutex> lock(shard.mutex);
  if (!quiet || shard.generation != generation || shard.entries.contains(prefix)) return counts;
  shard.ages.push_front(prefix);
  shard.bytes += BytesOf(cells->size());
  shard.entries.emplace(prefix, Entry{*std::move(cells), std::move(totals), shard.ages.begin()});
  while (shard.bytes > shard_bytes_ && shard.ages.size() > 1) {
    const auto oldest = shard.entries.find(shard.ages.back());
    shard.bytes -= BytesOf(oldest->second.cells.size());
    shard.entries.erase(oldest);
    shard.ages.pop_back();
  }
  return counts;
}

void CellCache::Announce(const std::string& prefix) {
  Shard& shard = ShardOf(prefix);
  std::lock_guard<std::mutex> lock(shard.mutex);
  ++shard.generation;
  ++shard.announced;
}

void CellCache::Apply(const std::string& prefix, const std::vector<Cell>& changes) {
  Shard& shard = ShardOf(prefix);
  std::lock_guard<std::mutex> lock(shard.mutex);
  assert(shard.announced > 0);
  --shard.announced;
  const auto it = shard.entries.find(prefix);
  if (it == shard.entries.end()) return;
  Entry& entry = it->second;
  shard.bytes -= BytesOf(entry.cells.size());
  entry.cells.insert(entry.cells.end(), changes.begin(), changes.end());
  NormaliseCells(&entry.cells);
  entry.totals = TotalsOf(entry.cells);
  shard.bytes += BytesOf(entry.cells.size());
}

void CellCache::Clear() {
  for (Shard& shard : shards_) {
    std::lock_guard<std::mutex> lock(shard.mutex);
    ++shard.generation;
    shard.announced = 0;
    shard.entries.clear();
    shard.ages.clear();
    shard.bytes = 0;
  }
}

}  // namespace backstory
