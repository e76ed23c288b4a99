// GLASS's tensors as the forward pass reads them: matrices packed, tables derived once. Internal to models/glass.
#ifndef BACKSTORY_MODELS_GLASS_WEIGHTS_H_
#define BACKSTORY_MODELS_GLASS_WEIGHTS_H_

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/aligned.h"
#include "kernels/dtype.h"
#include "kernels/gemm.h"
#include "models/glass/config.h"
#include "models/tensor_map.h"

namespace backstory::glass {

struct FfnWeights {
  AlignedFloats norm;   // [d]
  PackedMatrix w1, w2;  // d -> ffn -> d
};

struct EncoderLayer {
  AlignedFloats norm;  // [d]
  PackedMatrix q;      // d -> inner
  PackedMatrix kv;     // d -> 2 inner, keys first
  PackedMatrix o;      // inner -> d
  FfnWeights ffn;
};

struct DecoderLayer {
  AlignedFloats norm, cross_norm;  // [d]
  PackedMatrix q, kv, o;           // self-attention
  PackedMatrix memory_q, memory_kv, memory_o;
  PackedMatrix retrieved_q, retrieved_kv, retrieved_o;  // empty without a search, as the gate
  PackedMatrix gate;     // 2 d -> d: state or memory branch first, then the retrieved branch
  AlignedFloats gate_b;  // [d]
  FfnWeights ffn;
};

struct Weights {
  AlignedFloats embedding;                   // [vocabulary][d]
  PackedMatrix head;                         // d -> vocabulary: the embedding, transposed
  PackedMatrix tier1, tier2;                 // levels[0] * bins -> d -> d
  AlignedFloats tier_b1, tier_b2;            // [d]
  PackedMatrix retrieved;                    // d -> d
  AlignedFloats retrieved_b;                 // [d]
  AlignedFloats encoder_bias;                // [relative_buckets][heads]
  AlignedFloats decoder_bias;                // [relative_buckets][heads]
  AlignedFloats encoder_norm, decoder_norm;  // [d]
  std::vector<EncoderLayer> encoder;
  std::vector<DecoderLayer> decoder;
};

// Layers' matrices and the head are stored as `precision`; what makes tokens (embedding, tiers, retrieved) as fp32.
// Names and shapes: tests/conformance/glass/README.md, `models/training/glass/config.py: weight_shapes`. NOT_FOUND or
// INVALID_ARGUMENT naming the tensor.
absl::StatusOr<Weights> LoadWeights(const Config& config, const TensorMap& tensors, Dtype precision = Dtype::kF32);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_WEIGHTS_H_
