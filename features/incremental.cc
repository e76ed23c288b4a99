#include "features/incremental.h"

#include <algorithm>
#include <cassert>

#include "features/join_rows.h"

namespace backstory {
namespace {

using internal::ActionFold;
using internal::Joins;
using internal::RowLess;

bool LinkLess(const ActionLink& a, const ActionLink& b) {
  return a.time_us != b.time_us ? a.time_us < b.time_us : a.event_id < b.event_id;
}

size_t LowerRow(const std::vector<HistoryRow>& rows, int64_t time_us, uint64_t event_id) {
  HistoryRow key;
  key.time_us = time_us;
  key.event_id = event_id;
  return static_cast<size_t>(std::lower_bound(rows.begin(), rows.end(), key, RowLess) - rows.begin());
}

size_t FirstLinkFrom(const std::vector<ActionLink>& links, int64_t time_us) {
  const auto before = [](const ActionLink& link, int64_t time) { return link.time_us < time; };
  return static_cast<size_t>(std::lower_bound(links.begin(), links.end(), time_us, before) - links.begin());
}

// Sets the row's class and label from the links that join it and are before `now_us`.
void Refold(const std::vector<ActionLink>& links, int64_t now_us, const TokenizerConfig& config, HistoryRow* row) {
  ActionFold fold(row, config);
  for (size_t i = FirstLinkFrom(links, row->time_us); i < links.size(); ++i) {
    if (links[i].time_us >= now_us || links[i].time_us - row->time_us >= config.label_window_us) break;
    if (Joins(links[i], *row, config)) fold.Add(links[i]);
  }
}

// Index of the exposure row that the action joins, or rows.size().
size_t RowOfLink(const std::vector<HistoryRow>& rows, const ActionLink& link, const TokenizerConfig& config) {
  for (size_t i = LowerRow(rows, link.time_us, UINT64_MAX); i < rows.size() && rows[i].time_us == link.time_us; ++i) {
    if (Joins(link, rows[i], config)) return i;  // event id UINT64_MAX itself
  }
  for (size_t i = LowerRow(rows, link.time_us, UINT64_MAX); i-- > 0;) {
    if (link.time_us - rows[i].time_us >= config.label_window_us) break;
    if (Joins(link, rows[i], config)) return i;
  }
  return rows.size();
}

size_t InsertRow(HistoryRow row, std::vector<HistoryRow>* rows) {
  const size_t at = LowerRow(*rows, row.time_us, row.event_id);
  rows->insert(rows->begin() + static_cast<ptrdiff_t>(at), std::move(row));
  return at;
}

// A late exposure takes back the actions that stood alone for want of it. Returns the first row removed or inserted.
size_t AddExposure(const Event& event, const TokenizerConfig& config, JoinedHistory* joined) {
  HistoryRow row = internal::ExposureRow(event, config);
  Refold(joined->links, INT64_MAX, config, &row);
  size_t first = joined->rows.size();
  for (size_t i = FirstLinkFrom(joined->links, row.time_us); i < joined->links.size(); ++i) {
    const ActionLink& link = joined->links[i];
    if (link.time_us - row.time_us >= config.label_window_us) break;
    if (!Joins(link, row, config)) continue;
    const size_t lone = LowerRow(joined->rows, link.time_us, link.event_id);
    assert(lone < joined->rows.size() && joined->rows[lone].event_id == link.event_id);
    joined->rows.erase(joined->rows.begin() + static_cast<ptrdiff_t>(lone));
    first = std::min(first, lone);
  }
  return std::min(first, InsertRow(std::move(row), &joined->rows));
}

size_t AddAction(const Event& event, const TokenizerConfig& config, JoinedHistory* joined) {
  if (event.exposure_id == 0) return InsertRow(internal::LoneActionRow(event, config), &joined->rows);
  const ActionLink link = internal::LinkOf(event);
  joined->links.insert(std::upper_bound(joined->links.begin(), joined->links.end(), link, LinkLess), link);
  const size_t row = RowOfLink(joined->rows, link, config);
  if (row == joined->rows.size()) return InsertRow(internal::LoneActionRow(event, config), &joined->rows);
  Refold(joined->links, INT64_MAX, config, &joined->rows[row]);
  return row;
}

}  // namespace

size_t JoinedHistory::Bytes() const {
  size_t bytes = rows.capacity() * sizeof(HistoryRow) + links.capacity() * sizeof(ActionLink);
  for (const HistoryRow& row : rows) {
    bytes += row.scene.capacity() > 15 ? row.scene.capacity() : 0;
    bytes += row.context.capacity() * sizeof(ContextField);
    for (const ContextField& field : row.context) {
      bytes += field.name.capacity() > 15 ? field.name.capacity() : 0;
      bytes += field.value.capacity() > 15 ? field.value.capacity() : 0;
    }
  }
  return bytes;
}

size_t ExtendJoin(std::span<const Event> events, const TokenizerConfig& config, JoinedHistory* joined) {
  assert(std::is_sorted(events.begin(), events.end(), CanonicalLess));
  size_t first = SIZE_MAX;
  for (const Event& event : events) {
    assert(!event.tombstone);
    first = std::min(first, event.kind == EventKind::kExposure ? AddExposure(event, config, joined)
                                                               : AddAction(event, config, joined));
  }
  first = std::min(first, joined->rows.size());
  internal::CloseFrom(joined->rows, first, config);
  return first;
}

size_t ClosedRows(std::span<const HistoryRow> rows, int64_t now_us) {
  const auto closed = [now_us](const HistoryRow& row) { return row.closed_us <= now_us; };
  return static_cast<size_t>(std::partition_point(rows.begin(), rows.end(), closed) - rows.begin());
}

size_t RowsBefore(std::span<const HistoryRow> rows, int64_t now_us) {
  const auto before = [now_us](const HistoryRow& row) { return row.time_us < now_us; };
  return static_cast<size_t>(std::partition_point(rows.begin(), rows.end(), before) - rows.begin());
}

JoinedView ViewAt(const JoinedHistory& joined, int64_t now_us, const TokenizerConfig& config) {
  JoinedView view;
  const size_t visible = RowsBefore(joined.rows, now_us);
  // Rows closed at now cannot hold a later action. If no action at or after now exists, neither can the open ones.
  const bool any_later = !joined.links.empty() && joined.links.back().time_us >= now_us;
  view.shared = any_later ? std::min(visible, ClosedRows(joined.rows, now_us)) : visible;
  view.rest.assign(joined.rows.begin() + static_cast<ptrdiff_t>(view.shared),
                   joined.rows.begin() + static_cast<ptrdiff_t>(visible));
  for (HistoryRow& row : view.rest) {
    if (row.kind == EventKind::kExposure) Refold(joined.links, now_us, config, &row);
  }
  return view;
}

}  // namespace backstory
