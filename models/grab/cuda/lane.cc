#include "models/grab/cuda/lane.h"

#include <cuda_runtime.h>

#include <cstring>

namespace backstory::grab {

absl::StatusOr<std::unique_ptr<CudaLane>> Lane::Create(const CudaWidths& w, CudaDevice* device) {
  auto lane = std::make_unique<Lane>();
  const auto size = [](int n) { return static_cast<size_t>(n); };
  const size_t rows = CudaNetwork::kRowsMax, all = rows * size(w.channels);
  const size_t input_bytes = Inputs::kRowsAt + rows * size(w.stride) * sizeof(float);
  size_t bytes = 0;
  std::vector<std::pair<void**, size_t>> places;
  const auto place = [&](auto** to, size_t count, size_t element) {
    places.emplace_back(reinterpret_cast<void**>(to), bytes);
    bytes += (count * element + 1023) / 1024 * 1024;
  };
  place(&lane->card.data, input_bytes, 1);
  place(&lane->x, all * size(w.stride), 4);
  place(&lane->z, all * size(w.stride), 2);
  place(&lane->inner, w.latent > 0 ? all * size(w.inner) : 0, 2);
  place(&lane->qkv, all * size(3 * w.wide), 2);
  place(&lane->bias, all * size(w.heads * w.segments), 4);
  place(&lane->attended, all * size(w.wide), 2);
  place(&lane->ffn, all * size(w.ffn), 2);
  place(&lane->concat, all * size(w.stride), 2);
  place(&lane->hidden, rows * size(w.hidden), 4);
  place(&lane->parts, kPartBytes, 1);
  place(&lane->counters, kCounterBytes, 1);
  place(&lane->workspace_, CudaGemmLibrary::kWorkspaceBytes, 1);
  place(&lane->side_workspace, CudaGemmLibrary::kWorkspaceBytes, 1);
  auto memory = device->Allocate(bytes, "a scoring lane");
  if (!memory.ok()) return memory.status();
  lane->memory_ = *std::move(memory);
  for (const auto& [to, at] : places) *to = lane->memory_.as<char>(at);
  auto pinned = device->Allocate(input_bytes, "a scoring lane's inputs", CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  lane->pinned_ = *std::move(pinned);
  lane->host.data = lane->pinned_.as<char>();
  std::memset(lane->host.data, 0, input_bytes);
  auto logits = device->Allocate(rows * size(w.tasks) * sizeof(float), "scores", CudaBuffer::Place::kPinned);
  if (!logits.ok()) return logits.status();
  lane->logits_ = *std::move(logits);
  const auto check = [&](cudaError_t error) { return device->Check(error, "making a scoring lane"); };
  // All of it: rows beyond a launch's, and pieces that no launch has written, are read as padding.
  for (cudaError_t error : {cudaMemset(lane->memory_.data(), 0, bytes),
                            cudaStreamCreateWithFlags(&lane->cuda_stream, cudaStreamNonBlocking),
                            cudaStreamCreateWithFlags(&lane->side_stream, cudaStreamNonBlocking),
                            cudaEventCreateWithFlags(&lane->fork, cudaEventDisableTiming),
                            cudaEventCreateWithFlags(&lane->join, cudaEventDisableTiming), cudaDeviceSynchronize()}) {
    if (absl::Status status = check(error); !status.ok()) return status;
  }
  return lane;
}

Lane::~Lane() {
  for (auto& [rows, program] : programs) {
    if (program.graph != nullptr) static_cast<void>(cudaGraphExecDestroy(program.graph));
  }
  for (cudaStream_t stream : {cuda_stream, side_stream}) {
    if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
  }
  for (cudaEvent_t event : {fork, join}) {
    if (event != nullptr) static_cast<void>(cudaEventDestroy(event));
  }
}

}  // namespace backstory::grab
