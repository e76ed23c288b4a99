// The join and the tokens of a cached user, extended by what arrived instead of rebuilt. Every function here gives, bit
// for bit, what JoinHistory and TokenizeHistory give over the whole history (tests/features/incremental_test.cc).
// Pure but for the objects passed in; not thread-safe for writing.
#ifndef BACKSTORY_FEATURES_INCREMENTAL_H_
#define BACKSTORY_FEATURES_INCREMENTAL_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "features/tokenizer.h"

namespace backstory {

// An action that names an exposure, kept so that a late exposure, a further action or an earlier as_of can be joined
// again without the events. 40 bytes.
struct ActionLink {
  int64_t time_us = 0;
  uint64_t event_id = 0;
  uint64_t item_id = 0;
  uint64_t exposure_id = 0;
  ActionType action = ActionType::kNone;
  float value = 0;
  bool operator==(const ActionLink&) const = default;
};

// A joined history that can grow. Holds every event it was given, those in the future of a request included.
struct JoinedHistory {
  std::vector<HistoryRow> rows;   // canonical order; equal to JoinHistory of all events given so far
  std::vector<ActionLink> links;  // canonical order; every action that names an exposure, joined or not
  size_t Bytes() const;           // memory, strings and context included
};

// The join of all events (canonical order, no tombstones).
JoinedHistory JoinAll(std::span<const Event> events, const TokenizerConfig& config);

// Adds `events`: canonical order among themselves, at any time (late ones too), none of them added before and no
// tombstones - a correction or delete raises the user's epoch and needs JoinAll. Returns the first changed row: rows
// before it are as they were; joined->rows.size() if none changed.
// Cost: O(rows after the oldest event + rows within label_window of an added action), no allocation for the prefix.
size_t ExtendJoin(std::span<const Event> events, const TokenizerConfig& config, JoinedHistory* joined);

// What a request at `now_us` sees: rows equal JoinHistory(events, {now_us}). The first `shared` of them are those of
// `joined` itself; only the rest is materialised. If shared == visible, `rest` is empty and no row was copied.
struct JoinedView {
  size_t shared = 0;
  std::vector<HistoryRow> rest;
  size_t visible() const { return shared + rest.size(); }
};
JoinedView ViewAt(const JoinedHistory& joined, int64_t now_us, const TokenizerConfig& config);

// Number of leading rows that are closed at now_us / that have time < now_us.
size_t ClosedRows(std::span<const HistoryRow> rows, int64_t now_us);
size_t RowsBefore(std::span<const HistoryRow> rows, int64_t now_us);

// Tokens of rows [0, rows) of a joined history.
struct TokenizedHistory {
  std::vector<ChannelRows> channels;
  size_t rows = 0;  // leading history rows that the channels cover (under OpenRows::kHide the closed ones)
};

// Brings `tokens` up to TokenizeHistory(rows, now_us, ...): rows before `first_changed` must be those tokenised last
// time. Returns per channel the first row that is new or changed. O(rows from first_changed on).
std::vector<size_t> UpdateTokens(std::span<const HistoryRow> rows, size_t first_changed, int64_t now_us,
                                 const ItemLookup& items, const TokenizerConfig& config, TokenizedHistory* tokens);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_INCREMENTAL_H_
