#include "models/grab/cuda/host_pages.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory::grab {

absl::StatusOr<std::shared_ptr<CudaCopy>> CudaCopy::Create(CudaDevice* device) {
  auto copy = std::shared_ptr<CudaCopy>(new CudaCopy(device));
  for (cudaEvent_t* event : {&copy->begin_, &copy->end_}) {
    if (absl::Status s = device->Check(cudaEventCreate(event), "a copy's event"); !s.ok()) return s;
  }
  return copy;
}

CudaCopy::~CudaCopy() {
  for (cudaEvent_t event : {begin_, end_}) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }
}

bool CudaCopy::Done() {
  if (done_) return true;
  const cudaError_t state = cudaEventQuery(end_);
  if (state == cudaErrorNotReady) return false;
  static_cast<void>(device_->Check(state, "copying K/V pages"));
  done_ = true;
  return true;
}

absl::Status CudaCopy::Wait() {
  if (done_) return device_->health();
  const absl::Status status = device_->Check(cudaEventSynchronize(end_), "copying K/V pages");
  done_ = true;
  return status;
}

absl::Status CudaCopy::Before(CUstream_st* stream) {
  if (done_) return absl::OkStatus();
  return device_->Check(cudaStreamWaitEvent(stream, end_), "copying K/V pages");
}

double CudaCopy::Seconds() const {
  float ms = 0;
  return cudaEventElapsedTime(&ms, begin_, end_) == cudaSuccess ? ms * 1e-3 : 0;
}

absl::StatusOr<std::unique_ptr<CudaHostPages>> CudaHostPages::Create(std::shared_ptr<CudaDevice> device,
                                                                     size_t block_bytes, size_t bytes, void* card,
                                                                     size_t card_blocks) {
  auto pages = std::unique_ptr<CudaHostPages>(new CudaHostPages(std::move(device)));
  if (absl::Status status = pages->Open(block_bytes, bytes, card, card_blocks); !status.ok()) return status;
  return pages;
}

absl::Status CudaHostPages::Open(size_t block_bytes, size_t bytes, void* card, size_t card_blocks) {
  block_bytes_ = block_bytes;
  blocks_ = std::min(bytes / block_bytes, size_t{1} << 30);
  if (blocks_ == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(bytes, " bytes of host memory for K/V hold no page of ", block_bytes));
  }
  auto memory = device_->Allocate(blocks_ * block_bytes, "K/V pages in host memory", CudaBuffer::Place::kPinned);
  if (!memory.ok()) return memory.status();
  memory_ = *std::move(memory);
  card_ = static_cast<char*>(card);
  for (size_t block = blocks_; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
  for (CUstream_st** stream : {&in_, &out_}) {
    if (absl::Status s = device_->Check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "a copy stream");
        !s.ok()) {
      return s;
    }
  }
  return Probe(card_blocks);
}

CudaHostPages::~CudaHostPages() {
  for (cudaStream_t stream : {in_, out_}) {
    if (stream == nullptr) continue;
    static_cast<void>(cudaStreamSynchronize(stream));  // its memory is about to go
    static_cast<void>(cudaStreamDestroy(stream));
  }
}

// The best of a few: what a copy costs when nothing else is on the way.
absl::Status CudaHostPages::Probe(size_t card_blocks) {
  constexpr size_t kLargest = 64;
  constexpr int kRepeats = 4;
  std::vector<CopySample> samples;
  const size_t most = std::min({blocks_, card_blocks, kLargest});
  for (const size_t count : {size_t{1}, std::min<size_t>(most, 8), most}) {
    std::vector<Move> moves;
    for (size_t i = 0; i < count; ++i) moves.push_back({static_cast<int32_t>(i), static_cast<int32_t>(i)});
    double best = 0;
    for (int i = 0; i < kRepeats; ++i) {
      auto copy = ToCard(moves, nullptr);
      if (!copy.ok()) return copy.status();
      if (absl::Status status = (*copy)->Wait(); !status.ok()) return status;
      if (i == 0 || (*copy)->Seconds() < best) best = (*copy)->Seconds();
    }
    if (best > 0 && (samples.empty() || samples.back().bytes < static_cast<double>(count * block_bytes_))) {
      samples.push_back({static_cast<double>(count * block_bytes_), best});
    }
  }
  cost_ = FitCopy(samples);
  return absl::OkStatus();
}

std::vector<int32_t> CudaHostPages::Take(size_t count) {
  assert(count <= free_.size());
  std::vector<int32_t> taken(free_.end() - static_cast<ptrdiff_t>(count), free_.end());
  free_.resize(free_.size() - count);
  return taken;
}

void CudaHostPages::Free(std::span<const int32_t> blocks, std::shared_ptr<CudaCopy> reader) {
  free_.insert(free_.end(), blocks.begin(), blocks.end());
  if (reader != nullptr && !blocks.empty()) readers_.push_back(std::move(reader));
}

absl::StatusOr<std::shared_ptr<CudaCopy>> CudaHostPages::ToCard(std::span<const Move> moves, CudaCopy* after) {
  auto copy = Enqueue(moves, after, true);
  if (copy.ok()) (*copy)->expected_seconds = cost_.Seconds((*copy)->bytes);
  return copy;
}

absl::StatusOr<std::shared_ptr<CudaCopy>> CudaHostPages::ToHost(std::span<const Move> moves, CudaCopy* after) {
  for (const std::shared_ptr<CudaCopy>& reader : std::exchange(readers_, {})) {
    if (absl::Status status = reader->Before(out_); !status.ok()) return status;
  }
  return Enqueue(moves, after, false);
}

// One call for all: block by block costs 6 us each, a third of the rate at 256 KiB a block (H100).
int CudaHostPages::CopyBlocks(std::span<const Move> moves, bool to_card, CUstream_st* stream) const {
  const auto card = [&](const Move& move) { return card_ + static_cast<size_t>(move.card) * block_bytes_; };
  const auto host = [&](const Move& move) { return memory_.as<char>(static_cast<size_t>(move.host) * block_bytes_); };
#if CUDART_VERSION >= 13000
  if (moves.empty()) return cudaSuccess;
  std::vector<const void*> from;
  std::vector<void*> to;
  for (const Move& move : moves) {
    from.push_back(to_card ? host(move) : card(move));
    to.push_back(to_card ? card(move) : host(move));
  }
  const std::vector<size_t> bytes(moves.size(), block_bytes_);
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
  return cudaMemcpyBatchAsync(to.data(), from.data(), bytes.data(), bytes.size(), &attributes, &first, 1, stream);
#else
  for (const Move& move : moves) {
    const cudaError_t error =
        cudaMemcpyAsync(to_card ? card(move) : host(move), to_card ? host(move) : card(move), block_bytes_,
                        to_card ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
#endif
}

absl::StatusOr<std::shared_ptr<CudaCopy>> CudaHostPages::Enqueue(std::span<const Move> moves, CudaCopy* after,
                                                                 bool to_card) {
  if (absl::Status status = device_->Select(); !status.ok()) return status;
  auto copy = CudaCopy::Create(device_.get());
  if (!copy.ok()) return copy.status();
  const cudaStream_t stream = to_card ? in_ : out_;
  if (after != nullptr) {
    if (absl::Status status = after->Before(stream); !status.ok()) return status;
  }
  const auto check = [&](int error) { return device_->Check(error, "copying K/V pages"); };
  if (absl::Status status = check(cudaEventRecord((*copy)->begin_, stream)); !status.ok()) return status;
  if (absl::Status status = check(CopyBlocks(moves, to_card, stream)); !status.ok()) {
    static_cast<void>(cudaStreamSynchronize(stream));  // the caller takes the blocks back
    return status;
  }
  if (absl::Status status = check(cudaEventRecord((*copy)->end_, stream)); !status.ok()) return status;
  (*copy)->bytes = static_cast<double>(moves.size() * block_bytes_);
  return copy;
}

}  // namespace backstory::grab
