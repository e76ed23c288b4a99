// Event times of long users whose past is asked about: how many events lie before a view decides where its state begins
// (user_state.h), and reading a history for every row of a batch would be quadratic.
#ifndef BACKSTORY_SERVING_ENGINE_EVENT_TIMES_H_
#define BACKSTORY_SERVING_ENGINE_EVENT_TIMES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "store/history_store.h"

namespace backstory {

// Thread-safe. Keeps the users asked about last, within `bytes_max`.
class EventTimes {
 public:
  explicit EventTimes(HistoryStore* store, size_t bytes_max = size_t{64} << 20)
      : store_(store), bytes_max_(bytes_max) {}

  // Retained events of `user` with time < `us`, as of `head` or newer; nullopt if that needs the store but `may_read`
  // is false. Statuses are the store's.
  absl::StatusOr<std::optional<uint64_t>> CountBefore(const UserKey& user, const UserHead& head, int64_t us,
                                                      bool may_read);

 private:
  struct Known {
    UserHead head;
    std::shared_ptr<const std::vector<int64_t>> times;  // ascending
    uint64_t used = 0;                                  // tick of the last use
  };
  absl::StatusOr<Known> Read(const UserKey& user, const Known& known);
  void Keep(const UserKey& user, const Known& known);

  HistoryStore* const store_;
  const size_t bytes_max_;
  std::mutex mutex_;
  std::map<UserKey, Known> users_;  // guarded by mutex_
  size_t bytes_ = 0;                // guarded by mutex_
  uint64_t tick_ = 0;               // guarded by mutex_
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EVENT_TIMES_H_
