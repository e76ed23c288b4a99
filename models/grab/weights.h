// The weights of GRAB's transformer, packed for the kernels once at load. Private to models/grab.
#ifndef BACKSTORY_MODELS_GRAB_WEIGHTS_H_
#define BACKSTORY_MODELS_GRAB_WEIGHTS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/aligned.h"
#include "kernels/fold.h"
#include "kernels/gemm.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

// Positions of the candidates' bias table: rank 0 (the self key) and beyond the codebook; ranks between are folded.
inline constexpr size_t kFarPositions = 2;

// One layer of one channel.
struct LayerWeights {
  std::optional<PackedMatrix> wd;  // [d, latent]
  PackedMatrix wq, wk, wv;         // [latent or d, heads * d_head], head-major
  PackedMatrix wo;                 // [heads * d_head, d]
  PackedMatrix w1, w2;             // [d, ffn], [ffn, d]
  std::vector<float> b1, b2, n1_g, n1_b, n2_g, n2_b;
  // Position codebook (last entry first) and time codebook as columns [d_head, n_pos + n_time]: a query row times it is
  // a row of kernels/attend.h's BiasTable.
  PackedMatrix bias_codes;
  // What candidates need of it beside folded pages: columns [saturated position, position 0, time...], n_pos = 2.
  PackedMatrix far_codes;
  FoldCodes fold_codes;
  std::vector<float> bact;  // [n_act, d_head]
};

struct GateWeights {
  PackedMatrix w;        // [C*d, C]
  std::vector<float> b;  // [C]
};

struct StackWeights {
  std::vector<std::vector<LayerWeights>> layers;  // [layer][channel]
  std::vector<GateWeights> gates;                 // [layer], empty without target mixing
  PackedMatrix head_w1, head_w2;                  // [C*d, head_hidden], [head_hidden, tasks]
  std::vector<float> head_b1, head_b2;

  size_t Bytes() const;
};

// The matrices of the layers and the head's first are packed as `layers`; the gates and the head's last stay fp32.
// NOT_FOUND or INVALID_ARGUMENT naming the tensor.
absl::StatusOr<StackWeights> LoadStackWeights(const Config& config, const TensorMap& tensors, Dtype layers);

// Packs / copies one tensor.
absl::StatusOr<PackedMatrix> LoadMatrix(const TensorMap& tensors, const std::string& name, int64_t k, int64_t n,
                                        Dtype dtype = Dtype::kF32);
absl::StatusOr<std::vector<float>> LoadVector(const TensorMap& tensors, const std::string& name, int64_t n);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_WEIGHTS_H_
