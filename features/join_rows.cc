#include "features/join_rows.h"

#include <algorithm>
#include <limits>

#include "features/hash.h"

namespace backstory {

int64_t TieKey(uint64_t request_id, int64_t time_us) {
  constexpr uint64_t kHalf = uint64_t{1} << 62;
  if (request_id != 0) return static_cast<int64_t>(HashU64(request_id, 0) % kHalf);
  return static_cast<int64_t>(kHalf | (static_cast<uint64_t>(time_us) % kHalf));
}

namespace internal {
namespace {

int64_t OwnClosing(const HistoryRow& row, const TokenizerConfig& config) {
  if (row.kind != EventKind::kExposure) return row.time_us;
  const int64_t room = std::numeric_limits<int64_t>::max() - row.time_us;
  return row.time_us + std::min(room, config.label_window_us);
}

// Index of the first rule that matches, or actions.size().
size_t MatchRule(ActionType action, float value, const TokenizerConfig& config) {
  size_t i = 0;
  for (; i < config.actions.size(); ++i) {
    const ActionRule& rule = config.actions[i];
    if (rule.action != action) continue;
    if (action == ActionType::kNone || (value >= rule.min_value && value < rule.max_value)) break;
  }
  return i;
}

int32_t ClassOfRule(size_t rule, const TokenizerConfig& config) {
  return rule < config.actions.size() ? config.actions[rule].action_class : config.default_action_class;
}

HistoryRow RowOf(const Event& event, const TokenizerConfig& config) {
  HistoryRow row;
  row.time_us = event.time_us;
  row.event_id = event.event_id;
  row.item_id = event.item_id;
  row.tie = TieKey(event.request_id, event.time_us);
  row.kind = event.kind;
  row.scene = event.scene;
  row.context = event.context;
  row.closed_us = OwnClosing(row, config);
  return row;
}

}  // namespace

HistoryRow ExposureRow(const Event& exposure, const TokenizerConfig& config) {
  HistoryRow row = RowOf(exposure, config);
  row.position = exposure.position;
  return row;
}

HistoryRow LoneActionRow(const Event& action, const TokenizerConfig& config) {
  HistoryRow row = RowOf(action, config);
  row.action = action.action;
  row.value = action.value;
  row.action_class = ClassOfRule(MatchRule(action.action, action.value, config), config);
  row.labelled = action.action == config.label.action;
  row.positive = row.labelled && action.value >= config.label.min_value;
  return row;
}

bool Joins(const ActionLink& action, const HistoryRow& row, const TokenizerConfig& config) {
  return row.kind == EventKind::kExposure && action.exposure_id == row.event_id && action.item_id == row.item_id &&
         action.time_us >= row.time_us && action.time_us - row.time_us < config.label_window_us;
}

ActionFold::ActionFold(HistoryRow* row, const TokenizerConfig& config)
    : row_(row), config_(config), best_rule_(config.actions.size()) {
  row->action = ActionType::kNone;
  row->value = 0;
  row->action_class = ClassOfRule(MatchRule(ActionType::kNone, 0, config), config);
  row->labelled = config.label.unlabelled_is_negative;
  row->positive = false;
}

void ActionFold::Add(const ActionLink& action) {
  if (action.action == config_.label.action) {
    row_->labelled = true;
    row_->positive = row_->positive || action.value >= config_.label.min_value;
  }
  const size_t rule =
      action.action == ActionType::kNone ? config_.actions.size() : MatchRule(action.action, action.value, config_);
  if (rule >= best_rule_) return;
  best_rule_ = rule;
  row_->action = action.action;
  row_->value = action.value;
  row_->action_class = ClassOfRule(rule, config_);
}

ActionLink LinkOf(const Event& action) {
  return {.time_us = action.time_us,
          .event_id = action.event_id,
          .item_id = action.item_id,
          .exposure_id = action.exposure_id,
          .action = action.action,
          .value = action.value};
}

bool Visible(const Event& event, AsOf as_of) {
  if (event.tombstone || event.time_us >= as_of.event_time_us) return false;
  return as_of.known_by_us == AsOf::kAnyIngestTime || event.ingest_time_us <= as_of.known_by_us;
}

void CloseFrom(std::span<HistoryRow> rows, size_t first, const TokenizerConfig& config) {
  int64_t closed_us =
      first > 0 && first <= rows.size() ? rows[first - 1].closed_us : std::numeric_limits<int64_t>::min();
  for (size_t i = first; i < rows.size(); ++i) {
    closed_us = std::max(closed_us, OwnClosing(rows[i], config));
    rows[i].closed_us = closed_us;
  }
}

}  // namespace internal
}  // namespace backstory
