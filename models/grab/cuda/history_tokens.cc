#include "models/grab/cuda/history_tokens.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "models/grab/cuda/network.h"
#include "models/grab/cuda/tokens.h"

namespace backstory::grab {
namespace {

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

class HistoryTokens final : public CudaHistoryTokens {
 public:
  HistoryTokens(const Config& config, int stride, std::shared_ptr<CudaDevice> device)
      : stride_(static_cast<size_t>(stride)),
        no_user_{.product = std::vector<float>(static_cast<size_t>(config.gate_mlp_hidden + config.d))},
        device_(std::move(device)) {}
  ~HistoryTokens() override {
    if (stream_ == nullptr) return;
    static_cast<void>(cudaStreamSynchronize(stream_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }

  absl::Status Open(const Config& config, const TensorMap& tensors, size_t table_bytes_max,
                    std::shared_ptr<CudaGemmLibrary> gemms) {
    auto tokens = CudaTokens::Load(config, tensors, static_cast<int>(stride_), table_bytes_max, device_,
                                   std::move(gemms), CudaTokenView::kHistory);
    if (!tokens.ok()) return tokens.status();
    tokens_ = *std::move(tokens);
    auto lane = tokens_->NewLane(kRows);
    if (!lane.ok()) return lane.status();
    lane_ = *std::move(lane);
    auto memory =
        device_->Allocate(kRows * stride_ * sizeof(float) + CudaGemmLibrary::kWorkspaceBytes, "history's token rows");
    if (!memory.ok()) return memory.status();
    memory_ = *std::move(memory);
    return Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }

  absl::Status Run(const TokenColumns& tokens, size_t first, size_t count, float* out) override {
    float* const rows = memory_.as<float>(CudaGemmLibrary::kWorkspaceBytes);
    for (size_t at = 0; at < count; at += kRows) {
      const size_t some = std::min(kRows, count - at);
      const CudaTokenSlice slice{.item = &tokens, .first = first + at, .count = some, .row = 0, .user = &no_user_};
      const int padded = CudaNetwork::Bucket(static_cast<int>(some));
      RETURN_IF_ERROR(tokens_->Run({&slice, 1}, padded, lane_.get(), rows, memory_.data(), stream_));
      RETURN_IF_ERROR(Check(
          cudaMemcpyAsync(out + at * stride_, rows, some * stride_ * sizeof(float), cudaMemcpyDeviceToHost, stream_)));
      RETURN_IF_ERROR(Check(cudaStreamSynchronize(stream_)));
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kRows = CudaNetwork::kRowsMax;
  absl::Status Check(cudaError_t error) { return device_->Check(error, "history's token rows"); }

  const size_t stride_;
  const TokenNet::UserPart no_user_;
  const std::shared_ptr<CudaDevice> device_;
  std::unique_ptr<CudaTokens> tokens_;
  std::unique_ptr<CudaTokenLane> lane_;
  CudaBuffer memory_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaHistoryTokens>> CudaHistoryTokens::Create(const Config& config,
                                                                             const TensorMap& tensors, int stride,
                                                                             size_t table_bytes_max,
                                                                             std::shared_ptr<CudaDevice> device,
                                                                             std::shared_ptr<CudaGemmLibrary> gemms) {
  auto tokens = std::make_unique<HistoryTokens>(config, stride, std::move(device));
  if (absl::Status status = tokens->Open(config, tensors, table_bytes_max, std::move(gemms)); !status.ok()) {
    return status;
  }
  return tokens;
}

}  // namespace backstory::grab
