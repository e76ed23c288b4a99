// The GLASS network on a CPU: encodes a user's short window once, then decodes semantic IDs against it. Start here in
// models/glass. Source: arXiv 2602.05663; every convention is fixed by tests/conformance/glass/README.md.
//
//   memory = encoder([tier token ; short tokens])                       once per user and history
//   step s: x = decoder(BOS or token; self K/V of earlier steps, memory K/V, retrieved set of the beam's first code)
//   logits = x . token_embedding
//
// Attention to memory and to retrieved sets runs on kernels/attend. K and V of a retrieved token are constants of the
// weights, and attention over a set is attention over its distinct tokens with bias ln(count), so that nothing of a
// search is ever projected: its tokens' rows stand in pages made at load.
#ifndef BACKSTORY_MODELS_GLASS_NETWORK_H_
#define BACKSTORY_MODELS_GLASS_NETWORK_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/aligned.h"
#include "kernels/attend.h"
#include "kernels/dtype.h"
#include "kernels/page.h"
#include "kernels/thread_pool.h"
#include "models/glass/config.h"
#include "models/glass/weights.h"
#include "models/tensor_map.h"

namespace backstory::glass {

// Bucket of key slot - query slot, bidirectional (T5).
int RelativeBucket(int distance, int buckets, int distance_max);

// One user's encoded short window, ready for decoding. Immutable once made; shared by beams, requests and threads.
struct Memory {
  size_t rows = 0;              // visible slots
  std::vector<uint32_t> slots;  // [rows] ascending
  AlignedFloats states;         // [rows][d] after the final norm
  std::vector<Page> pages;      // [decoder layer][ceil(rows / 128)]: K and V of each layer's memory attention
  size_t bytes() const;
};

// What a bucket yields, as attention reads it. Immutable.
struct RetrievedSet {
  bool empty = true;             // then the branch is a constant
  std::vector<uint32_t> pages;   // of the network's token pages; empty if gathered
  std::vector<Page> gathered;    // [decoder layer], where the tokens are spread over too many token pages
  std::vector<float> log_count;  // [pages][128]: ln(count), -inf for a token that is not in the set
  // Where each distinct token stands in log_count, ascending by token.
  struct Member {
    uint32_t token = 0, row = 0, count = 0;
  };
  std::vector<Member> members;
};

class DecoderScratchPool;

// Thread-safe.
class Network {
 public:
  // The configuration is valid. NOT_FOUND or INVALID_ARGUMENT naming the tensor. kBf16: layers multiply weights, keys
  // and values rounded to bf16 (to 2^-8) with fp32 sums; half the memory of a user, and on a machine with AVX512_BF16
  // faster.
  static absl::StatusOr<std::unique_ptr<const Network>> Create(const Config& config, const TensorMap& tensors,
                                                               Dtype precision = Dtype::kF32);

  const Config& config() const { return config_; }

  // short_tokens: at most 3 short_items, oldest first, without padding (a 0 inside is a pad that keeps its place).
  // tier [levels[0] * bins], not read without tiers. Rows are independent of `pool`, bit for bit. A user without any
  // visible slot has a memory without rows, to which attention gives zero.
  Memory Encode(std::span<const uint32_t> short_tokens, const float* tier, ThreadPool* pool) const;

  // tokens: of the retrieved items, repeats as often as they occur; pads are left out. Tokens spread over more than
  // pages_max token pages are gathered: attending to mostly hidden pages would cost more.
  static constexpr size_t kTokenPagesMax = 6;
  RetrievedSet Retrieve(std::span<const uint32_t> tokens, size_t pages_max = kTokenPagesMax) const;

  size_t bytes() const;  // token pages

 private:
  friend class Decoder;
  Network(const Config& config, Weights weights, Dtype precision);
  void MakeEncoderBias();
  void MakeTokenPages();
  void Gather(RetrievedSet* set) const;
  // Where a token's row stands: page and row. false for pad, BOS and unused ids.
  bool Place(uint32_t token, uint32_t* page, uint32_t* row) const;
  void RunEncoder(std::span<const KeyRun> runs, Memory* memory, ThreadPool* pool) const;
  void ProjectRows(const EncoderLayer& layer, size_t first, size_t rows, const Memory& memory, float* q,
                   std::vector<Page>* pages) const;
  void EncodeRows(const EncoderLayer& layer, size_t first, size_t rows, std::span<const KeyRun> runs,
                  std::span<const PageView> pages, const float* q, Memory* memory) const;
  void FinishRows(size_t first, size_t rows, Memory* memory) const;

  const Config config_;
  const Weights weights_;
  const size_t d_, inner_, slots_;
  const PageShape shape_;
  AlignedFloats encoder_bias_;  // [kRowsPerTask][heads][stride]: one row, repeated
  size_t encoder_bias_stride_ = 0;
  std::array<uint32_t, kLevels> first_page_{};
  std::vector<std::vector<Page>> token_pages_;  // [decoder layer][page]
  AlignedFloats pad_v_;                         // [decoder layer][inner]
  const std::unique_ptr<ArenaPool> arenas_ = std::make_unique<ArenaPool>();
  const std::shared_ptr<DecoderScratchPool> decoder_scratch_;
};

// RMS norm without mean: y = x / sqrt(mean(x^2) + 1e-6) * g, row by row [rows][n]. y may be x.
void RmsNorm(const float* x, size_t rows, size_t n, const float* g, float* y);
// x += w2 relu(w1 norm(x)). z [rows][n] and hidden [rows][ffn] are scratch.
void AddFfn(const FfnWeights& ffn, size_t rows, size_t n, float* z, float* hidden, float* x);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_NETWORK_H_
