// The K/V of one user as the CPU path keeps it: per channel the facts of its rows, per channel and layer its pages.
#ifndef BACKSTORY_MODELS_GRAB_USER_KV_H_
#define BACKSTORY_MODELS_GRAB_USER_KV_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/page.h"
#include "models/grab/key_runs.h"
#include "models/grab/model.h"

namespace backstory::grab {

// Facts of rows to append.
struct RowFacts {
  std::span<const int64_t> time_us;
  std::span<const int64_t> tie;
  std::span<const uint64_t> event_id;
};

class ChannelState {
 public:
  ChannelState(const PageShape& shape, int layers) : shape_(shape), pages_(static_cast<size_t>(layers)) {}

  size_t rows() const { return time_us_.size(); }
  size_t layers() const { return pages_.size(); }
  size_t Bytes() const;
  const PageShape& shape() const { return shape_; }
  RowIndex index() const { return {time_us_, tie_, previous_tie_}; }
  std::span<const uint64_t> event_ids() const { return event_id_; }

  // Makes room in every layer; the rows' K/V are zero until written.
  void Grow(const RowFacts& rows);
  void Truncate(size_t rows);

  Page& page_of(size_t layer, size_t row) { return pages_[layer][row / kPageRows]; }
  PageView page_view(size_t layer, size_t page) const { return pages_[layer][page].view(); }
  // Pages of rows [0, rows()).
  std::vector<PageView> pages(size_t layer) const;

 private:
  PageShape shape_;
  std::vector<int64_t> time_us_;
  std::vector<int64_t> tie_;
  std::vector<uint64_t> event_id_;
  std::vector<int32_t> previous_tie_;
  std::vector<std::vector<Page>> pages_;  // [layer][row / 128]
};

class CpuUserKv final : public UserKv {
 public:
  CpuUserKv(const PageShape& shape, int channels, int layers) {
    for (int c = 0; c < channels; ++c) channels_.emplace_back(shape, layers);
  }
  CpuUserKv(const CpuUserKv&) = delete;
  CpuUserKv& operator=(const CpuUserKv&) = delete;

  size_t Rows(int channel) const override { return channels_[static_cast<size_t>(channel)].rows(); }
  size_t Bytes() const override;
  void Truncate(int channel, size_t rows) override { channels_[static_cast<size_t>(channel)].Truncate(rows); }

  ChannelState& channel(size_t c) { return channels_[c]; }
  const ChannelState& channel(size_t c) const { return channels_[c]; }
  size_t channels() const { return channels_.size(); }

 private:
  std::vector<ChannelState> channels_;
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_USER_KV_H_
