// Internal to features/: how one row is made of an exposure or of an action, shared by the whole-history join (join.cc)
// and the incremental one (incremental.cc) so that they cannot differ.
#ifndef BACKSTORY_FEATURES_JOIN_ROWS_H_
#define BACKSTORY_FEATURES_JOIN_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "features/incremental.h"
#include "features/tokenizer.h"

namespace backstory::internal {

// A row without actions; closed_us is the row's own (no running maximum yet).
HistoryRow ExposureRow(const Event& exposure, const TokenizerConfig& config);
HistoryRow LoneActionRow(const Event& action, const TokenizerConfig& config);

// Whether `action` may join the exposure of `row` (which it must name).
bool Joins(const ActionLink& action, const HistoryRow& row, const TokenizerConfig& config);

// Sets action, value, class and label of an exposure row from all actions that join it, in canonical order.
class ActionFold {
 public:
  ActionFold(HistoryRow* row, const TokenizerConfig& config);
  void Add(const ActionLink& action);

 private:
  HistoryRow* row_;
  const TokenizerConfig& config_;
  size_t best_rule_;
};

ActionLink LinkOf(const Event& action);
bool Visible(const Event& event, AsOf as_of);

// Turns each row's own closing time into the running maximum, from row `first` on.
void CloseFrom(std::span<HistoryRow> rows, size_t first, const TokenizerConfig& config);

inline bool RowLess(const HistoryRow& a, const HistoryRow& b) {
  return a.time_us != b.time_us ? a.time_us < b.time_us : a.event_id < b.event_id;
}

}  // namespace backstory::internal

#endif  // BACKSTORY_FEATURES_JOIN_ROWS_H_
