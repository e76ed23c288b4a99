// What one model remembers of one user: joined rows, their tokens, and the K/V that attention reads. A state is a
// function of (events before its view time, items, model): however it came about - built at once or extended event by
// event - its bits are the same (tests/serving/engine/user_state_test.cc).
#ifndef BACKSTORY_SERVING_ENGINE_USER_STATE_H_
#define BACKSTORY_SERVING_ENGINE_USER_STATE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "features/incremental.h"
#include "features/user_summary.h"
#include "models/grab/model.h"
#include "serving/engine/extend_steps.h"
#include "serving/engine/item_reader.h"
#include "serving/engine/rank_query.h"
#include "store/history_store.h"

namespace backstory {

inline constexpr int64_t kAnchorEvents = 4096;
inline constexpr size_t kHashPageRows = 128;

// Index of the first event that a state covers: the first retained one, or the first multiple of 4,096 that leaves at
// most `events_max` events. `head.events` = the events that the view sees: those at or after it must not move where its
// history begins.
int64_t AnchorOf(const UserHead& head, int64_t events_max);
// The same of a view of a snapshot that reaches back to it.
int64_t AnchorOf(const HistoryStore::Snapshot& snapshot, int64_t view_us, int64_t events_max);

// Rows of a state that one request sees.
struct StateView {
  size_t rows = 0;                   // joined rows before and, where the model hides open rows, closed at now
  std::vector<size_t> visible_rows;  // [channels]: K/V rows [0, n)
};

// Not thread-safe, except that const calls may run at once while nobody writes.
class UserState {
 public:
  // Holds no reference to `model`: every version of the same state id may use the state.
  UserState(const grab::Model& model, int64_t events_max) : events_max_(events_max), kv_(model.NewState()) {}

  // Whether the state knows exactly what a store at `head` knows.
  bool IsOf(const UserHead& head) const { return head == head_; }

  // `between` is called between the steps of long work (extend_steps.h).

  // From scratch: `snapshot` holds every live event from AnchorOf(snapshot, view_us, events_max) on (more is fine).
  // Events at or after `view_us` are kept aside until the view moves past them, those that only views of a later
  // anchor see are dropped.
  absl::Status Build(const grab::Model& model, HistoryStore::Snapshot snapshot, int64_t view_us, ItemReader* items,
                     CacheReport* report, const BetweenSteps& between = {});
  // From a read restricted by as_of, of all retained events.
  absl::Status BuildFrom(const grab::Model& model, const UserHead& head, std::vector<Event> events, int64_t view_us,
                         ItemReader* items, CacheReport* report, const BetweenSteps& between = {});

  // Whether Extend can take this tail and give this view; if not, Build.
  bool CanExtend(const HistoryTail& tail, int64_t view_us) const;
  // Whether a view's history begins where the state begins. Only then may the state be asked for it.
  bool Covers(int64_t view_us) const;
  // Whether the rolling hashes still cover the rows that K/V was computed from; a state that fails is rebuilt, not
  // extended.
  bool Verify() const;
  // Adds the events of `tail` (those since head().seq; none if only time has passed) and moves the view to at least
  // `view_us`. Takes back K/V rows from the first changed one. On failure the state must be discarded.
  absl::Status Extend(const grab::Model& model, HistoryTail tail, int64_t view_us, ItemReader* items,
                      CacheReport* report, const BetweenSteps& between = {});

  // What a request at `now_us` sees, or nullopt if this state cannot answer it: the view has to move first
  // (NeedsAdvance), or `now_us` lies in the past of the state where a later action changed a row that was open then
  // (build a state of its own, uncached).
  std::optional<StateView> ViewOf(const TokenizerConfig& config, int64_t now_us) const;
  // Whether moving the view to `now_us` would let it be seen: rows have closed, events have come of age, or items that
  // were unknown are known now.
  bool NeedsAdvance(const TokenizerConfig& config, int64_t now_us, const Catalog& catalog, const std::string& ns) const;

  // The user's own statistics at `now_us` without tie group `tie`. Thread-safe.
  UserSummary SummaryAt(int64_t now_us, int64_t tie, ItemReader* items) const;
  // The joined row that made row `row` of channel `channel`, or nullptr.
  const HistoryRow* RowOf(int channel, size_t row) const;

  const UserHead& head() const { return head_; }
  int64_t anchor() const { return anchor_; }
  int64_t view_us() const { return view_us_; }
  const JoinedHistory& joined() const { return joined_; }
  const std::vector<ChannelRows>& channels() const { return tokens_.channels; }
  const grab::UserKv& kv() const { return *kv_; }
  uint64_t rows() const;  // K/V rows, all channels
  // Grows when scoring makes the K/V keep more (a card's user whom the CPU had to score). Thread-safe.
  size_t Bytes() const { return bytes_ + kv_->Bytes(); }
  JoinedHistory* mutable_joined_for_test() { return &joined_; }

 private:
  absl::Status Update(const grab::Model& model, size_t first_changed, ItemReader* items, CacheReport* report,
                      const BetweenSteps& between);
  size_t Join(const TokenizerConfig& config, std::vector<Event> fresh, int64_t view_us);
  void DropBeyondAnchor();
  int64_t AnchorWith(size_t events) const;
  size_t ForgetKnown(ItemReader* items);
  void Rehash(size_t from);
  void CountBytes();

  const int64_t events_max_;
  UserHead head_;
  int64_t anchor_ = 0;
  int64_t view_us_ = 0;             // events before it are in joined_
  int64_t newest_joined_us_ = -1;   // of any joined event
  bool partial_ = false;            // the anchor lies after the first retained event
  int64_t first_covered_us_ = 0;    // of the first event; an event before it is outside of a partial state
  std::vector<Event> pending_;      // events at or after view_us_, canonical order
  std::vector<int64_t> times_;      // of all events here, joined and pending, ascending
  int64_t dropped_us_ = INT64_MAX;  // events at or after it are not here: a view that sees them has a later anchor
  JoinedHistory joined_;
  TokenizedHistory tokens_;
  std::vector<uint64_t> page_hash_;  // rolling hash of joined_.rows at the end of every full page of 128 rows
  std::unique_ptr<grab::UserKv> kv_;
  std::set<uint64_t> unknown_items_;  // among joined rows; once known, their rows are tokenised again
  uint64_t catalog_version_ = 0;
  size_t bytes_ = 0;

  // Running statistics, each up to a moment: callers that walk through the user's past side by side (batch scoring)
  // each find one that is not ahead of them.
  struct RunningSummary {
    SummaryAccumulator sums;
    int64_t us = INT64_MIN;
    uint64_t used = 0;  // tick of the last use
  };
  mutable std::mutex summary_mutex_;
  mutable std::array<RunningSummary, 4> summaries_;  // guarded by summary_mutex_
  mutable uint64_t summary_tick_ = 0;                // guarded by summary_mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_USER_STATE_H_
