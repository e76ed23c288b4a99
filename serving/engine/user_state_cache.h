// User states of ranking and generative models in host memory: sharded, least recently used out first, within a budget
// of bytes. One state per (namespace, user, state key); the state key names model state_id and STATE parameters. Anchor
// and epoch are part of a state and checked on use (UserState::IsOf): a state of another epoch or anchor is replaced in
// place.
#ifndef BACKSTORY_SERVING_ENGINE_USER_STATE_CACHE_H_
#define BACKSTORY_SERVING_ENGINE_USER_STATE_CACHE_H_

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "serving/engine/user_state.h"
#include "store/history_store.h"

namespace backstory {

class GenerativeState;

// One cached user: a state, many readers or one writer. Waiting writers go before new readers. The key says of which
// kind the state is; the other pointer stays null.
class CacheEntry : public std::enable_shared_from_this<CacheEntry> {
 public:
  explicit CacheEntry(std::string state_key);
  ~CacheEntry();
  const std::string& state_key() const { return state_key_; }

 private:
  friend class StatePin;
  friend class StateLease;
  friend class UserStateCache;
  const std::string state_key_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int readers_ = 0;                              // guarded by mutex_
  bool writer_ = false;                          // guarded by mutex_
  int waiting_writers_ = 0;                      // guarded by mutex_
  std::unique_ptr<UserState> state_;             // guarded by being a reader or the writer
  std::unique_ptr<GenerativeState> generative_;  // the same
  size_t bytes_ = 0;                             // guarded by the shard's mutex
  bool cached_ = true;                           // guarded by the shard's mutex: false once erased or evicted
  uint64_t used_ = 0;                            // guarded by the shard's mutex: tick of the last use
  double heat_ = 0;                              // guarded by the shard's mutex: as of used_
};

// Read access: while it lives nobody changes the state. Movable across threads.
class StatePin {
 public:
  StatePin() = default;
  StatePin(StatePin&& other) noexcept = default;
  StatePin& operator=(StatePin&& other) noexcept;
  ~StatePin() { Release(); }
  // False while somebody writes or waits to.
  static bool TryAcquire(const std::shared_ptr<CacheEntry>& entry, StatePin* pin);
  // A state outside of any cache, alone in its pin.
  static StatePin Private(std::unique_ptr<UserState> state);
  static StatePin Private(std::unique_ptr<GenerativeState> state);
  void Release();
  const UserState* state() const { return entry_ == nullptr ? nullptr : entry_->state_.get(); }
  const GenerativeState* generative() const { return entry_ == nullptr ? nullptr : entry_->generative_.get(); }

 private:
  friend class StateLease;
  std::shared_ptr<CacheEntry> entry_;
};

// Write access: one at a time, after all readers have left (so that a state is built once, however many ask for it).
class StateLease {
 public:
  StateLease(StateLease&& other) noexcept = default;
  ~StateLease();
  // Waits. The caller must hold no StatePin: two that wait for each other's would never end.
  static StateLease Acquire(const std::shared_ptr<CacheEntry>& entry);
  // Does not wait; an empty lease if somebody reads or writes.
  static StateLease TryAcquire(const std::shared_ptr<CacheEntry>& entry);
  explicit operator bool() const { return entry_ != nullptr; }
  std::unique_ptr<UserState>& state() { return entry_->state_; }
  std::unique_ptr<GenerativeState>& generative() { return entry_->generative_; }
  // Turns into read access, without a moment in between.
  StatePin Downgrade() &&;

 private:
  explicit StateLease(std::shared_ptr<CacheEntry> entry) : entry_(std::move(entry)) {}
  std::shared_ptr<CacheEntry> entry_;
};

// Thread-safe.
class UserStateCache {
 public:
  explicit UserStateCache(size_t bytes_max) : bytes_max_(bytes_max) {}

  // The entry of a key, made if absent, and marked as used now.
  std::shared_ptr<CacheEntry> Get(const UserKey& user, const std::string& state_key);
  // Accounts what a lease holder left in the entry, then evicts down to the budget. Entries in use are never evicted,
  // so the budget may be exceeded by what is pinned. Returns how many were evicted.
  size_t SetBytes(const UserKey& user, const std::shared_ptr<CacheEntry>& entry, size_t bytes);

  std::vector<std::string> StateKeysOf(const UserKey& user) const;
  // Users who have a state of this key (not only an entry that is still empty). Heat counts uses, each worth half as
  // much after kHeatHalfLife further uses of the cache: LRFU (Lee et al., IEEE ToC 50(12), 2001), recency and frequency
  // in one number.
  struct UserHeat {
    UserKey user;
    double heat = 0;
    size_t bytes = 0;
  };
  static constexpr double kHeatHalfLife = 65'536;
  std::vector<UserHeat> UsersOf(const std::string& state_key) const;
  // Entries in use live on, unreachable, until released.
  size_t EraseUser(const UserKey& user);
  size_t EraseStateKeys(const std::string& prefix);

  struct Stats {
    uint64_t users = 0, states = 0, bytes = 0, bytes_max = 0, evictions = 0;
  };
  Stats GetStats() const;
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kShards = 16;
  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<std::shared_ptr<CacheEntry>>> users;  // guarded by mutex
    std::map<uint64_t, std::pair<std::string, CacheEntry*>> by_use;                   // guarded by mutex; tick -> entry
  };
  Shard& ShardOf(const std::string& user_key) const;
  // Takes an entry out of its shard, whose mutex is held. The user's list must contain it.
  void Unlink(Shard* shard, const std::string& user_key, CacheEntry* entry);
  enum class Eviction { kDone, kRetry, kNothingLeft };
  Eviction EvictOne();

  const size_t bytes_max_;
  std::atomic<uint64_t> tick_{0};
  std::atomic<size_t> bytes_{0};
  std::atomic<uint64_t> evictions_{0};
  mutable std::array<Shard, kShards> shards_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_USER_STATE_CACHE_H_
