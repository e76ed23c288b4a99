#include "serving/engine/event_times.h"

#include <algorithm>
#include <utility>

namespace backstory {

absl::StatusOr<std::optional<uint64_t>> EventTimes::CountBefore(const UserKey& user, const UserHead& head, int64_t us,
                                                                bool may_read) {
  Known known;
  {
    std::lock_guard lock(mutex_);
    if (const auto it = users_.find(user); it != users_.end()) {
      it->second.used = ++tick_;
      known = it->second;
    }
  }
  if (known.times == nullptr || known.head != head) {
    if (!may_read) return std::nullopt;
    absl::StatusOr<Known> fresh = Read(user, known);
    if (!fresh.ok()) return fresh.status();
    known = *std::move(fresh);
    Keep(user, known);
  }
  const std::vector<int64_t>& times = *known.times;
  return static_cast<uint64_t>(std::lower_bound(times.begin(), times.end(), us) - times.begin());
}

// From what is known and the events since, or from the whole history.
absl::StatusOr<EventTimes::Known> EventTimes::Read(const UserKey& user, const Known& known) {
  auto times = std::make_shared<std::vector<int64_t>>();
  if (known.times != nullptr) {
    absl::StatusOr<HistoryTail> tail = store_->Tail(user, known.head.seq);
    if (!tail.ok()) return tail.status();
    if (!tail->rebuild && tail->head.epoch == known.head.epoch && tail->head.first_index == known.head.first_index &&
        known.head.events + tail->events.size() == tail->head.events) {
      std::vector<int64_t> more;
      for (const Event& event : tail->events) more.push_back(event.time_us);
      times->reserve(known.times->size() + more.size());
      std::merge(known.times->begin(), known.times->end(), more.begin(), more.end(), std::back_inserter(*times));
      return Known{tail->head, std::move(times), 0};
    }
  }
  absl::StatusOr<HistoryStore::Snapshot> snapshot = store_->Read(user, {});
  if (!snapshot.ok()) return snapshot.status();
  times->reserve(snapshot->events.size());
  for (const Event& event : snapshot->events) times->push_back(event.time_us);
  return Known{snapshot->head, std::move(times), 0};
}

void EventTimes::Keep(const UserKey& user, const Known& known) {
  const auto bytes_of = [](const Known& one) { return one.times->capacity() * sizeof(int64_t) + 256; };
  std::lock_guard lock(mutex_);
  if (const auto old = users_.find(user); old != users_.end()) {
    bytes_ -= bytes_of(old->second);
    users_.erase(old);
  }
  while (!users_.empty() && bytes_ + bytes_of(known) > bytes_max_) {
    const auto oldest = std::min_element(users_.begin(), users_.end(),
                                         [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
    bytes_ -= bytes_of(oldest->second);
    users_.erase(oldest);
  }
  if (bytes_of(known) > bytes_max_) return;
  bytes_ += bytes_of(known);
  users_[user] = known;
  users_[user].used = ++tick_;
}

}  // namespace backstory
