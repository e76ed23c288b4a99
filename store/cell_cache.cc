#include "store/cell_cache.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "store/byte_io.h"

namespace backstory {
namespace {

std::vector<Cell> TotalsOf(std::vector<Cell> cells) {
  for (Cell& cell : cells) cell.hour = 0;
  NormaliseCells(&cells);
  return cells;
}

size_t BytesOf(size_t cells) { return 256 + cells * sizeof(Cell); }

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

const ItemCounts& CellCache::CountsOf(Entry* entry, int64_t end_hour) {
  if (entry->counted_hour != end_hour) {
    entry->counts = ToCounts(SumBefore(entry->cells, entry->totals, end_hour));
    entry->counted_hour = end_hour;
  }
  return entry->counts;
}

uint32_t CellCache::NumberOf(std::string_view ns) {
  {
    std::shared_lock<std::shared_mutex> lock(names_mutex_);
    const auto found = names_.find(ns);
    if (found != names_.end()) return found->second;
  }
  std::lock_guard<std::shared_mutex> lock(names_mutex_);
  return names_.try_emplace(std::string(ns), static_cast<uint32_t>(names_.size())).first->second;
}

CellCache::Key CellCache::KeyOf(const std::string& prefix) {
  const size_t ns_bytes = static_cast<uint8_t>(prefix[0]);
  assert(prefix.size() == 1 + ns_bytes + 8);
  return {NumberOf(std::string_view(prefix).substr(1, ns_bytes)), GetBig(prefix.data() + 1 + ns_bytes, 8)};
}

absl::Status CellCache::CountsBefore(std::string_view ns, std::span<const uint64_t> items, int64_t end_hour,
                                     const Visit& visit) {
  const uint32_t number = NumberOf(ns);
  // Item by item a thousand locks and as many misses of the processor's cache, one after the other; shard by shard a
  // few locks, and the misses overlap.
  std::array<uint32_t, kShards + 1> begin{};
  std::vector<uint8_t> shard_of(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    shard_of[i] = static_cast<uint8_t>(ShardOf({number, items[i]}));
    ++begin[shard_of[i] + 1];
  }
  for (size_t s = 0; s < kShards; ++s) begin[s + 1] += begin[s];
  std::vector<uint32_t> order(items.size()), missing;
  std::vector<std::pair<uint32_t, Entry*>> entries;  // of one shard
  std::array<uint32_t, kShards> next;
  std::copy_n(begin.begin(), kShards, next.begin());
  for (size_t i = 0; i < items.size(); ++i) order[next[shard_of[i]]++] = static_cast<uint32_t>(i);
  for (size_t s = 0; s < kShards; ++s) {
    if (begin[s] == begin[s + 1]) continue;
    Shard& shard = shards_[s];
    std::lock_guard<std::mutex> lock(shard.mutex);
    for (uint32_t at = begin[s]; at < begin[s + 1]; ++at) shard.entries.prefetch(Key{number, items[order[at]]});
    entries.clear();
    for (uint32_t at = begin[s]; at < begin[s + 1]; ++at) {
      const auto found = shard.entries.find(Key{number, items[order[at]]});
      if (found == shard.entries.end()) {
        missing.push_back(order[at]);
      } else {
        __builtin_prefetch(found->second.counts.cells.data());
        entries.emplace_back(order[at], &found->second);
      }
    }
    for (const auto& [i, entry] : entries) {
      entry->used = true;
      visit(i, CountsOf(entry, end_hour));
    }
  }
  for (const uint32_t i : missing) {
    if (absl::Status status = CountMissing(ns, {number, items[i]}, end_hour, i, visit); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CellCache::CountMissing(std::string_view ns, Key key, int64_t end_hour, size_t i, const Visit& visit) {
  Shard& shard = shards_[ShardOf(key)];
  uint64_t generation = 0;
  bool quiet = false;
  {
    std::lock_guard<std::mutex> lock(shard.mutex);
    const auto found = shard.entries.find(key);
    if (found != shard.entries.end()) {  // the same item twice in one call, or another thread was faster
      visit(i, CountsOf(&found->second, end_hour));
      return absl::OkStatus();
    }
    generation = shard.generation;
    quiet = shard.announced == 0;
  }
  absl::StatusOr<std::vector<Cell>> cells = Load(CellPrefix(ns, key.item));
  if (!cells.ok()) return cells.status();
  Entry entry;
  entry.totals = TotalsOf(*cells);
  entry.cells = *std::move(cells);
  visit(i, CountsOf(&entry, end_hour));
  std::lock_guard<std::mutex> lock(shard.mutex);
  if (!quiet || shard.generation != generation || shard.entries.contains(key)) return absl::OkStatus();
  shard.bytes += BytesOf(entry.cells.size());
  shard.entries.emplace(key, std::move(entry));
  shard.turns.push_back(key);
  Evict(&shard);
  return absl::OkStatus();
}

// An entry that was used since its last turn gets another (CLOCK); the last one stays whatever its size.
void CellCache::Evict(Shard* shard) {
  while (shard->bytes > shard_bytes_ && shard->turns.size() > 1) {
    const Key key = shard->turns.front();
    shard->turns.pop_front();
    const auto found = shard->entries.find(key);
    if (std::exchange(found->second.used, false)) {
      shard->turns.push_back(key);
      continue;
    }
    shard->bytes -= BytesOf(found->second.cells.size());
    shard->entries.erase(found);
  }
}

void CellCache::Announce(const std::string& prefix) {
  Shard& shard = shards_[ShardOf(KeyOf(prefix))];
  std::lock_guard<std::mutex> lock(shard.mutex);
  ++shard.generation;
  ++shard.announced;
}

void CellCache::Apply(const std::string& prefix, const std::vector<Cell>& changes) {
  const Key key = KeyOf(prefix);
  Shard& shard = shards_[ShardOf(key)];
  std::lock_guard<std::mutex> lock(shard.mutex);
  assert(shard.announced > 0);
  --shard.announced;
  const auto it = shard.entries.find(key);
  if (it == shard.entries.end()) return;
  Entry& entry = it->second;
  shard.bytes -= BytesOf(entry.cells.size());
  entry.cells.insert(entry.cells.end(), changes.begin(), changes.end());
  NormaliseCells(&entry.cells);
  entry.totals = TotalsOf(entry.cells);
  entry.counted_hour = kNoHour;
  shard.bytes += BytesOf(entry.cells.size());
}

void CellCache::Clear() {
  for (Shard& shard : shards_) {
    std::lock_guard<std::mutex> lock(shard.mutex);
    ++shard.generation;
    shard.announced = 0;
    shard.entries.clear();
    shard.turns.clear();
    shard.bytes = 0;
  }
}

}  // namespace backstory
