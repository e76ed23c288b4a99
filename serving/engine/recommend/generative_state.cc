#include "serving/engine/recommend/generative_state.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "serving/engine/user_state.h"

namespace backstory {

absl::Status GenerativeState::Build(const GenerativeModel& model, HistoryStore::Snapshot snapshot, int64_t view_us) {
  head_ = snapshot.head;
  anchor_ = AnchorOf(head_, events_max_);
  const size_t covered = static_cast<size_t>(static_cast<int64_t>(head_.events) - (anchor_ - head_.first_index));
  std::vector<Event> events = std::move(snapshot.events);
  if (events.size() < covered) {
    return absl::DataLossError(absl::StrCat("history read gave ", events.size(), " events where the head promises ",
                                            covered, "; run `backstory store verify`"));
  }
  events.erase(events.begin(), events.end() - static_cast<ptrdiff_t>(covered));
  view_us_ = view_us;
  Take(model, std::move(events), view_us);
  return absl::OkStatus();
}

bool GenerativeState::Answers(int64_t view_us) const {
  return newest_us_ < view_us && (pending_.empty() || pending_.front().time_us >= view_us);
}

bool GenerativeState::CanExtend(const HistoryTail& tail, int64_t view_us, const glass::Catalogue& catalogue) const {
  if (tail.rebuild || tail.head.epoch != head_.epoch || tail.head.first_index != head_.first_index) return false;
  if (AnchorOf(tail.head, events_max_) != anchor_ || head_.events + tail.events.size() != tail.head.events)
    return false;
  if (newest_us_ >= view_us) return false;
  if (!tail.events.empty() && taken_ > 0) {
    const Event& first = tail.events.front();
    if (std::pair(first.time_us, first.event_id) < std::pair(newest_us_, newest_id_)) return false;
  }
  if (&catalogue == catalogue_.get()) return true;
  return std::none_of(unknown_.begin(), unknown_.end(), [&](uint64_t id) { return catalogue.RowOf(id).has_value(); });
}

void GenerativeState::Extend(const GenerativeModel& model, std::shared_ptr<const glass::Catalogue> catalogue,
                             HistoryTail tail, int64_t view_us) {
  if (catalogue != catalogue_) {
    history_.Rebind(catalogue.get());
    catalogue_ = std::move(catalogue);
  }
  head_ = tail.head;
  std::vector<Event> all;
  all.reserve(pending_.size() + tail.events.size());
  std::merge(std::make_move_iterator(pending_.begin()), std::make_move_iterator(pending_.end()),
             std::make_move_iterator(tail.events.begin()), std::make_move_iterator(tail.events.end()),
             std::back_inserter(all), CanonicalLess);
  pending_.clear();
  view_us_ = std::max(view_us_, view_us);
  Take(model, std::move(all), view_us_);
}

// Events in canonical order, none before one that was taken in.
void GenerativeState::Take(const GenerativeModel& model, std::vector<Event> events, int64_t view_us) {
  const size_t before = history_.size();
  size_t i = 0;
  for (; i < events.size() && events[i].time_us < view_us; ++i) {
    const Event& event = events[i];
    newest_us_ = event.time_us, newest_id_ = event.event_id;
    ++taken_;
    seen_.insert(event.item_id);
    if (!glass::IsBehaviour(model.config(), event)) continue;
    if (const auto row = catalogue_->RowOf(event.item_id)) {
      history_.Append(*row, event.event_id, event.time_us);
    } else {
      unknown_.insert(event.item_id);
    }
  }
  pending_.assign(std::make_move_iterator(events.begin() + static_cast<ptrdiff_t>(i)),
                  std::make_move_iterator(events.end()));
  if (encoded_ == nullptr || history_.size() != before || model.searcher().Outdated(*encoded_)) {
    encoded_ = model.searcher().Encode(*catalogue_, history_);
  }
  hash_ = Hash();
  bytes_ = sizeof(GenerativeState) + history_.bytes() + encoded_->bytes() + pending_.capacity() * sizeof(Event) +
           (seen_.capacity() + unknown_.capacity()) * (sizeof(uint64_t) + 1);
}

uint64_t GenerativeState::Hash() const {
  return history_.Hash(static_cast<uint64_t>(newest_us_) ^ newest_id_ ^ (taken_ << 32));
}

}  // namespace backstory
