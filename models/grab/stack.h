// The transformer of GRAB between the tokenizer network and the logit: rows of width d in, K/V or logits out.
// model.h is the public face; conformance tests come in here.
#ifndef BACKSTORY_MODELS_GRAB_STACK_H_
#define BACKSTORY_MODELS_GRAB_STACK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/aligned.h"
#include "kernels/thread_pool.h"
#include "models/grab/config.h"
#include "models/grab/key_runs.h"
#include "models/grab/user_kv.h"
#include "models/grab/weights.h"

namespace backstory::grab {

// Rows of one channel to append, oldest first. x is overwritten by the rows' states on their way through the layers.
struct HistoryRows {
  float* x = nullptr;  // [rows][d]
  RowFacts facts;
  std::span<const int32_t> action;
};

// What a test wants to see of one scoring call, per channel. Empty vectors are filled.
struct ScoreTrace {
  std::vector<std::vector<float>> attend;  // layer 0: [M][heads][d_head] before the output projection
  std::vector<std::vector<float>> lse;     // layer 0: [M][heads]
  std::vector<std::vector<float>> final;   // last layer: [M][d]
};

// Candidates of one segment as rows of width d; the same rows enter every channel.
struct CandidateRows {
  const float* x = nullptr;  // [rows][d]
  size_t rows = 0;
  int64_t now_us = 0;
  int64_t tie = -1;
  const CpuUserKv* kv = nullptr;         // may be null: empty history
  std::span<const size_t> visible_rows;  // as in ScoreSegment
  std::span<const size_t> first_row;     // as in ScoreSegment
  float* logits = nullptr;               // [rows][tasks]
  int explain_top = 0;
  std::vector<Attribution>* attributions = nullptr;  // [rows], if explain_top > 0
  ScoreTrace* trace = nullptr;
};

// Immutable, thread-safe. Bits of a row depend on its own inputs and visible rows alone (kernels/attend.h, gemm.h).
class Stack {
 public:
  // `dtype` is what K/V pages and the layers' matrices are stored in.
  static absl::StatusOr<Stack> Load(const Config& config, const TensorMap& tensors, Dtype dtype = Dtype::kF32);

  const Config& config() const { return config_; }
  PageShape page_shape() const;
  size_t Bytes() const { return weights_.Bytes(); }

  // Appends channels[c] to channel c of kv. The last layer computes K/V only, unless `all_layers`: then channels[c].x
  // ends as the final rows. Actions are < n_act - 1, times non-decreasing and not before the last row's.
  void Append(std::span<const HistoryRows> channels, bool all_layers, ThreadPool* pool, CpuUserKv* kv) const;

  // What all blocks of one segment share: who is visible, and the pages.
  struct Visibility {
    std::vector<std::vector<KeyRun>> runs;  // [channel]
    // The same with pages from first_folded on, the newest whose rows' positions differ, marked as FOLDED.
    std::vector<std::vector<KeyRun>> far_runs;              // [channel]
    std::vector<size_t> first_folded;                       // [channel]
    std::vector<std::vector<std::vector<PageView>>> pages;  // [channel][layer]
  };
  Visibility VisibilityOf(const CandidateRows& candidates) const;

  // Scores candidates [first, first + count); any split gives the same bits.
  void ScoreBlock(const CandidateRows& candidates, const Visibility& visibility, size_t first, size_t count) const;
  // All of them, split over the pool.
  void Score(const CandidateRows& candidates, ThreadPool* pool) const;

  // How many of `rows` candidates should share one pass over the history: all threads busy, working memory bounded.
  static size_t BlockRows(size_t rows, const ThreadPool* pool);

 private:
  Stack(const Config& config, Dtype dtype);

  struct Block;
  void MixTargets(size_t layer, Block* block) const;
  void CandidateLayer(size_t layer, size_t channel, Block* block) const;
  void Explain(const AttendArgs& attend, size_t channel, Block* block) const;
  void Head(Block* block) const;

  struct Tile;
  void WriteKv(size_t layer, const Tile& tile, CpuUserKv* kv) const;
  void HistoryLayer(size_t layer, const Tile& tile, std::span<const PageView> pages) const;

  // Pages as candidates see them: the newest with their bias folded in, at scratch->folded.
  void FoldNewest(size_t layer, size_t channel, Block* block) const;

  // Shared by history and candidates. `inner` is z after the pre-norm and the latent projection where configured.
  struct Scratch;
  const float* Inner(const LayerWeights& w, const float* x, size_t rows, Scratch* scratch) const;
  // The bias table of the queries at scratch->q, as far as ranks up to `max_rank` read it.
  void BiasTableOf(const LayerWeights& w, size_t rows, size_t max_rank, Scratch* scratch) const;
  // The same for candidates: two positions, time buckets up to `max_time`.
  void FarBiasTableOf(const LayerWeights& w, size_t rows, size_t max_time, Scratch* scratch) const;
  void FinishLayer(const LayerWeights& w, size_t rows, Scratch* scratch, float* x) const;

  Config config_;
  Dtype dtype_;
  size_t channels_, d_, wide_, heads_, d_head_, inner_, ffn_, table_width_, far_width_;
  float scale_;
  Windows windows_;
  TimeBuckets buckets_;
  StackWeights weights_;
  std::unique_ptr<ArenaPool> arenas_ = std::make_unique<ArenaPool>();
};

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_STACK_H_
