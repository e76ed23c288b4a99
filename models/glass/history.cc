#include "models/glass/history.h"

#include <algorithm>
#include <cassert>

#include "features/hash.h"

namespace backstory::glass {

void BehaviourQueue::Pop() {
  assert(size() > 0);
  if (++begin_ * 2 < held_.size()) return;
  held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(begin_));
  begin_ = 0;
}

bool BehaviourQueue::operator==(const BehaviourQueue& other) const {
  return std::equal(held().begin(), held().end(), other.held().begin(), other.held().end());
}

History::History(const Catalogue* catalogue)
    : catalogue_(catalogue),
      counts_(static_cast<size_t>(catalogue->config().levels[0]) * catalogue->config().bins()),
      buckets_(static_cast<size_t>(catalogue->config().levels[0])) {}

void History::Append(uint32_t row, uint64_t event_id, int64_t time_us) {
  assert(row < catalogue_->size());
  ++size_;
  ring_.Push({row, event_id, time_us});
  if (ring_.size() <= static_cast<size_t>(catalogue_->config().short_items)) return;
  const Behaviour oldest = ring_.held().front();
  ring_.Pop();
  EnterLong(oldest);
}

void History::EnterLong(const Behaviour& behaviour) {
  const Config& config = catalogue_->config();
  Count(behaviour.row, 1);
  BehaviourQueue& bucket = buckets_[catalogue_->sid(behaviour.row)[0]];
  bucket.Push(behaviour);
  if (config.long_items == 0) {
    // Nothing ever leaves the long part, so what a bucket can never yield again need not stay.
    if (bucket.size() > static_cast<size_t>(std::max(1, config.retrieved_items))) bucket.Pop();
    return;
  }
  long_.Push(behaviour);
  if (long_.size() <= static_cast<size_t>(config.long_items)) return;
  const uint32_t gone = long_.held().front().row;
  long_.Pop();
  Count(gone, -1);
  buckets_[catalogue_->sid(gone)[0]].Pop();  // a bucket is in time order, so this is the one
}

void History::Count(uint32_t row, int32_t change) {
  long_count_ = static_cast<size_t>(static_cast<int64_t>(long_count_) + change);
  const std::span<const uint8_t> bins = catalogue_->bins(row);
  const size_t width = catalogue_->config().bins();
  for (size_t code = 0; code < bins.size(); ++code) {
    if (bins[code] != TierTable::kNoBin) counts_[code * width + bins[code]] += change;
  }
}

size_t History::bytes() const {
  size_t queues = ring_.bytes() + long_.bytes();
  for (const auto& bucket : buckets_) queues += bucket.bytes();
  return queues + counts_.size() * sizeof(int32_t) + buckets_.size() * sizeof(buckets_[0]);
}

std::vector<uint32_t> History::ShortTokens() const {
  std::vector<uint32_t> tokens;
  tokens.reserve(kLevels * ring_.size());
  for (const Behaviour& behaviour : ring_.held()) {
    for (const uint32_t token : catalogue_->Tokens(behaviour.row)) tokens.push_back(token);
  }
  return tokens;
}

void History::TierFeatures(float* out) const {
  const double divisor = static_cast<double>(std::max<size_t>(1, long_count_));
  for (size_t i = 0; i < counts_.size(); ++i) out[i] = static_cast<float>(counts_[i] / divisor);
}

std::vector<Behaviour> History::Bucket(uint16_t code) const {
  const Config& config = catalogue_->config();
  const size_t limit = static_cast<size_t>(config.retrieved_items);
  const std::span<const Behaviour> own = buckets_[code].Newest(limit);
  std::vector<Behaviour> found(own.begin(), own.end());
  if (config.neighbours == 0 || found.size() >= static_cast<size_t>(config.neighbour_below)) return found;
  for (const uint16_t other : catalogue_->neighbours(code)) {
    const std::span<const Behaviour> more = buckets_[other].Newest(limit - found.size());
    found.insert(found.begin(), more.begin(), more.end());
  }
  return found;
}

uint64_t History::Hash(uint64_t seed) const {
  seed = HashBytes({reinterpret_cast<const char*>(counts_.data()), counts_.size() * sizeof(int32_t)}, seed);
  const auto add = [&seed](const BehaviourQueue& queue) {
    // Field by field: padding has no value.
    for (const Behaviour& b : queue.held())
      seed = HashU64(b.event_id ^ static_cast<uint64_t>(b.time_us), HashU64(b.row, seed));
  };
  add(ring_);
  for (const BehaviourQueue& bucket : buckets_) add(bucket);
  return HashU64(long_count_, HashU64(size_, seed));
}

bool History::operator==(const History& other) const {
  return size_ == other.size_ && long_count_ == other.long_count_ && ring_ == other.ring_ && counts_ == other.counts_ &&
         buckets_ == other.buckets_ && long_ == other.long_;
}

}  // namespace backstory::glass
