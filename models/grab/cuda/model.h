// GRAB on a Hopper card: prefill, append and scoring. A user's state is its tokens in host memory and, while the user
// is in use, K/V pages on the card; pages that left are computed again from the tokens. So whatever happens to the
// card, the CPU can answer: it computes its own K/V from the same tokens when it is first asked.
#ifndef BACKSTORY_MODELS_GRAB_CUDA_MODEL_H_
#define BACKSTORY_MODELS_GRAB_CUDA_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "kernels/thread_pool.h"
#include "models/grab/cuda/runtime.h"
#include "models/grab/model.h"

namespace backstory::grab {

// As CreateModel, and its scores agree with that model's within the tolerance of bf16 (matrices, K/V, attention and the
// head are bf16 with fp32 sums; the residual stream, norms, gates and softmax are fp32). Within that tolerance bits
// differ: by the launch's padded number of rows (cuBLASLt picks another kernel), between appended and prefilled rows,
// and where a launch has too many ids for the card to make its token rows, so that the CPU makes them in fp32.
//
// What the card cannot do (explanations, d_head > 128) or fails at (memory, a lost context) the CPU model does, or
// Score answers UNAVAILABLE or RESOURCE_EXHAUSTED if the runtime's options say so. States of versions with one state_id
// may be exchanged only among models of one runtime.
absl::StatusOr<std::unique_ptr<Model>> CreateCudaModel(const Config& config, const TensorMap& tensors, ThreadPool* pool,
                                                       Dtype precision, std::shared_ptr<CudaRuntime> runtime);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_MODEL_H_
