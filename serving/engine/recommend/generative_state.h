// What one generative version remembers of one user: short window, tier counts, buckets by first code, the items seen,
// and what its searcher made of them (on a CPU the encoder's output). Each event is taken in once, in O(1); nothing of
// the history is read again. However a state came about - built at once or extended event by event - it is the same
// (tests/serving/engine/recommend_test.cc).
#ifndef BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_H_
#define BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "models/glass/history.h"
#include "models/glass/searcher.h"
#include "serving/engine/rank_query.h"
#include "serving/engine/recommend/generative_model.h"
#include "store/history_store.h"

namespace backstory {

// Not thread-safe, except that const calls may run at once while nobody writes.
class GenerativeState {
 public:
  GenerativeState(std::shared_ptr<const glass::Catalogue> catalogue, int64_t events_max)
      : catalogue_(std::move(catalogue)), events_max_(events_max), history_(catalogue_.get()) {}
  GenerativeState(const GenerativeState&) = delete;
  GenerativeState& operator=(const GenerativeState&) = delete;

  // From scratch: `snapshot` holds every live event from AnchorOf(snapshot.head) on (more is fine). Events at or after
  // `view_us` wait until the view moves past them. DATA_LOSS if the snapshot has fewer events than its head promises.
  absl::Status Build(const GenerativeModel& model, HistoryStore::Snapshot snapshot, int64_t view_us);

  // Whether the state knows exactly what a store at `head` and a catalogue know.
  bool IsOf(const UserHead& head, const glass::Catalogue* catalogue) const {
    return head == head_ && catalogue == catalogue_.get();
  }
  // Whether a request that sees events before `view_us` can be answered as the state stands: nothing waits that it
  // would see, and nothing was taken in that it must not see.
  bool Answers(int64_t view_us) const;
  // Whether Extend can take this tail and view: no event lies before one that was taken in, no item that was unknown
  // has become known, and nothing but time has passed otherwise. If not, Build a new one.
  bool CanExtend(const HistoryTail& tail, int64_t view_us, const glass::Catalogue& catalogue) const;
  // Whether the memory that the state is made of still has the hash that the last change left.
  bool Verify() const { return Hash() == hash_; }
  // Takes in `tail` and moves the view.
  void Extend(const GenerativeModel& model, std::shared_ptr<const glass::Catalogue> catalogue, HistoryTail tail,
              int64_t view_us);

  const glass::Catalogue& catalogue() const { return *catalogue_; }
  const glass::History& history() const { return history_; }
  const glass::EncodedUser& encoded() const { return *encoded_; }
  bool Seen(uint64_t item_id) const { return seen_.contains(item_id); }
  const UserHead& head() const { return head_; }
  void SetHead(const UserHead& head) { head_ = head; }  // of the whole user, where the state was built from a part
  int64_t view_us() const { return view_us_; }
  uint64_t events() const { return taken_; }  // that the state was made of
  size_t Bytes() const { return bytes_; }
  glass::History* mutable_history_for_test() { return &history_; }

 private:
  void Take(const GenerativeModel& model, std::vector<Event> events, int64_t view_us);
  uint64_t Hash() const;

  std::shared_ptr<const glass::Catalogue> catalogue_;  // before history_, which points to it
  const int64_t events_max_;
  UserHead head_;
  int64_t anchor_ = 0;
  int64_t view_us_ = 0;
  int64_t newest_us_ = -1;  // of the last event that was taken in
  uint64_t newest_id_ = 0;
  uint64_t taken_ = 0;
  std::vector<Event> pending_;  // at or after view_us_, canonical order
  glass::History history_;
  absl::flat_hash_set<uint64_t> seen_;     // item ids of all events taken in
  absl::flat_hash_set<uint64_t> unknown_;  // of behaviours whose item has no semantic ID
  std::unique_ptr<const glass::EncodedUser> encoded_;
  uint64_t hash_ = 0;
  size_t bytes_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_RECOMMEND_GENERATIVE_STATE_H_
