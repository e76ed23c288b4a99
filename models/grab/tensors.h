// The weights a GRAB configuration calls for, by name and shape, and what they cost. One list, used by the loader to
// refuse a wrong model, by `model init-random` to make one, and by `model inspect`.
#ifndef BACKSTORY_MODELS_GRAB_TENSORS_H_
#define BACKSTORY_MODELS_GRAB_TENSORS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "models/grab/config.h"
#include "models/tensor_map.h"

namespace backstory::grab {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

// Names, for layer l, channel c, view v in {p, f} (rows are multiplied from the left: y = x W):
//   tok.table.{table} [vocab, embedding]
//   tok.{v}.ln.g .b [V]; .w1 [V, gate_mlp_hidden] .b1; .w2 [gate_mlp_hidden, d] .b2; .wg [V, d] .bg [d]
//     with V = sparse fields of the view x embedding, then dense fields
//   w.l{l}.gate.w [C*d, C] .b [C]                       only with target_mixing
//   w.l{l}.c{c}.wd [d, latent]                          only with latent > 0
//   w.l{l}.c{c}.wq .wk .wv [latent or d, heads*d_head]; .wo [heads*d_head, d]
//   w.l{l}.c{c}.w1 [d, ffn] .b1; .w2 [ffn, d] .b2; .n1.g .n1.b .n2.g .n2.b [d]
//   w.l{l}.c{c}.bpos [n_pos, d_head] .btime [n_time, d_head] .bact [n_act, d_head]
//   w.head.w1 [C*d, head_hidden] .b1; w.head.w2 [head_hidden, tasks] .b2
// `config` has passed Validate.
std::vector<TensorSpec> ExpectedTensors(const Config& config);

// Exactly the expected tensors are there. NOT_FOUND naming a missing one, INVALID_ARGUMENT naming one of another shape
// with expected and found, or one that the configuration does not call for.
absl::Status CheckTensors(const Config& config, const TensorMap& tensors);

// Width of a token before the tokenizer network: V above.
int64_t PartialWidth(const Config& config);
int64_t FullWidth(const Config& config);

// Arithmetic of the algorithm, not of an implementation; embedding sums and element-wise work are left out.
struct Costs {
  uint64_t parameters = 0;
  uint64_t table_parameters = 0;            // of them in embedding tables
  uint64_t kv_bytes_per_row = 0;            // fp32 K and V of one row of one channel, all layers
  uint64_t macs_per_appended_row = 0;       // one row of one channel, attention excluded
  uint64_t macs_per_candidate = 0;          // all channels, history attention excluded
  uint64_t macs_per_candidate_and_row = 0;  // attention of one candidate to one row of one channel, all layers
};
Costs CostsOf(const Config& config);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_TENSORS_H_
