#include "models/grab/cuda/history_tokens.h"

#include <cuda_runtime.h>

#include <cassert>
#include <utility>

#include "models/grab/cuda/network.h"

namespace backstory::grab {

CudaHistoryTokens::Lane::~Lane() {
  for (Set& set : sets_) {
    if (set.done != nullptr) static_cast<void>(cudaEventDestroy(set.done));
  }
}

absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> CudaHistoryTokens::Load(const Config& config,
                                                                           const TensorMap& tensors, int stride,
                                                                           std::shared_ptr<CudaTokenTables> tables,
                                                                           std::shared_ptr<CudaDevice> device,
                                                                           std::shared_ptr<CudaGemmLibrary> gemms) {
  auto made = std::unique_ptr<CudaHistoryTokens>(new CudaHistoryTokens(device));
  auto tokens = CudaTokens::Load(CudaTokens::View::kHistory, config, tensors, stride, std::move(tables),
                                 std::move(device), std::move(gemms));
  if (!tokens.ok()) return tokens.status();
  made->tokens_ = *std::move(tokens);
  return made;
}

absl::StatusOr<std::unique_ptr<CudaHistoryTokens::Lane>> CudaHistoryTokens::NewLane() const {
  auto lane = std::make_unique<Lane>();
  for (Lane::Set& set : lane->sets_) {
    auto memory = tokens_->NewLane(kRowsMax);
    if (!memory.ok()) return memory.status();
    set.memory = *std::move(memory);
    const absl::Status status =
        device_->Check(cudaEventCreateWithFlags(&set.done, cudaEventDisableTiming), "history's token rows");
    if (!status.ok()) return status;
  }
  return lane;
}

absl::Status CudaHistoryTokens::Run(const TokenColumns& tokens, size_t first, size_t count, Lane* lane, float* out,
                                    void* workspace, void* stream) const {
  assert(count <= kRowsMax);
  Lane::Set& set = lane->sets_[lane->next_++ % std::size(lane->sets_)];
  absl::Status status = device_->Check(cudaEventSynchronize(set.done), "history's token rows");
  if (!status.ok()) return status;
  const CudaTokenSlice slice{.item = &tokens, .first = first, .count = count};
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  status =
      tokens_->Run({&slice, 1}, CudaNetwork::Bucket(static_cast<int>(count)), set.memory.get(), out, workspace, stream);
  if (status.ok()) status = device_->Check(cudaEventRecord(set.done, cuda_stream), "history's token rows");
  if (!status.ok()) static_cast<void>(cudaStreamSynchronize(cuda_stream));
  return status;
}

}  // namespace backstory::grab
