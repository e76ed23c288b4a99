#include "models/grab/cuda/page_pool.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"

namespace backstory::grab {
namespace {

constexpr size_t kStagingBlocks = 16;

// Page `page` of a channel in the card's layout. Rows that the state does not have are zero in its pages already.
void WriteBlock(const ChannelState& channel, const CudaKvShape& shape, size_t page, uint16_t* out) {
  const PageShape& from = channel.shape();
  std::vector<float> k(from.kv_heads * from.d_k), v(from.kv_heads * from.d_v);
  std::memset(out, 0, shape.block_bytes());
  const size_t rows = std::min(kPageRows, channel.rows() - page * kPageRows);
  const size_t d_h = static_cast<size_t>(shape.d_h);
  for (size_t layer = 0; layer < channel.layers(); ++layer) {
    const PageView view = channel.page_view(layer, page);
    uint16_t* const to_k = out + 2 * layer * shape.kv_size();
    uint16_t* const to_v = to_k + shape.kv_size();
    for (size_t row = 0; row < rows; ++row) {
      ReadRow(from, row, view, k.data(), v.data());
      for (size_t head = 0; head < from.kv_heads; ++head) {
        const size_t at = head * shape.head_size() + row * d_h;
        for (size_t i = 0; i < from.d_k; ++i) to_k[at + i] = ToBf16(k[head * from.d_k + i]);
        for (size_t i = 0; i < from.d_v; ++i) to_v[at + i] = ToBf16(v[head * from.d_v + i]);
      }
    }
  }
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
  auto staging = device->Allocate(kStagingBlocks * shape.block_bytes(), "onboarding", CudaBuffer::Place::kPinned);
  if (!staging.ok()) return staging.status();
  pool->staging_ = *std::move(staging);
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

absl::StatusOr<CudaPagePool::Pin> CudaPagePool::Onboard(const CudaUserKv& kv, ThreadPool* threads, void* stream) {
  Pin pin;
  {
    std::lock_guard lock(mutex_);
    if (kv.listed_) by_use_.erase(kv.place_);
    kv.listed_ = false;
    ++kv.pins_;
    pin.kv_ = &kv;
  }
  std::lock_guard lock(kv.onboarding_);
  if (absl::Status status = Upload(kv, threads, stream); !status.ok()) return status;
  return pin;
}

absl::Status CudaPagePool::Upload(const CudaUserKv& kv, ThreadPool* threads, void* stream) {
  struct Piece {
    size_t channel, page;
    int32_t block;
  };
  std::vector<Piece> pieces;
  for (size_t c = 0; c < kv.host_->channels(); ++c) {
    const size_t rows = kv.host_->channel(c).rows(), pages = (rows + kPageRows - 1) / kPageRows;
    std::vector<int32_t>& blocks = kv.blocks_[c];
    if (blocks.size() > pages) {
      Free(std::span(blocks).subspan(pages));
      blocks.resize(pages);
    } else if (blocks.size() < pages) {
      auto more = Take(pages - blocks.size());
      if (!more.ok()) return more.status();
      blocks.insert(blocks.end(), more->begin(), more->end());
    }
    for (size_t page = kv.rows_on_card_[c] / kPageRows; kv.rows_on_card_[c] != rows && page < pages; ++page) {
      pieces.push_back({c, page, blocks[page]});
    }
  }
  {
    std::lock_guard lock(mutex_);
    if (pieces.empty()) {
      ++stats_.hits;
    } else {
      ++stats_.onboarded_users;
      stats_.onboarded_blocks += pieces.size();
    }
  }
  if (pieces.empty()) return absl::OkStatus();
  std::lock_guard lock(upload_mutex_);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  for (size_t first = 0; first < pieces.size(); first += kStagingBlocks) {
    const size_t count = std::min(kStagingBlocks, pieces.size() - first);
    ParallelFor(threads, count, [&](size_t i) {
      const Piece& piece = pieces[first + i];
      WriteBlock(kv.host_->channel(piece.channel), shape_, piece.page,
                 staging_.as<uint16_t>(i * shape_.block_bytes()));
    });
    for (size_t i = 0; i < count; ++i) {
      const size_t to = static_cast<size_t>(pieces[first + i].block) * shape_.block_bytes();
      const cudaError_t copied =
          cudaMemcpyAsync(memory_.as<char>(to), staging_.as<char>(i * shape_.block_bytes()), shape_.block_bytes(),
                          cudaMemcpyHostToDevice, cuda_stream);
      if (absl::Status status = device_->Check(copied, "onboarding"); !status.ok()) return status;
    }
    if (absl::Status status = device_->Check(cudaStreamSynchronize(cuda_stream), "onboarding"); !status.ok()) {
      return status;
    }
  }
  for (size_t c = 0; c < kv.host_->channels(); ++c) kv.rows_on_card_[c] = kv.host_->channel(c).rows();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> CudaPagePool::Take(size_t count) {
  std::lock_guard lock(mutex_);
  while (free_.size() < count && !by_use_.empty()) {
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
  if (free_.size() < count) {
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", device_->ordinal(), ": ", count,
                                                     " pages of K/V wanted, ", free_.size(), " of ", blocks_,
                                                     " are not in use"));
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

void CudaUserKv::Truncate(int channel, size_t rows) {
  host_->Truncate(channel, rows);
  if (pool_ == nullptr) return;
  std::lock_guard lock(pool_->mutex_);
  // The page that is cut is sent again, so that nothing stands behind its last row.
  size_t& on_card = rows_on_card_[static_cast<size_t>(channel)];
  if (rows < on_card) on_card = rows / kPageRows * kPageRows;
}

}  // namespace backstory::grab
