#include "serving/engine/user_state_cache.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>

#include "serving/engine/recommend/generative_state.h"

namespace backstory {
namespace {

std::string KeyOf(const UserKey& user) { return user.ns + '\n' + user.user; }  // a namespace has no line ends
UserKey UserOf(const std::string& key) {
  const size_t end = key.find('\n');
  return {key.substr(0, end), key.substr(end + 1)};
}

double Cooled(double heat, uint64_t uses) {
  return heat * std::exp2(-static_cast<double>(uses) / UserStateCache::kHeatHalfLife);
}

}  // namespace

CacheEntry::CacheEntry(std::string state_key) : state_key_(std::move(state_key)) {}
CacheEntry::~CacheEntry() = default;

StatePin& StatePin::operator=(StatePin&& other) noexcept {
  if (this == &other) return *this;
  Release();
  entry_ = std::move(other.entry_);
  return *this;
}

bool StatePin::TryAcquire(const std::shared_ptr<CacheEntry>& entry, StatePin* pin) {
  std::lock_guard lock(entry->mutex_);
  if (entry->writer_ || entry->waiting_writers_ > 0) return false;
  ++entry->readers_;
  StatePin acquired;
  acquired.entry_ = entry;
  *pin = std::move(acquired);
  return true;
}

StatePin StatePin::Private(std::unique_ptr<UserState> state) {
  StatePin pin;
  pin.entry_ = std::make_shared<CacheEntry>("");
  pin.entry_->state_ = std::move(state);
  pin.entry_->readers_ = 1;
  return pin;
}

StatePin StatePin::Private(std::unique_ptr<GenerativeState> state) {
  StatePin pin = Private(std::unique_ptr<UserState>());
  pin.entry_->generative_ = std::move(state);
  return pin;
}

void StatePin::Release() {
  if (entry_ == nullptr) return;
  {
    std::lock_guard lock(entry_->mutex_);
    assert(entry_->readers_ > 0);
    if (--entry_->readers_ == 0) entry_->changed_.notify_all();
  }
  entry_ = nullptr;
}

StateLease::~StateLease() {
  if (entry_ == nullptr) return;
  std::lock_guard lock(entry_->mutex_);
  entry_->writer_ = false;
  entry_->changed_.notify_all();
}

StateLease StateLease::Acquire(const std::shared_ptr<CacheEntry>& entry) {
  std::unique_lock lock(entry->mutex_);
  ++entry->waiting_writers_;
  entry->changed_.wait(lock, [&entry] { return !entry->writer_ && entry->readers_ == 0; });
  --entry->waiting_writers_;
  entry->writer_ = true;
  return StateLease(entry);
}

StateLease StateLease::TryAcquire(const std::shared_ptr<CacheEntry>& entry) {
  std::lock_guard lock(entry->mutex_);
  if (entry->writer_ || entry->readers_ > 0) return StateLease(nullptr);
  entry->writer_ = true;
  return StateLease(entry);
}

StatePin StateLease::Downgrade() && {
  StatePin pin;
  {
    std::lock_guard lock(entry_->mutex_);
    entry_->writer_ = false;
    entry_->readers_ = 1;
    entry_->changed_.notify_all();
  }
  pin.entry_ = std::move(entry_);
  entry_ = nullptr;
  return pin;
}

UserStateCache::Shard& UserStateCache::ShardOf(const std::string& user_key) const {
  return shards_[std::hash<std::string>{}(user_key) % kShards];
}

std::shared_ptr<CacheEntry> UserStateCache::Get(const UserKey& user, const std::string& state_key) {
  const std::string key = KeyOf(user);
  Shard& shard = ShardOf(key);
  std::lock_guard lock(shard.mutex);
  auto& entries = shard.users[key];
  auto it =
      std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry->state_key_ == state_key; });
  if (it == entries.end()) it = entries.insert(it, std::make_shared<CacheEntry>(state_key));
  CacheEntry& entry = **it;
  shard.by_use.erase(entry.used_);
  const uint64_t tick = ++tick_;
  entry.heat_ = 1 + Cooled(entry.heat_, tick - entry.used_);
  entry.used_ = tick;
  shard.by_use.emplace(entry.used_, std::pair(key, &entry));
  return *it;
}

void UserStateCache::Unlink(Shard* shard, const std::string& user_key, CacheEntry* entry) {
  const auto found = shard->users.find(user_key);
  assert(found != shard->users.end());
  bytes_ -= entry->bytes_;
  entry->bytes_ = 0;
  entry->cached_ = false;
  shard->by_use.erase(entry->used_);
  std::erase_if(found->second, [entry](const auto& held) { return held.get() == entry; });
  if (found->second.empty()) shard->users.erase(found);
}

size_t UserStateCache::SetBytes(const UserKey& user, const std::shared_ptr<CacheEntry>& entry, size_t bytes) {
  {
    Shard& shard = ShardOf(KeyOf(user));
    std::lock_guard lock(shard.mutex);
    if (entry->cached_) {
      bytes_ += bytes;
      bytes_ -= entry->bytes_;
      entry->bytes_ = bytes;
    }
  }
  size_t evicted = 0;
  while (bytes_ > bytes_max_) {
    const Eviction eviction = EvictOne();
    if (eviction == Eviction::kNothingLeft) break;
    evicted += eviction == Eviction::kDone ? 1 : 0;
  }
  evictions_ += evicted;
  return evicted;
}

// The least recently used entry that nobody uses: the oldest of the shards' oldest.
UserStateCache::Eviction UserStateCache::EvictOne() {
  Shard* oldest = nullptr;
  uint64_t oldest_tick = UINT64_MAX;
  const auto unused = [](const auto& use) {
    // The shard's list holds one reference; further ones can only appear under the shard's mutex.
    return use.second.second->weak_from_this().use_count() == 1;
  };
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    const auto it = std::find_if(shard.by_use.begin(), shard.by_use.end(), unused);
    if (it != shard.by_use.end() && it->first < oldest_tick) oldest_tick = it->first, oldest = &shard;
  }
  if (oldest == nullptr) return Eviction::kNothingLeft;
  std::shared_ptr<CacheEntry> keep;  // destroyed outside of the lock: freeing a large state takes a while
  std::lock_guard lock(oldest->mutex);
  const auto it = std::find_if(oldest->by_use.begin(), oldest->by_use.end(), unused);
  if (it == oldest->by_use.end()) return Eviction::kRetry;  // taken meanwhile
  const auto [user_key, entry] = it->second;
  keep = entry->shared_from_this();
  Unlink(oldest, user_key, entry);
  return Eviction::kDone;
}

std::vector<std::string> UserStateCache::StateKeysOf(const UserKey& user) const {
  const std::string key = KeyOf(user);
  Shard& shard = ShardOf(key);
  std::vector<std::string> keys;
  std::lock_guard lock(shard.mutex);
  if (const auto it = shard.users.find(key); it != shard.users.end()) {
    for (const auto& entry : it->second) keys.push_back(entry->state_key_);
  }
  return keys;
}

std::vector<UserStateCache::UserHeat> UserStateCache::UsersOf(const std::string& state_key) const {
  std::vector<UserHeat> users;
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    const uint64_t now = tick_;
    for (const auto& [tick, use] : shard.by_use) {
      const CacheEntry& entry = *use.second;
      if (entry.bytes_ == 0 || entry.state_key_ != state_key) continue;
      users.push_back({UserOf(use.first), Cooled(entry.heat_, now - std::min(now, tick)), entry.bytes_});
    }
  }
  return users;
}

size_t UserStateCache::EraseUser(const UserKey& user) {
  const std::string key = KeyOf(user);
  Shard& shard = ShardOf(key);
  std::vector<std::shared_ptr<CacheEntry>> gone;
  std::lock_guard lock(shard.mutex);
  if (const auto it = shard.users.find(key); it != shard.users.end()) gone = it->second;
  for (const auto& entry : gone) Unlink(&shard, key, entry.get());
  return gone.size();
}

size_t UserStateCache::EraseStateKeys(const std::string& prefix) {
  size_t erased = 0;
  for (Shard& shard : shards_) {
    std::vector<std::pair<std::string, std::shared_ptr<CacheEntry>>> gone;
    std::lock_guard lock(shard.mutex);
    for (const auto& [key, entries] : shard.users) {
      for (const auto& entry : entries) {
        if (entry->state_key_.starts_with(prefix)) gone.emplace_back(key, entry);
      }
    }
    for (const auto& [key, entry] : gone) Unlink(&shard, key, entry.get());
    erased += gone.size();
  }
  return erased;
}

UserStateCache::Stats UserStateCache::GetStats() const {
  Stats stats;
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    stats.users += shard.users.size();
    stats.states += shard.by_use.size();
  }
  stats.bytes = bytes_;
  stats.bytes_max = bytes_max_;
  stats.evictions = evictions_;
  return stats;
}

}  // namespace backstory
