#include "models/grab/cuda/lane.h"

#include <cuda_runtime.h>

#include <cstring>

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

namespace backstory::grab {

absl::StatusOr<Lane::Products> Lane::MakeProducts(const CudaWidths& w, int rows,
                                                  const std::shared_ptr<CudaGemmLibrary>& library) {
  Lane::Products program;
  const auto make = [&](std::unique_ptr<CudaGemm>* to, int n, int k, int ldx, CudaGemmShape rest) -> absl::Status {
    CudaGemmShape shape = rest;
    shape.m = rows, shape.n = n, shape.k = k, shape.ldx = ldx, shape.ldy = n;
    shape.batch = w.channels;
    shape.x_stride = int64_t{rows} * ldx, shape.y_stride = int64_t{rows} * n, shape.w_stride = int64_t{n} * k;
    shape.bias_stride = n;
    auto gemm = CudaGemm::Create(library, shape);
    if (gemm.ok()) *to = *std::move(gemm);
    return gemm.status();
  };
  if (w.latent > 0) RETURN_IF_ERROR(make(&program.latent, w.inner, w.stride, w.stride, {}));
  RETURN_IF_ERROR(make(&program.qkv, 3 * w.wide, w.inner, w.inner, {.bias = true}));
  RETURN_IF_ERROR(make(&program.out, w.stride, w.wide, w.wide, {.output_is_float = true, .add_to_output = true}));
  RETURN_IF_ERROR(make(&program.ffn1, w.ffn, w.stride, w.stride, {.bias = true, .relu = true}));
  RETURN_IF_ERROR(
      make(&program.ffn2, w.stride, w.ffn, w.ffn, {.output_is_float = true, .add_to_output = true, .bias = true}));
  // Segments' biases lie as [channel][head][segment][row]: the weights are the rows, the candidates the columns.
  CudaGemmShape bias{.m = w.heads * w.segments,
                     .n = rows,
                     .k = w.inner,
                     .batch = w.channels,
                     .ldx = w.inner,
                     .ldy = rows,
                     .output_is_float = true};
  bias.x_stride = int64_t{bias.m} * w.inner, bias.w_stride = int64_t{rows} * w.inner;
  bias.y_stride = int64_t{bias.m} * rows;
  auto bias_gemm = CudaGemm::Create(library, bias);
  if (!bias_gemm.ok()) return bias_gemm.status();
  program.bias = *std::move(bias_gemm);
  const int concat = w.channels * w.stride;
  auto head = CudaGemm::Create(library, {.m = rows,
                                         .n = w.hidden,
                                         .k = concat,
                                         .ldx = concat,
                                         .ldy = w.hidden,
                                         .output_is_float = true,
                                         .bias = true,
                                         .relu = true});
  if (!head.ok()) return head.status();
  program.head = *std::move(head);
  return program;
}

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
