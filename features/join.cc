// The whole-history join.
#include <algorithm>
#include <cassert>

#include "absl/container/flat_hash_map.h"
#include "features/join_rows.h"

namespace backstory {
namespace {

using internal::ActionFold;

// Position of each exposure's row, by event id. Built only if some action names an exposure.
using ExposureIndex = absl::flat_hash_map<uint64_t, size_t>;

void FoldLinks(std::span<const ActionLink> links, const std::vector<size_t>& row_of, const TokenizerConfig& config,
               std::vector<HistoryRow>* rows) {
  absl::flat_hash_map<size_t, ActionFold> folds;
  for (size_t i = 0; i < links.size(); ++i) {
    if (row_of[i] == rows->size()) continue;
    HistoryRow* row = &(*rows)[row_of[i]];
    folds.try_emplace(row_of[i], row, config).first->second.Add(links[i]);
  }
}

JoinedHistory Join(std::span<const Event> events, AsOf as_of, const TokenizerConfig& config) {
  assert(std::is_sorted(events.begin(), events.end(), CanonicalLess));
  JoinedHistory joined;
  ExposureIndex exposures;
  bool any_link = false;
  for (const Event& event : events) {
    any_link = any_link || (event.kind == EventKind::kAction && event.exposure_id != 0);
  }
  joined.rows.reserve(events.size());
  // Exposures first: an action may sort before its exposure if both have one time.
  std::vector<const Event*> actions;
  for (const Event& event : events) {
    if (!internal::Visible(event, as_of)) continue;
    if (event.kind == EventKind::kAction) {
      actions.push_back(&event);
      continue;
    }
    HistoryRow row = internal::ExposureRow(event, config);
    ActionFold no_actions(&row, config);
    if (any_link) exposures.emplace(event.event_id, joined.rows.size());
    joined.rows.push_back(std::move(row));
  }
  std::vector<size_t> row_of;  // per link: the exposure row it joins, or rows.size() if it stands alone
  const size_t exposure_rows = joined.rows.size();
  std::vector<HistoryRow> lone;
  for (const Event* action : actions) {
    size_t row = exposure_rows;
    if (action->exposure_id != 0) {
      joined.links.push_back(internal::LinkOf(*action));
      const auto found = exposures.find(action->exposure_id);
      if (found != exposures.end() && internal::Joins(joined.links.back(), joined.rows[found->second], config)) {
        row = found->second;
      }
      row_of.push_back(row);
    }
    if (row == exposure_rows) lone.push_back(internal::LoneActionRow(*action, config));
  }
  FoldLinks(joined.links, row_of, config, &joined.rows);
  joined.rows.insert(joined.rows.end(), std::make_move_iterator(lone.begin()), std::make_move_iterator(lone.end()));
  std::inplace_merge(joined.rows.begin(), joined.rows.begin() + exposure_rows, joined.rows.end(), internal::RowLess);
  internal::CloseFrom(joined.rows, 0, config);
  return joined;
}

}  // namespace

std::vector<HistoryRow> JoinHistory(std::span<const Event> events, AsOf as_of, const TokenizerConfig& config) {
  return Join(events, as_of, config).rows;
}

JoinedHistory JoinAll(std::span<const Event> events, const TokenizerConfig& config) {
  return Join(events, AsOf{}, config);
}

}  // namespace backstory
