#include "models/grab/user_kv.h"

#include <cassert>
#include <unordered_map>

namespace backstory::grab {

size_t ChannelState::Bytes() const {
  size_t bytes = time_us_.capacity() * sizeof(int64_t) + tie_.capacity() * sizeof(int64_t) +
                 event_id_.capacity() * sizeof(uint64_t) + previous_tie_.capacity() * sizeof(int32_t);
  for (const std::vector<Page>& layer : pages_) {
    for (const Page& page : layer) bytes += page.bytes() + sizeof(Page);
  }
  return bytes;
}

void ChannelState::Grow(const RowFacts& rows) {
  const size_t before = this->rows(), added = rows.time_us.size();
  assert(rows.tie.size() == added && rows.event_id.size() == added);
  time_us_.insert(time_us_.end(), rows.time_us.begin(), rows.time_us.end());
  tie_.insert(tie_.end(), rows.tie.begin(), rows.tie.end());
  event_id_.insert(event_id_.end(), rows.event_id.begin(), rows.event_id.end());
  if (added <= 8) {  // a few rows: looking back is cheaper than a map of all keys
    for (size_t i = before; i < before + added; ++i) {
      int32_t at = static_cast<int32_t>(i) - 1;
      while (at >= 0 && tie_[static_cast<size_t>(at)] != tie_[i]) --at;
      previous_tie_.push_back(at);
    }
  } else {
    std::unordered_map<int64_t, int32_t> newest;
    newest.reserve(before + added);
    for (size_t i = 0; i < before + added; ++i) {
      const auto [it, first] = newest.try_emplace(tie_[i], static_cast<int32_t>(i));
      if (i >= before) previous_tie_.push_back(first ? -1 : it->second);
      it->second = static_cast<int32_t>(i);
    }
  }
  const size_t page_count = (before + added + kPageRows - 1) / kPageRows;
  for (std::vector<Page>& layer : pages_) {
    while (layer.size() < page_count) layer.emplace_back(shape_);
  }
}

void ChannelState::Truncate(size_t rows) {
  if (rows >= this->rows()) return;
  time_us_.resize(rows);
  tie_.resize(rows);
  event_id_.resize(rows);
  previous_tie_.resize(rows);
  const size_t page_count = (rows + kPageRows - 1) / kPageRows;
  for (std::vector<Page>& layer : pages_) {
    layer.erase(layer.begin() + static_cast<ptrdiff_t>(page_count), layer.end());
    if (rows % kPageRows != 0) ClearRows(shape_, rows % kPageRows, &layer.back());
  }
}

std::vector<PageView> ChannelState::pages(size_t layer) const {
  std::vector<PageView> views;
  views.reserve(pages_[layer].size());
  for (const Page& page : pages_[layer]) views.push_back(page.view());
  return views;
}

size_t CpuUserKv::Bytes() const {
  size_t bytes = 0;
  for (const ChannelState& channel : channels_) bytes += channel.Bytes();
  return bytes;
}

}  // namespace backstory::grab
