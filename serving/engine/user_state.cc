#include "serving/engine/user_state.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/hash.h"

namespace backstory {
namespace {

void AppendU64(uint64_t value, std::string* bytes) { bytes->append(reinterpret_cast<const char*>(&value), 8); }

// Everything of a row that tokens, statistics and explanations read.
uint64_t RowHash(const HistoryRow& row, uint64_t seed, std::string* scratch) {
  scratch->clear();
  AppendU64(static_cast<uint64_t>(row.time_us), scratch);
  AppendU64(row.event_id, scratch);
  AppendU64(row.item_id, scratch);
  AppendU64(static_cast<uint64_t>(row.tie), scratch);
  AppendU64(static_cast<uint64_t>(row.closed_us), scratch);
  AppendU64(uint64_t{row.position} << 32 | static_cast<uint32_t>(row.action_class), scratch);
  AppendU64(static_cast<uint64_t>(row.action) << 16 | static_cast<uint64_t>(row.kind) << 8 |
                static_cast<uint64_t>(row.labelled) << 1 | static_cast<uint64_t>(row.positive),
            scratch);
  scratch->append(reinterpret_cast<const char*>(&row.value), sizeof(row.value));
  scratch->append(row.scene);
  for (const ContextField& field : row.context) {
    AppendU64(field.name.size(), scratch);
    scratch->append(field.name);
    AppendU64(field.value.size(), scratch);
    scratch->append(field.value);
  }
  return HashBytes(*scratch, seed);
}

std::vector<uint64_t> PageHashes(const std::vector<HistoryRow>& rows, size_t first_page, uint64_t seed) {
  std::vector<uint64_t> hashes;
  std::string scratch;
  for (size_t page = first_page; (page + 1) * kHashPageRows <= rows.size(); ++page) {
    for (size_t i = page * kHashPageRows; i < (page + 1) * kHashPageRows; ++i) seed = RowHash(rows[i], seed, &scratch);
    hashes.push_back(seed);
  }
  return hashes;
}

// Rows of a channel at or before history row rows[count - 1].
size_t ChannelRowsUpTo(const ChannelRows& channel, const std::vector<HistoryRow>& rows, size_t count) {
  if (count == 0) return 0;
  const HistoryRow& last = rows[count - 1];
  size_t low = std::lower_bound(channel.time_us.begin(), channel.time_us.end(), last.time_us) - channel.time_us.begin();
  while (low < channel.time_us.size() && channel.time_us[low] == last.time_us &&
         channel.event_id[low] <= last.event_id) {
    ++low;
  }
  return low;
}

template <typename T>
size_t VectorBytes(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

}  // namespace

int64_t AnchorOf(const UserHead& head, int64_t events_max) {
  const int64_t events = static_cast<int64_t>(head.events);
  if (events <= events_max) return head.first_index;
  const int64_t from = head.first_index + events - events_max;
  return (from + kAnchorEvents - 1) / kAnchorEvents * kAnchorEvents;
}

int64_t AnchorOf(const HistoryStore::Snapshot& snapshot, int64_t view_us, int64_t events_max) {
  UserHead seen = snapshot.head;
  const auto future = std::partition_point(snapshot.events.begin(), snapshot.events.end(),
                                           [view_us](const Event& event) { return event.time_us < view_us; });
  seen.events -= std::min<uint64_t>(seen.events, static_cast<uint64_t>(snapshot.events.end() - future));
  return AnchorOf(seen, events_max);
}

absl::Status UserState::Build(const grab::Model& model, HistoryStore::Snapshot snapshot, int64_t view_us,
                              ItemReader* items, CacheReport* report, const BetweenSteps& between) {
  anchor_ = AnchorOf(snapshot, view_us, events_max_);
  const size_t covered =
      static_cast<size_t>(static_cast<int64_t>(snapshot.head.events) - (anchor_ - snapshot.head.first_index));
  std::vector<Event> events = std::move(snapshot.events);
  if (events.size() < covered) {
    return absl::DataLossError(absl::StrCat("history read gave ", events.size(), " events where the head promises ",
                                            covered, "; run `backstory store verify`"));
  }
  events.erase(events.begin(), events.end() - static_cast<ptrdiff_t>(covered));
  times_.clear();
  for (const Event& event : events) times_.push_back(event.time_us);
  dropped_us_ = INT64_MAX;
  const auto future = std::partition_point(events.begin(), events.end(),
                                           [view_us](const Event& event) { return event.time_us < view_us; });
  pending_.assign(std::make_move_iterator(future), std::make_move_iterator(events.end()));
  events.erase(future, events.end());
  head_ = snapshot.head;
  DropBeyondAnchor();
  partial_ = anchor_ > head_.first_index;
  first_covered_us_ = events.empty() ? INT64_MIN : events.front().time_us;
  view_us_ = view_us;
  newest_joined_us_ = events.empty() ? -1 : events.back().time_us;
  joined_ = JoinAll(events, model.config().tokenizer);
  unknown_items_.clear();
  if (const absl::Status status = Update(model, 0, items, report, between); !status.ok()) return status;
  report->source = "rebuild";
  return absl::OkStatus();
}

absl::Status UserState::BuildFrom(const grab::Model& model, const UserHead& head, std::vector<Event> events,
                                  int64_t view_us, ItemReader* items, CacheReport* report,
                                  const BetweenSteps& between) {
  // What the read was not to see must not move the anchor: the history begins where it began then.
  UserHead seen = head;
  seen.events = events.size();
  const size_t skipped = static_cast<size_t>(AnchorOf(seen, events_max_) - head.first_index);
  events.erase(events.begin(), events.begin() + static_cast<ptrdiff_t>(std::min(skipped, events.size())));
  seen.events = events.size();
  seen.first_index = 0;
  const absl::Status status = Build(model, {seen, std::move(events)}, view_us, items, report, between);
  head_ = head;
  report->source = "uncached";
  return status;
}

bool UserState::CanExtend(const HistoryTail& tail, int64_t view_us) const {
  if (tail.rebuild || tail.head.epoch != head_.epoch || tail.head.first_index != head_.first_index) return false;
  const auto fresh = std::partition_point(tail.events.begin(), tail.events.end(),
                                          [view_us](const Event& event) { return event.time_us < view_us; });
  const auto seen = std::lower_bound(times_.begin(), times_.end(), view_us);
  if (view_us > dropped_us_ ||
      AnchorWith(static_cast<size_t>((seen - times_.begin()) + (fresh - tail.events.begin()))) != anchor_) {
    return false;
  }
  if (partial_ && tail.oldest_changed_us <= first_covered_us_) return false;
  return head_.events + tail.events.size() == tail.head.events;
}

// The anchor of a view that sees `events` of those that are here.
int64_t UserState::AnchorWith(size_t events) const {
  UserHead seen = head_;
  seen.events = static_cast<uint64_t>(anchor_ - head_.first_index) + events;
  return AnchorOf(seen, events_max_);
}

bool UserState::Covers(int64_t view_us) const {
  const auto seen = std::lower_bound(times_.begin(), times_.end(), view_us);
  return view_us <= dropped_us_ && AnchorWith(static_cast<size_t>(seen - times_.begin())) == anchor_;
}

// A view of this anchor sees events_max events at most: a state of the far past need not hold all that came after.
void UserState::DropBeyondAnchor() {
  const size_t events_max = static_cast<size_t>(events_max_);
  const size_t joined = times_.size() - pending_.size();
  const size_t kept = events_max > joined ? events_max - joined : 0;
  if (kept >= pending_.size()) return;
  dropped_us_ = pending_[kept].time_us;
  const auto first = std::partition_point(pending_.begin(), pending_.end(),
                                          [this](const Event& event) { return event.time_us < dropped_us_; });
  times_.resize(times_.size() - static_cast<size_t>(pending_.end() - first));
  pending_.erase(first, pending_.end());
}

bool UserState::Verify() const { return PageHashes(joined_.rows, 0, 0) == page_hash_; }

absl::Status UserState::Extend(const grab::Model& model, HistoryTail tail, int64_t view_us, ItemReader* items,
                               CacheReport* report, const BetweenSteps& between) {
  assert(CanExtend(tail, view_us));
  const size_t joined_before = joined_.rows.size();
  size_t first_changed = Join(model.config().tokenizer, std::move(tail.events), std::max(view_us, view_us_));
  first_changed = std::min(first_changed, ForgetKnown(items));
  head_ = tail.head;
  report->source = first_changed < std::min(joined_before, tokens_.rows) ? "truncate" : "extend";
  if (const absl::Status status = Update(model, first_changed, items, report, between); !status.ok()) return status;
  if (report->rows_computed == 0 && report->source == "extend") report->source = "hit";
  return absl::OkStatus();
}

// Joins what is before the new view; returns the first changed row.
size_t UserState::Join(const TokenizerConfig& config, std::vector<Event> fresh, int64_t view_us) {
  view_us_ = view_us;
  while (!fresh.empty() && fresh.back().time_us >= dropped_us_) fresh.pop_back();
  const auto known = static_cast<ptrdiff_t>(times_.size());
  for (const Event& event : fresh) times_.push_back(event.time_us);
  std::inplace_merge(times_.begin(), times_.begin() + known, times_.end());
  std::vector<Event> all;
  all.reserve(pending_.size() + fresh.size());
  std::merge(std::make_move_iterator(pending_.begin()), std::make_move_iterator(pending_.end()),
             std::make_move_iterator(fresh.begin()), std::make_move_iterator(fresh.end()), std::back_inserter(all),
             CanonicalLess);
  const auto future =
      std::partition_point(all.begin(), all.end(), [view_us](const Event& event) { return event.time_us < view_us; });
  const size_t ready = static_cast<size_t>(future - all.begin());
  pending_.assign(std::make_move_iterator(future), std::make_move_iterator(all.end()));
  DropBeyondAnchor();
  if (ready == 0) return joined_.rows.size();
  newest_joined_us_ = std::max(newest_joined_us_, all[ready - 1].time_us);
  if (!partial_) first_covered_us_ = std::min(first_covered_us_, all.front().time_us);
  return ExtendJoin(std::span(all).first(ready), config, &joined_);
}

// Items that were unknown and are known now: the first row of any of them.
size_t UserState::ForgetKnown(ItemReader* items) {
  if (unknown_items_.empty() || items->CatalogVersion() == catalog_version_) return joined_.rows.size();
  std::set<uint64_t> known;
  for (uint64_t id : unknown_items_) {
    if (items->Find(id) != nullptr) known.insert(id);
  }
  for (uint64_t id : known) unknown_items_.erase(id);
  const auto first = std::find_if(joined_.rows.begin(), joined_.rows.end(),
                                  [&known](const HistoryRow& row) { return known.contains(row.item_id); });
  return static_cast<size_t>(first - joined_.rows.begin());
}

// Tokens, K/V, hashes and statistics from joined row `first_changed` on.
absl::Status UserState::Update(const grab::Model& model, size_t first_changed, ItemReader* items, CacheReport* report,
                               const BetweenSteps& between) {
  catalog_version_ = items->CatalogVersion();
  for (size_t i = first_changed; i < joined_.rows.size(); ++i) {
    if (items->Find(joined_.rows[i].item_id) == nullptr) unknown_items_.insert(joined_.rows[i].item_id);
  }
  const std::vector<size_t> first = UpdateTokens(
      joined_.rows, first_changed, view_us_, [items](uint64_t id) { return items->Find(id); }, model.config().tokenizer,
      &tokens_);
  const uint64_t before = rows();
  uint64_t kept = 0;
  for (int c = 0; c < static_cast<int>(first.size()); ++c) {
    if (first[c] < kv_->Rows(c)) kv_->Truncate(c, first[c]);
    kept += kv_->Rows(c);
  }
  if (const absl::Status status = ExtendInSteps(model, tokens_.channels, kv_.get(), between); !status.ok())
    return status;
  for (int c = 0; c < static_cast<int>(first.size()); ++c) {
    if (kv_->Rows(c) != tokens_.channels[c].time_us.size()) {
      return absl::InternalError(absl::StrCat("model left ", kv_->Rows(c), " rows of channel ", c, ", expected ",
                                              tokens_.channels[c].time_us.size()));
    }
  }
  report->rows_reused = kept;
  report->rows_computed = rows() - kept;
  report->tier = kept > 0 ? "host" : "none";
  if (report->source == "extend" && kept < before) report->source = "truncate";
  Rehash(first_changed);
  {
    std::lock_guard lock(summary_mutex_);
    for (RunningSummary& running : summaries_) {
      if (first_changed < running.sums.counted()) running = {};
    }
  }
  CountBytes();
  report->state_bytes = Bytes();
  return absl::OkStatus();
}

void UserState::Rehash(size_t from) {
  page_hash_.resize(std::min(page_hash_.size(), from / kHashPageRows));
  const size_t pages = page_hash_.size();
  const uint64_t seed = pages == 0 ? 0 : page_hash_.back();
  for (uint64_t hash : PageHashes(joined_.rows, pages, seed)) page_hash_.push_back(hash);
}

void UserState::CountBytes() {
  bytes_ = sizeof(UserState) + joined_.Bytes() + VectorBytes(pending_) + VectorBytes(times_) + VectorBytes(page_hash_) +
           unknown_items_.size() * 64;
  for (const ChannelRows& channel : tokens_.channels) {
    bytes_ += VectorBytes(channel.time_us) + VectorBytes(channel.action) + VectorBytes(channel.tie) +
              VectorBytes(channel.event_id) + VectorBytes(channel.tokens.dense);
    for (const SparseColumn& column : channel.tokens.sparse) {
      bytes_ += VectorBytes(column.offsets) + VectorBytes(column.ids);
    }
  }
}

uint64_t UserState::rows() const {
  uint64_t rows = 0;
  for (int c = 0; c < static_cast<int>(tokens_.channels.size()); ++c) rows += kv_->Rows(c);
  return rows;
}

bool UserState::NeedsAdvance(const TokenizerConfig& config, int64_t now_us, const Catalog& catalog,
                             const std::string& ns) const {
  if (!pending_.empty() && pending_.front().time_us < now_us) return true;
  if (config.open_rows == OpenRows::kHide && ClosedRows(joined_.rows, now_us) > tokens_.rows) return true;
  return !unknown_items_.empty() && catalog.Version(ns) != catalog_version_;
}

std::optional<StateView> UserState::ViewOf(const TokenizerConfig& config, int64_t now_us) const {
  if (!pending_.empty() && pending_.front().time_us < now_us) return std::nullopt;
  StateView view;
  view.rows = RowsBefore(joined_.rows, now_us);
  if (config.open_rows == OpenRows::kHide) {
    view.rows = std::min(view.rows, ClosedRows(joined_.rows, now_us));
    if (view.rows > tokens_.rows) return std::nullopt;
  } else if (newest_joined_us_ >= now_us) {
    // Rows that were open at now may show an action that came later: they must be as they were known at now.
    const JoinedView then = ViewAt(joined_, now_us, config);
    for (size_t i = 0; i < then.rest.size(); ++i) {
      if (!(then.rest[i] == joined_.rows[then.shared + i])) return std::nullopt;
    }
  }
  for (const ChannelRows& channel : tokens_.channels) {
    view.visible_rows.push_back(ChannelRowsUpTo(channel, joined_.rows, view.rows));
  }
  return view;
}

UserSummary UserState::SummaryAt(int64_t now_us, int64_t tie, ItemReader* items) const {
  const ItemLookup lookup = [items](uint64_t id) { return items->Find(id); };
  std::lock_guard lock(summary_mutex_);
  // The one that is furthest without being ahead; if all are ahead, the longest unused starts anew.
  RunningSummary* best = nullptr;
  RunningSummary* oldest = &summaries_.front();
  for (RunningSummary& running : summaries_) {
    if (running.us <= now_us && (best == nullptr || running.us > best->us)) best = &running;
    if (running.used < oldest->used) oldest = &running;
  }
  if (best == nullptr) best = oldest, *best = {};
  best->us = now_us;
  best->used = ++summary_tick_;
  return best->sums.At(joined_.rows, now_us, tie, lookup);
}

const HistoryRow* UserState::RowOf(int channel, size_t row) const {
  const ChannelRows& rows = tokens_.channels[channel];
  if (row >= rows.time_us.size()) return nullptr;
  const auto it =
      std::lower_bound(joined_.rows.begin(), joined_.rows.end(), std::pair(rows.time_us[row], rows.event_id[row]),
                       [](const HistoryRow& r, const std::pair<int64_t, uint64_t>& key) {
                         return std::pair(r.time_us, r.event_id) < key;
                       });
  return it == joined_.rows.end() || it->event_id != rows.event_id[row] ? nullptr : &*it;
}

}  // namespace backstory
