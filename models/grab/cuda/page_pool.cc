#include "models/grab/cuda/page_pool.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

// Appends tokens [first, n) of one view.
void AppendTokens(const TokenColumns& from, size_t first, TokenColumns* to) {
  to->sparse.resize(from.sparse.size());
  for (size_t f = 0; f < from.sparse.size(); ++f) {
    const SparseColumn& column = from.sparse[f];
    SparseColumn& out = to->sparse[f];
    const uint32_t shift = out.offsets.back() - column.offsets[first];
    out.ids.insert(out.ids.end(), column.ids.begin() + column.offsets[first],
                   column.ids.begin() + column.offsets.back());
    for (size_t r = first + 1; r < column.offsets.size(); ++r) out.offsets.push_back(column.offsets[r] + shift);
  }
  const size_t width = from.rows == 0 ? 0 : from.dense.size() / from.rows;
  to->dense.insert(to->dense.end(), from.dense.begin() + static_cast<ptrdiff_t>(first * width), from.dense.end());
  to->rows = from.rows;
}

void TruncateTokens(size_t rows, TokenColumns* tokens) {
  const size_t width = tokens->rows == 0 ? 0 : tokens->dense.size() / tokens->rows;
  for (SparseColumn& column : tokens->sparse) {
    column.ids.resize(column.offsets[rows]);
    column.offsets.resize(rows + 1);
  }
  tokens->dense.resize(rows * width);
  tokens->rows = rows;
}

size_t BytesOf(const ChannelRows& rows) {
  size_t bytes = rows.tokens.dense.capacity() * sizeof(float) + rows.time_us.capacity() * 8 + rows.tie.capacity() * 8 +
                 rows.event_id.capacity() * 8 + rows.action.capacity() * 4;
  for (const SparseColumn& column : rows.tokens.sparse) {
    bytes += (column.offsets.capacity() + column.ids.capacity()) * sizeof(uint32_t);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::shared_ptr<CudaPagePool>> CudaPagePool::Create(std::shared_ptr<CudaDevice> device,
                                                                   const CudaKvShape& shape, size_t bytes) {
  const size_t blocks = std::min<size_t>(bytes / shape.block_bytes(), size_t{1} << 24);
  if (blocks == 0) {
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", device->ordinal(), ": ", bytes,
                                                     " bytes for K/V hold no page of ", shape.block_bytes()));
  }
  auto pool = std::shared_ptr<CudaPagePool>(new CudaPagePool(device, shape));
  auto memory = device->Allocate(blocks * shape.block_bytes(), "the K/V pool");
  if (!memory.ok()) return memory.status();
  pool->memory_ = *std::move(memory);
  pool->blocks_ = static_cast<int32_t>(blocks);
  pool->stats_.blocks = blocks;
  for (int32_t block = pool->blocks_; block-- > 0;) pool->free_.push_back(block);
  return pool;
}

CudaPagePool::Pin::~Pin() {
  if (kv_ == nullptr) return;
  CudaPagePool& pool = *kv_->pool_;
  std::lock_guard lock(pool.mutex_);
  if (--kv_->pins_ > 0) return;
  kv_->place_ = pool.by_use_.insert(pool.by_use_.begin(), kv_);
  kv_->listed_ = true;
}

absl::StatusOr<CudaPagePool::Pin> CudaPagePool::Onboard(const CudaUserKv& kv, const Fill& fill) {
  Pin pin;
  {
    std::lock_guard lock(mutex_);
    if (kv.listed_) by_use_.erase(kv.place_);
    kv.listed_ = false;
    ++kv.pins_;
    pin.kv_ = &kv;
  }
  std::lock_guard lock(kv.onboarding_);
  if (absl::Status status = Complete(kv, fill); !status.ok()) return status;
  return pin;
}

absl::Status CudaPagePool::Complete(const CudaUserKv& kv, const Fill& fill) {
  const size_t channels = kv.blocks_.size();
  size_t missing = 0, there = 0, wanted = 0;
  for (size_t c = 0; c < channels; ++c) {
    const size_t rows = kv.facts(c).rows(), pages = (rows + kPageRows - 1) / kPageRows;
    std::vector<int32_t>& blocks = kv.blocks_[c];
    if (blocks.size() > pages) {
      Free(std::span(blocks).subspan(pages));
      blocks.resize(pages);
    }
    wanted += pages - blocks.size();
    missing += rows - kv.rows_on_card_[c];
    there += kv.rows_on_card_[c];
  }
  auto more = Take(wanted);  // all channels' at once: what cannot fit must push nobody out
  if (!more.ok()) return more.status();
  for (size_t c = 0; c < channels; ++c) {
    const size_t pages = (kv.facts(c).rows() + kPageRows - 1) / kPageRows;
    std::vector<int32_t>& blocks = kv.blocks_[c];
    const size_t count = pages - blocks.size();
    blocks.insert(blocks.end(), more->end() - static_cast<ptrdiff_t>(count), more->end());
    more->resize(more->size() - count);
  }
  {
    std::lock_guard lock(mutex_);
    ++(missing == 0 ? stats_.hits : there > 0 ? stats_.extended : stats_.recomputed);
    stats_.rows_computed += missing;
  }
  if (missing == 0) return absl::OkStatus();
  // What a failure leaves behind is not known: nothing counts as there until all of it is.
  const std::vector<size_t> first = std::exchange(kv.rows_on_card_, std::vector<size_t>(channels));
  if (absl::Status status = fill(kv, first); !status.ok()) return status;
  for (size_t c = 0; c < channels; ++c) kv.rows_on_card_[c] = kv.facts(c).rows();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> CudaPagePool::Take(size_t count) {
  std::lock_guard lock(mutex_);
  size_t evictable = 0;
  if (free_.size() < count) {
    for (const CudaUserKv* user : by_use_) {
      for (const std::vector<int32_t>& blocks : user->blocks_) evictable += blocks.size();
    }
  }
  if (free_.size() + evictable < count) {
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", device_->ordinal(), ": ", count,
                                                     " pages of K/V wanted, ", free_.size() + evictable, " of ",
                                                     blocks_, " are not in use"));
  }
  while (free_.size() < count) {
    const CudaUserKv* victim = by_use_.back();
    by_use_.pop_back();
    victim->listed_ = false;
    ++stats_.evicted_users;
    for (size_t c = 0; c < victim->blocks_.size(); ++c) {
      stats_.evicted_blocks += victim->blocks_[c].size();
      free_.insert(free_.end(), victim->blocks_[c].begin(), victim->blocks_[c].end());
      victim->blocks_[c].clear();
      victim->rows_on_card_[c] = 0;
    }
  }
  std::vector<int32_t> taken(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
  free_.resize(free_.size() - count);
  return taken;
}

void CudaPagePool::Free(std::span<const int32_t> blocks) {
  std::lock_guard lock(mutex_);
  free_.insert(free_.end(), blocks.begin(), blocks.end());
}

void CudaPagePool::Forget(CudaUserKv* kv) {
  std::lock_guard lock(mutex_);
  assert(kv->pins_ == 0);
  if (kv->listed_) by_use_.erase(kv->place_);
  for (const std::vector<int32_t>& blocks : kv->blocks_) free_.insert(free_.end(), blocks.begin(), blocks.end());
}

CudaPagePool::Stats CudaPagePool::GetStats() const {
  std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.users = by_use_.size();
  stats.blocks_used = stats.blocks - free_.size();
  return stats;
}

CudaUserKv::~CudaUserKv() {
  if (pool_ != nullptr) pool_->Forget(this);
}

size_t CudaUserKv::Bytes() const {
  size_t bytes = facts_.Bytes() + host_bytes_;
  for (const ChannelRows& rows : tokens_) bytes += BytesOf(rows);
  return bytes;
}

void CudaUserKv::Append(std::span<const ChannelRows> tokens) {
  for (size_t c = 0; c < tokens.size(); ++c) {
    const size_t first = facts_.channel(c).rows();
    const ChannelRows& from = tokens[c];
    ChannelRows& to = tokens_[c];
    facts_.channel(c).Grow({.time_us = std::span(from.time_us).subspan(first),
                            .tie = std::span(from.tie).subspan(first),
                            .event_id = std::span(from.event_id).subspan(first)});
    AppendTokens(from.tokens, first, &to.tokens);
    const auto append = [first](const auto& column, auto* out) {
      out->insert(out->end(), column.begin() + static_cast<ptrdiff_t>(first), column.end());
    };
    append(from.time_us, &to.time_us);
    append(from.action, &to.action);
    append(from.tie, &to.tie);
    append(from.event_id, &to.event_id);
    to.closed = from.closed;
  }
}

void CudaUserKv::Truncate(int channel, size_t rows) {
  if (rows >= Rows(channel)) return;
  const size_t c = static_cast<size_t>(channel);
  ChannelRows& tokens = tokens_[c];
  facts_.Truncate(channel, rows);
  TruncateTokens(rows, &tokens.tokens);
  tokens.time_us.resize(rows);
  tokens.action.resize(rows);
  tokens.tie.resize(rows);
  tokens.event_id.resize(rows);
  {
    std::lock_guard lock(host_mutex_);
    host_->Truncate(channel, rows);
    host_bytes_ = host_->Bytes();
  }
  if (pool_ == nullptr) return;
  std::lock_guard lock(pool_->mutex_);
  // The page that is cut is computed again, so that nothing stands behind its last row.
  if (rows < rows_on_card_[c]) rows_on_card_[c] = rows / kPageRows * kPageRows;
}

absl::StatusOr<const CpuUserKv*> CudaUserKv::OnHost(const Model& model) const {
  std::lock_guard lock(host_mutex_);
  bool complete = true;
  for (size_t c = 0; c < host_->channels(); ++c) complete &= host_->channel(c).rows() == facts(c).rows();
  if (complete) return host_.get();
  const absl::Status status = model.Extend(tokens_, host_.get());
  host_bytes_ = host_->Bytes();
  if (!status.ok()) return status;
  return host_.get();
}

}  // namespace backstory::grab
