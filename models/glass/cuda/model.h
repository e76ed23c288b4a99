// GLASS on a Hopper card: users in, beams out. A call copies what the card needs of its users, replays one CUDA graph
// (encoder, then three times a decoder step and a selection) and copies beams back; nothing in between waits for the
// host. The counterpart of network.h and beam_search.h, which say what is computed; explanations
// (SearchOptions::steering) come from there alone.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_MODEL_H_
#define BACKSTORY_MODELS_GLASS_CUDA_MODEL_H_

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/glass/beam_search.h"
#include "models/glass/cuda/user.h"
#include "models/glass/trie.h"
#include "models/grab/cuda/device.h"
#include "models/tensor_map.h"

namespace backstory::glass {

// kFp32: products of fp32 grade on the tensor cores; beams are those of the CPU's fp32. kBf16: weights, keys, values
// and what enters a product are rounded to bf16, sums and softmax are fp32; scores move by about 1e-2.
enum class CudaPrecision { kBf16, kFp32 };

struct CudaGlassOptions {
  CudaPrecision precision = CudaPrecision::kBf16;
  size_t beam_max = 512;  // widest search, 1..1024
  size_t users_max =
      256;  // of one launch; a call with more is searched launch by launch. 1 MB of card memory each, fp32 3 MB
  size_t rows_max = 8192;  // beams of one launch over its users, >= beam_max. About 25 KB of card memory each
  int lanes = 2;           // launches in flight; each has that memory
};

// A catalogue's trie on the card. One per catalogue version; lives as long as a request may use it.
class CudaTrie {
 public:
  // RESOURCE_EXHAUSTED, or UNAVAILABLE if the card was given up.
  static absl::StatusOr<std::shared_ptr<const CudaTrie>> Create(const Trie& trie,
                                                                std::shared_ptr<grab::CudaDevice> device);
  virtual ~CudaTrie() = default;
  virtual size_t bytes() const = 0;
};

struct CudaGlassRequest {
  const CudaUser* user = nullptr;
  size_t beam = 20;  // 1..beam_max
  SearchMode mode = SearchMode::kValid;
  const CudaTrie* trie = nullptr;  // kValid
};

struct CudaGlassReply {
  std::vector<Beam> beams;                                  // as Search gives them
  std::array<std::vector<Beam>, kLevels>* steps = nullptr;  // as SearchOptions::steps; may be null
};

// Thread-safe. What a user gets does not depend on who shares the launch, bit for bit, among launches of one layout:
// few users get more of the card each than many do, and then sums are taken in another order (lane.cc). Between layouts
// scores differ by rounding: in fp32 by about 1e-5.
class CudaGlass {
 public:
  // NOT_FOUND or INVALID_ARGUMENT naming a tensor. FAILED_PRECONDITION naming a field that the kernels are not made
  // for: d up to 96, d_kv up to 32, heads up to 8, 256 encoder slots, 16 layers. RESOURCE_EXHAUSTED: no card memory.
  static absl::StatusOr<std::unique_ptr<const CudaGlass>> Create(const Config& config, const TensorMap& tensors,
                                                                 std::shared_ptr<grab::CudaDevice> device,
                                                                 const CudaGlassOptions& options);
  virtual ~CudaGlass() = default;

  // replies [requests.size()]. INVALID_ARGUMENT naming the field of a request and its limit; UNAVAILABLE if the card
  // failed: then no reply is given.
  virtual absl::Status Search(std::span<const CudaGlassRequest> requests, std::span<CudaGlassReply> replies) const = 0;
  virtual size_t bytes() const = 0;  // card memory of weights, tables and lanes
};

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_CUDA_MODEL_H_
