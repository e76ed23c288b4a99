#include "models/glass/history.h"

#include <algorithm>
#include <cassert>

namespace backstory::glass {

void RowQueue::Pop() {
  assert(size() > 0);
  if (++begin_ * 2 < rows_.size()) return;
  rows_.erase(rows_.begin(), rows_.begin() + static_cast<ptrdiff_t>(begin_));
  begin_ = 0;
}

bool RowQueue::operator==(const RowQueue& other) const {
  return std::equal(rows().begin(), rows().end(), other.rows().begin(), other.rows().end());
}

History::History(const Catalogue* catalogue)
    : catalogue_(catalogue),
      counts_(static_cast<size_t>(catalogue->config().levels[0]) * catalogue->config().bins()),
      buckets_(static_cast<size_t>(catalogue->config().levels[0])) {}

void History::Append(uint32_t row) {
  assert(row < catalogue_->size());
  ++size_;
  ring_.Push(row);
  if (ring_.size() <= static_cast<size_t>(catalogue_->config().short_items)) return;
  const uint32_t oldest = ring_.rows().front();
  ring_.Pop();
  EnterLong(oldest);
}

void History::EnterLong(uint32_t row) {
  const Config& config = catalogue_->config();
  Count(row, 1);
  RowQueue& bucket = buckets_[catalogue_->sid(row)[0]];
  bucket.Push(row);
  if (config.long_items == 0) {
    // Nothing ever leaves the long part, so what a bucket can never yield again need not stay.
    if (bucket.size() > static_cast<size_t>(std::max(1, config.retrieved_items))) bucket.Pop();
    return;
  }
  long_.Push(row);
  if (long_.size() <= static_cast<size_t>(config.long_items)) return;
  const uint32_t gone = long_.rows().front();
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
  size_t items = ring_.size() + long_.size();
  for (const auto& bucket : buckets_) items += bucket.size();
  return items * sizeof(uint32_t) + counts_.size() * sizeof(int32_t) + buckets_.size() * sizeof(buckets_[0]);
}

std::vector<uint32_t> History::ShortTokens() const {
  std::vector<uint32_t> tokens;
  tokens.reserve(kLevels * ring_.size());
  for (const uint32_t row : ring_.rows()) {
    for (const uint32_t token : catalogue_->Tokens(row)) tokens.push_back(token);
  }
  return tokens;
}

void History::TierFeatures(float* out) const {
  const double divisor = static_cast<double>(std::max<size_t>(1, long_count_));
  for (size_t i = 0; i < counts_.size(); ++i) out[i] = static_cast<float>(counts_[i] / divisor);
}

std::vector<uint32_t> History::Bucket(uint16_t code) const {
  const Config& config = catalogue_->config();
  const size_t limit = static_cast<size_t>(config.retrieved_items);
  const std::span<const uint32_t> own = buckets_[code].Newest(limit);
  std::vector<uint32_t> rows(own.begin(), own.end());
  if (config.neighbours == 0 || rows.size() >= static_cast<size_t>(config.neighbour_below)) return rows;
  for (const uint16_t other : catalogue_->neighbours(code)) {
    const std::span<const uint32_t> more = buckets_[other].Newest(limit - rows.size());
    rows.insert(rows.begin(), more.begin(), more.end());
  }
  return rows;
}

bool History::operator==(const History& other) const {
  return size_ == other.size_ && long_count_ == other.long_count_ && ring_ == other.ring_ && counts_ == other.counts_ &&
         buckets_ == other.buckets_ && long_ == other.long_;
}

}  // namespace backstory::glass
