#include "features/user_summary.h"

#include <algorithm>

#include "features/incremental.h"

namespace backstory {
namespace {

void AddRow(const HistoryRow& row, const ItemLookup& items, UserSummary* sums) {
  if (row.action != ActionType::kNone) {
    sums->value_sum += row.value;
    ++sums->value_count;
  }
  if (!row.labelled) return;
  ++sums->rows;
  sums->positives += row.positive ? 1 : 0;
  const Item* item = items ? items(row.item_id) : nullptr;
  if (item == nullptr) return;
  for (const std::string& category : item->categories) {
    auto found = sums->categories.find(category);
    if (found == sums->categories.end()) found = sums->categories.emplace(category, std::pair{0, 0}).first;
    ++found->second.first;
    found->second.second += row.positive ? 1 : 0;
  }
}

void SetNewest(std::span<const HistoryRow> rows, int64_t now_us, int64_t tie, UserSummary* sums) {
  sums->newest_us = -1;
  for (size_t i = RowsBefore(rows, now_us); i-- > 0;) {
    if (rows[i].tie == tie) continue;
    sums->newest_us = rows[i].time_us;
    break;
  }
}

}  // namespace

UserSummary Summarise(std::span<const HistoryRow> rows, int64_t now_us, int64_t tie, const ItemLookup& items) {
  UserSummary sums;
  const size_t end = std::min(RowsBefore(rows, now_us), ClosedRows(rows, now_us));
  for (const HistoryRow& row : rows.first(end)) {
    if (row.tie != tie) AddRow(row, items, &sums);
  }
  SetNewest(rows, now_us, tie, &sums);
  return sums;
}

UserSummary SummaryAccumulator::At(std::span<const HistoryRow> rows, int64_t now_us, int64_t tie,
                                   const ItemLookup& items) {
  const size_t end = std::min(RowsBefore(rows, now_us), ClosedRows(rows, now_us));
  for (; counted_ < end; ++counted_) {
    AddRow(rows[counted_], items, &sums_);
    if (IsRequestTie(rows[counted_].tie)) request_ties_.insert(rows[counted_].tie);
  }
  // A tie group reaches back in time only if its events share a request id; then it is counted afresh without it.
  if (request_ties_.contains(tie)) return Summarise(rows, now_us, tie, items);
  UserSummary summary = sums_;
  SetNewest(rows, now_us, tie, &summary);
  return summary;
}

}  // namespace backstory
