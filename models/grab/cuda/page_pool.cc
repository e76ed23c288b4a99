#include "models/grab/cuda/page_pool.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/grab/cuda/card_kv.h"

namespace backstory::grab {
namespace {

constexpr size_t kSpareShare = 32;  // of the pool

size_t PagesOf(size_t rows) { return (rows + kPageRows - 1) / kPageRows; }

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

absl::Status CudaPagePool::AddHostPages(size_t bytes) {
  auto host = CudaHostPages::Create(device_, shape_.block_bytes(), bytes, data(), static_cast<size_t>(blocks_));
  if (!host.ok()) return host.status();
  std::lock_guard lock(mutex_);
  host_ = *std::move(host);
  copy_cost_ = host_->cost();
  stats_.host_blocks = host_->blocks();
  return absl::OkStatus();
}

CudaPagePool::Pin::~Pin() {
  if (kv_ == nullptr) return;
  CudaPagePool& pool = *kv_->pool_;
  std::lock_guard lock(pool.mutex_);
  if (--kv_->pins_ == 0) pool.List(kv_);
}

absl::Status CudaPagePool::Pin::Before(CUstream_st* stream) const {
  return kv_->arriving_ == nullptr ? absl::OkStatus() : kv_->arriving_->Before(stream);
}

void CudaPagePool::List(const CudaUserKv* kv) {
  kv->place_ = by_use_.insert(by_use_.begin(), kv);
  kv->listed_ = true;
  if (std::all_of(kv->host_blocks_.begin(), kv->host_blocks_.end(), [](const auto& b) { return b.empty(); })) return;
  kv->host_place_ = host_by_use_.insert(host_by_use_.begin(), kv);
  kv->host_listed_ = true;
}

void CudaPagePool::Unlist(const CudaUserKv* kv) {
  if (std::exchange(kv->listed_, false)) by_use_.erase(kv->place_);
  if (std::exchange(kv->host_listed_, false)) host_by_use_.erase(kv->host_place_);
}

absl::StatusOr<CudaPagePool::Pin> CudaPagePool::Onboard(const CudaUserKv& kv, const Fill& fill) {
  Pin pin;
  {
    std::lock_guard lock(mutex_);
    Unlist(&kv);
    ++kv.pins_;
    pin.kv_ = &kv;
  }
  std::lock_guard lock(kv.onboarding_);
  if (absl::Status status = Complete(kv, fill); !status.ok()) return status;
  return pin;
}

absl::Status CudaPagePool::Complete(const CudaUserKv& kv, const Fill& fill) {
  const size_t channels = kv.blocks_.size();
  std::vector<size_t> rows(channels);
  size_t missing = 0, there = 0, wanted = 0;
  {
    std::lock_guard lock(mutex_);
    for (size_t c = 0; c < channels; ++c) {
      rows[c] = kv.facts(c).rows();
      FreePages(&kv, c, PagesOf(rows[c]));
      wanted += PagesOf(rows[c]) - kv.blocks_[c].size();
      missing += rows[c] - kv.rows_on_card_[c];
      there += kv.rows_on_card_[c];
    }
    if (missing == 0) ++stats_.hits;
  }
  if (missing == 0) return absl::OkStatus();
  auto more = Take(wanted, kv.tenant_.get());  // all channels' at once: what cannot fit must push nobody out
  if (!more.ok()) return more.status();
  for (size_t c = 0; c < channels; ++c) {
    std::vector<int32_t>& blocks = kv.blocks_[c];
    const size_t count = PagesOf(rows[c]) - blocks.size();
    blocks.insert(blocks.end(), more->end() - static_cast<ptrdiff_t>(count), more->end());
    more->resize(more->size() - count);
  }
  // What a failure leaves behind is not known: nothing counts as there until all of it is.
  std::vector<size_t> first = std::exchange(kv.rows_on_card_, std::vector<size_t>(channels));
  {
    std::lock_guard lock(mutex_);
    const StateSource source = Choose(kv, rows, first).source;
    ++(source == StateSource::kHost ? stats_.onboarded : there > 0 ? stats_.extended : stats_.recomputed);
    if (source == StateSource::kHost) {
      if (absl::Status status = CopyIn(kv, rows, &first); !status.ok()) return status;
    }
  }
  if (absl::Status status = Compute(kv, fill, rows, first); !status.ok()) return status;
  kv.rows_on_card_ = rows;
  return absl::OkStatus();
}

// With mutex_ held.
StateChoice CudaPagePool::Choose(const CudaUserKv& kv, std::span<const size_t> rows, std::span<const size_t> first) {
  Reap();
  StateOffer offer{.after_card = WorkOf(first, rows)};
  std::vector<size_t> after(first.begin(), first.end());
  for (size_t c = 0; c < rows.size(); ++c) {
    if (kv.rows_on_host_[c] <= first[c]) continue;
    offer.on_host = true;
    after[c] = kv.rows_on_host_[c];
    offer.host_bytes += static_cast<double>((PagesOf(after[c]) - first[c] / kPageRows) * shape_.block_bytes());
  }
  offer.after_host = WorkOf(after, rows);
  StateQueues queues{.compute_seconds = computing_s_};
  for (const auto& copy : to_card_) queues.copy_bytes += copy->bytes;
  const StateCosts costs{.compute = kv.tenant_ == nullptr ? ComputeCost{} : kv.tenant_->cost(), .copy = copy_cost_};
  return ChooseStateSource(offer, costs, queues);
}

// With mutex_ held. Only enqueues; moves `first` to behind what it copies.
absl::Status CudaPagePool::CopyIn(const CudaUserKv& kv, std::span<const size_t> rows, std::vector<size_t>* first) {
  std::vector<CudaHostPages::Move> moves;
  for (size_t c = 0; c < rows.size(); ++c) {
    size_t& from = (*first)[c];
    if (kv.rows_on_host_[c] <= from) continue;
    for (size_t p = from / kPageRows; p < PagesOf(kv.rows_on_host_[c]); ++p) {
      moves.push_back({kv.blocks_[c][p], kv.host_blocks_[c][p]});
    }
    stats_.rows_onboarded += kv.rows_on_host_[c] - from;
    from = kv.rows_on_host_[c];
  }
  auto copy = host_->ToCard(moves, kv.leaving_.get());
  if (!copy.ok()) return copy.status();
  kv.arriving_ = *copy;
  to_card_.push_back(*std::move(copy));
  return absl::OkStatus();
}

absl::Status CudaPagePool::Compute(const CudaUserKv& kv, const Fill& fill, std::span<const size_t> rows,
                                   std::span<const size_t> first) {
  const HistoryWork work = WorkOf(first, rows);
  if (work.rows == 0) return absl::OkStatus();
  // Rows that are computed read those before them.
  if (kv.arriving_ != nullptr) {
    if (absl::Status status = kv.arriving_->Wait(); !status.ok()) return status;
  }
  double own = 0, expected = 0;
  {
    std::lock_guard lock(mutex_);
    own = kv.tenant_ == nullptr ? 0 : kv.tenant_->cost().Seconds(work);
    expected = own + computing_s_;
    computing_s_ += own;
  }
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = fill(kv, first);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::lock_guard lock(mutex_);
  computing_s_ = std::max(0.0, computing_s_ - own);
  if (!status.ok()) return status;
  stats_.rows_computed += static_cast<uint64_t>(work.rows);
  stats_.compute_expected_s += expected;
  stats_.compute_s += seconds;
  // Appends of a few rows go another way than the histories that the costs were fitted to.
  if (kv.tenant_ != nullptr && work.rows >= kPageRows) {
    kv.tenant_->slowness = Corrected(kv.tenant_->slowness, expected, seconds);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> CudaPagePool::Take(size_t count, CudaTenant* tenant) {
  std::unique_lock lock(mutex_);
  while (true) {
    Reap();
    if (absl::Status status = MakeRoom(count, tenant); !status.ok()) return status;
    if (free_.size() >= count) break;
    // Enough is on its way out: others may take it first, so look again.
    const std::shared_ptr<CudaCopy> copy = leaving_.front().copy;
    lock.unlock();
    const absl::Status status = copy->Wait();
    lock.lock();
    if (!status.ok()) return status;
  }
  std::vector<int32_t> taken(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
  free_.resize(free_.size() - count);
  if (tenant != nullptr) tenant->blocks += count;
  return taken;
}

// Evicts until `count` blocks are free or on their way out, or nobody if that cannot be.
absl::Status CudaPagePool::MakeRoom(size_t count, CudaTenant* tenant) {
  size_t free = free_.size(), evictable = 0, own = 0;
  for (const Leaving& leaving : leaving_) free += leaving.blocks.size();
  const bool limited = tenant != nullptr && tenant->blocks_max > 0 && tenant->blocks + count > tenant->blocks_max;
  if (free >= count && !limited) return absl::OkStatus();
  for (const CudaUserKv* user : by_use_) {
    for (const std::vector<int32_t>& blocks : user->blocks_) {
      evictable += blocks.size();
      if (user->tenant_.get() == tenant) own += blocks.size();
    }
  }
  if (limited && tenant->blocks - own + count > tenant->blocks_max) {
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", device_->ordinal(), ": ", tenant->name, ": ",
                                                     count, " pages of K/V wanted, its limit is ", tenant->blocks_max,
                                                     ", ", tenant->blocks - own, " of them in use"));
  }
  if (free + evictable < count) {
    return absl::ResourceExhaustedError(absl::StrCat("device cuda:", device_->ordinal(), ": ", count,
                                                     " pages of K/V wanted, ", free + evictable, " of ", blocks_,
                                                     " are not in use"));
  }
  while (limited && tenant->blocks + count > tenant->blocks_max) {
    const auto oldest = std::find_if(by_use_.rbegin(), by_use_.rend(),
                                     [tenant](const CudaUserKv* kv) { return kv->tenant_.get() == tenant; });
    ++stats_.evicted_by_limit;
    free += Evict(*oldest);
  }
  // With a tier below some more than needed, so that the next one need not wait for its copy.
  const size_t spare = free < count && host_ != nullptr ? static_cast<size_t>(blocks_) / kSpareShare : 0;
  while (free < count + spare && !by_use_.empty()) free += Evict(by_use_.back());
  return absl::OkStatus();
}

size_t CudaPagePool::Evict(const CudaUserKv* kv) {
  Unlist(kv);
  ++stats_.evicted_users;
  const bool leaves = CopyOut(kv);
  size_t count = 0;
  for (size_t c = 0; c < kv->blocks_.size(); ++c) {
    count += kv->blocks_[c].size();
    if (leaves) {
      leaving_.push_back({kv->leaving_, std::exchange(kv->blocks_[c], {})});
      if (kv->tenant_ != nullptr) kv->tenant_->blocks -= leaving_.back().blocks.size();
    } else {
      FreePages(kv, c, 0);
    }
    kv->rows_on_card_[c] = 0;
  }
  stats_.evicted_blocks += count;
  const bool on_host =
      std::any_of(kv->host_blocks_.begin(), kv->host_blocks_.end(), [](const auto& b) { return !b.empty(); });
  if (!on_host) return count;
  ++stats_.evicted_to_host;
  kv->host_place_ = host_by_use_.insert(host_by_use_.begin(), kv);
  kv->host_listed_ = true;
  return count;
}

// Whether copies to the host were enqueued: pages that the host has already are left there.
bool CudaPagePool::CopyOut(const CudaUserKv* kv) {
  if (host_ == nullptr) return false;
  size_t wanted = 0;
  bool any = false;
  for (size_t c = 0; c < kv->blocks_.size(); ++c) {
    if (kv->rows_on_card_[c] <= kv->rows_on_host_[c]) continue;
    any = true;
    const size_t pages = PagesOf(kv->rows_on_card_[c]), have = kv->host_blocks_[c].size();
    wanted += pages - std::min(pages, have);
  }
  if (!any || !MakeHostRoom(wanted)) return false;
  std::vector<CudaHostPages::Move> moves;
  for (size_t c = 0; c < kv->blocks_.size(); ++c) {
    const size_t rows = kv->rows_on_card_[c], have = kv->rows_on_host_[c], pages = PagesOf(rows);
    if (rows <= have) continue;
    std::vector<int32_t>& blocks = kv->host_blocks_[c];
    const std::vector<int32_t> more = host_->Take(pages - std::min(pages, blocks.size()));
    blocks.insert(blocks.end(), more.begin(), more.end());
    for (size_t p = have / kPageRows; p < pages; ++p) moves.push_back({kv->blocks_[c][p], blocks[p]});
    kv->rows_on_host_[c] = rows;
  }
  auto copy = host_->ToHost(moves, kv->arriving_.get());
  if (!copy.ok()) {
    DropHostPages(kv);
    return false;
  }
  kv->leaving_ = *std::move(copy);
  return true;
}

bool CudaPagePool::MakeHostRoom(size_t count) {
  size_t evictable = host_->free();
  const auto size = [](const CudaUserKv* kv) {
    size_t blocks = 0;
    for (const std::vector<int32_t>& channel : kv->host_blocks_) blocks += channel.size();
    return blocks;
  };
  if (evictable >= count) return true;
  for (const CudaUserKv* kv : host_by_use_) evictable += size(kv);
  if (evictable < count) return false;
  // First those whose pages are on the card as well, then whoever is out of use longest.
  for (const bool only_doubles : {true, false}) {
    for (auto it = host_by_use_.end(); it != host_by_use_.begin() && host_->free() < count;) {
      const CudaUserKv* kv = *--it;
      if (only_doubles && !(kv->listed_ && kv->rows_on_card_ >= kv->rows_on_host_)) continue;
      it = std::next(it);
      ++stats_.host_evicted_users;
      stats_.host_evicted_blocks += size(kv);
      DropHostPages(kv);
    }
  }
  return true;
}

void CudaPagePool::DropHostPages(const CudaUserKv* kv) {
  if (std::exchange(kv->host_listed_, false)) host_by_use_.erase(kv->host_place_);
  for (size_t c = 0; c < kv->host_blocks_.size(); ++c) {
    if (host_ != nullptr) host_->Free(kv->host_blocks_[c], kv->arriving_);
    kv->host_blocks_[c].clear();
    kv->rows_on_host_[c] = 0;
  }
}

void CudaPagePool::FreePages(const CudaUserKv* kv, size_t channel, size_t from_page) {
  std::vector<int32_t>& blocks = kv->blocks_[channel];
  if (blocks.size() <= from_page) return;
  std::vector<int32_t> gone(blocks.begin() + static_cast<ptrdiff_t>(from_page), blocks.end());
  blocks.resize(from_page);
  if (kv->tenant_ != nullptr) kv->tenant_->blocks -= gone.size();
  if (kv->arriving_ != nullptr && !kv->arriving_->Done()) {
    leaving_.push_back({kv->arriving_, std::move(gone)});
  } else {
    free_.insert(free_.end(), gone.begin(), gone.end());
  }
}

void CudaPagePool::Reap() {
  std::erase_if(leaving_, [this](const Leaving& leaving) {
    if (!leaving.copy->Done()) return false;
    free_.insert(free_.end(), leaving.blocks.begin(), leaving.blocks.end());
    return true;
  });
  while (!to_card_.empty() && to_card_.front()->Done()) {
    stats_.copy_expected_s += to_card_.front()->expected_seconds;
    stats_.copy_s += to_card_.front()->Seconds();
    to_card_.pop_front();
  }
}

void CudaPagePool::Free(std::span<const int32_t> blocks) {
  std::lock_guard lock(mutex_);
  free_.insert(free_.end(), blocks.begin(), blocks.end());
}

void CudaPagePool::Forget(CudaUserKv* kv) {
  std::lock_guard lock(mutex_);
  assert(kv->pins_ == 0);
  Unlist(kv);
  for (size_t c = 0; c < kv->blocks_.size(); ++c) FreePages(kv, c, 0);
  DropHostPages(kv);
}

void CudaPagePool::Truncate(const CudaUserKv* kv, size_t channel, size_t rows) {
  std::lock_guard lock(mutex_);
  // The page that is cut is computed again, so that nothing stands behind its last row.
  for (size_t* there : {&kv->rows_on_card_[channel], &kv->rows_on_host_[channel]}) {
    if (rows < *there) *there = rows / kPageRows * kPageRows;
  }
}

absl::Status CudaPagePool::Clear() {
  std::vector<std::shared_ptr<CudaCopy>> copies;
  {
    std::lock_guard lock(mutex_);
    while (!by_use_.empty()) Evict(by_use_.back());
    for (const Leaving& leaving : leaving_) copies.push_back(leaving.copy);
  }
  for (const std::shared_ptr<CudaCopy>& copy : copies) {
    if (absl::Status status = copy->Wait(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

void CudaPagePool::SetCopyCost(const CopyCost& cost) {
  std::lock_guard lock(mutex_);
  copy_cost_ = cost;
}

CopyCost CudaPagePool::copy_cost() const {
  std::lock_guard lock(mutex_);
  return copy_cost_;
}

CudaPagePool::Stats CudaPagePool::GetStats() const {
  std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.users = by_use_.size();
  stats.blocks_used = stats.blocks - free_.size();
  for (const Leaving& leaving : leaving_) stats.blocks_used -= leaving.blocks.size();
  if (host_ != nullptr) stats.host_blocks_used = host_->blocks() - host_->free();
  return stats;
}

}  // namespace backstory::grab
