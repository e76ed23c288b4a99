// The launches of a search on the card. Pointers are the card's; needs no CUDA header. Each call enqueues one kernel on
// `stream` (a cudaStream_t) and returns nullptr or a static text of what failed. Private to this folder.
//
// Widths: d is padded to kD = 32 d_pairs columns and every head to 32 dimensions with zeros, which changes no result.
#ifndef BACKSTORY_MODELS_GLASS_CUDA_KERNELS_H_
#define BACKSTORY_MODELS_GLASS_CUDA_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace backstory::glass::cuda {

// Weights on the card, one block of memory. "packed": bf16 parts in the order in which lanes read them (weights.h).
struct EncoderLayerWeights {
  const float *norm, *ffn_norm;  // [kD]
  const void *qkv, *o, *w1;      // packed by columns: [3 heads 32][kD], [kD][heads 32], [ffn][kD]
  const void* w2;                // packed by rows: [kD][ffn]
};
struct DecoderLayerWeights {
  const float *norm, *cross_norm, *ffn_norm;
  const void *qkv, *o, *w1, *w2;
  const void *memory_q, *memory_o, *retrieved_q, *retrieved_o;
  const void* gate;     // [kD][2 kD]
  const float* gate_b;  // [kD]
  // K and V of every place and, behind them, of the pad (CudaUser).
  const void *set_k, *set_vt;  // [heads] HeadKeys tables of `set_capacity` keys; null where places are many
  const float* set_rows;       // [places + 1][heads][64]: K, V; null where set_k is there
};

constexpr int kLayersMax = 16;
struct Model {
  int parts, d, d_pairs, heads, ffn, vocabulary, slots, bins_width;  // bins_width = levels[0] * bins
  int encoder_layers, decoder_layers;
  int key_capacity;          // of a user's encoder slots, a multiple of 32
  int places, set_capacity;  // set_capacity: places + 1 rounded up to 32, or 0 where places are many
  bool search, gate_reads_state;
  int levels[3], offset[3], bos;
  double first_step_epsilon;
  const float* embedding;                              // [vocabulary][kD]
  const void* head;                                    // packed by columns [vocabulary][kD]
  const float *tier_w1, *tier_b1, *tier_w2, *tier_b2;  // [d][bins_width], [d], [d][d], [d]
  const float* encoder_bias;                           // [heads][2 slots - 1]: by key slot - query slot + slots - 1
  const float* decoder_bias;                           // [heads][3]: by query - key position
  const float *encoder_norm, *decoder_norm;
  const void* memory_kv;  // packed by columns [decoder layers][2 heads 32][kD]
  EncoderLayerWeights encoder[kLayersMax];
  DecoderLayerWeights decoder[kLayersMax];
};

struct TrieArrays {
  const uint16_t* codes[3];
  const uint32_t* begin[2];
  uint32_t roots;  // nodes of level 0
};

// What a launch reads of a user. Offsets count from Batch::input.
struct UserInput {
  int32_t rows;         // visible encoder slots
  int32_t beam;         // wanted
  int32_t first_row;    // of this user's beams among the launch's rows
  int32_t mode;         // SearchMode
  uint32_t rows_at;     // [rows] EncoderRow
  uint32_t tier_at;     // [bins_width] fp32
  uint32_t begin_at;    // [levels[0] + 1] uint32
  uint32_t members_at;  // uint32
  TrieArrays trie;
};
struct EncoderRow {
  uint16_t slot;
  uint16_t is_tier;
  uint32_t token;
};
// Which beams a cluster decodes: up to 16 or 32 (Layout) of one user, or nothing (user < 0).
struct Group {
  int32_t user, first;  // beam
};

// One beam after a step. parent: of the step before.
struct Step {
  float score;
  uint32_t token, node;
  uint16_t parent, first_code;
};

struct Batch {
  int users, groups;  // of the launch's grid: those beyond what there is have rows < 0 and user < 0
  const char* input;
  const UserInput* user;  // [users]
  const Group* group;     // [groups]
  // Scratch. Keys: HeadKeys of every user, layer and head; encoder layers first.
  void *keys, *values;
  float* self_kv;  // [decoder layer][position][rows_max][heads][64]
  float* logits;   // [rows_max][vocabulary padded to 8]
  float* lse;      // [rows_max]
  Step* steps;     // [3][rows_max]
  int32_t* live;   // [3][users]: beams after a step
  int rows_max;
};

// Memory of one user in `keys` and in `values`, in elements of bf16.
inline size_t KeyElements(const Model& m) {
  return static_cast<size_t>(m.encoder_layers + m.decoder_layers) * static_cast<size_t>(m.heads) *
         static_cast<size_t>(m.parts) * static_cast<size_t>(m.key_capacity) * 32;
}

// How a launch is laid out. Few users: more blocks for each, for time; many: fewer, for throughput. Three parts take
// tiles of 16 rows alone.
struct Layout {
  int encode_rows = 16;  // of a block, 16 or 32
  int group_rows = 16;   // of a cluster that decodes, 16 or 32
  int cluster = 8;       // its blocks: 2, 4 or 8
};
// Shared memory of a decoder's block, at most.
size_t StepBytes(const Model& model);
constexpr size_t kSharedMax = 227 * 1024;

// Encoder, and K and V of its output for every decoder layer.
const char* LaunchEncode(const Model& model, const Batch& batch, const Layout& layout, void* stream);
// Logits and their log-sum-exp of one position.
const char* LaunchStep(const Model& model, const Batch& batch, const Layout& layout, int step, void* stream);
// The best continuations of every user's beams.
const char* LaunchSelect(const Model& model, const Batch& batch, int step, void* stream);

}  // namespace backstory::glass::cuda

#endif  // BACKSTORY_MODELS_GLASS_CUDA_KERNELS_H_
