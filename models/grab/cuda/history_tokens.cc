#include "models/grab/cuda/history_tokens.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>

#include "models/grab/cuda/network.h"

namespace backstory::grab {

absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> CudaHistoryTokens::Load(const Config& config,
                                                                           const TensorMap& tensors, int stride,
                                                                           std::shared_ptr<CudaTokenTables> tables,
                                                                           std::shared_ptr<CudaDevice> device,
                                                                           std::shared_ptr<CudaGemmLibrary> gemms) {
  auto made = std::unique_ptr<CudaHistoryTokens>(new CudaHistoryTokens(static_cast<size_t>(stride), device));
  auto tokens = CudaTokens::Load(CudaTokens::View::kHistory, config, tensors, stride, std::move(tables), device,
                                 std::move(gemms));
  if (!tokens.ok()) return tokens.status();
  made->tokens_ = *std::move(tokens);
  auto lane = made->tokens_->NewLane(kRowsMax);
  if (!lane.ok()) return lane.status();
  made->lane_ = *std::move(lane);
  auto rows = device->Allocate(kRowsMax * made->stride_ * sizeof(float), "history's token rows");
  if (!rows.ok()) return rows.status();
  made->rows_ = *std::move(rows);
  auto workspace = device->Allocate(CudaGemmLibrary::kWorkspaceBytes, "history's token rows");
  if (!workspace.ok()) return workspace.status();
  made->workspace_ = *std::move(workspace);
  const absl::Status status =
      device->Check(cudaStreamCreateWithFlags(&made->stream_, cudaStreamNonBlocking), "history's token rows");
  if (!status.ok()) return status;
  return made;
}

CudaHistoryTokens::~CudaHistoryTokens() {
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

absl::Status CudaHistoryTokens::Run(const TokenColumns& tokens, size_t first, size_t count, float* out) {
  if (absl::Status status = device_->Select(); !status.ok()) return status;
  std::lock_guard lock(mutex_);
  for (size_t at = 0; at < count; at += kRowsMax) {
    const size_t rows = std::min(kRowsMax, count - at);
    const CudaTokenSlice slice{.item = &tokens, .first = first + at, .count = rows};
    absl::Status status = tokens_->Run({&slice, 1}, CudaNetwork::Bucket(static_cast<int>(rows)), lane_.get(),
                                       rows_.as<float>(), workspace_.data(), stream_);
    if (status.ok()) {
      status = device_->Check(cudaMemcpyAsync(out + at * stride_, rows_.data(), rows * stride_ * sizeof(float),
                                              cudaMemcpyDeviceToHost, stream_),
                              "history's token rows");
    }
    // Also after a failure: what was enqueued must not read what the next turn writes.
    const absl::Status waited = device_->Check(cudaStreamSynchronize(stream_), "history's token rows");
    if (!status.ok()) return status;
    if (!waited.ok()) return waited;
  }
  return absl::OkStatus();
}

}  // namespace backstory::grab
