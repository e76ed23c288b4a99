#include "models/grab/stack.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "kernels/dispatch.h"
#include "models/grab/stack_scratch.h"

namespace backstory::grab {
namespace {

size_t Size(int value) { return static_cast<size_t>(value); }

// Adds the action codebook entry of one row to each head of its key.
void FoldAction(const float* entry, size_t heads, size_t d_head, float* k) {
  for (size_t h = 0; h < heads; ++h) {
    for (size_t i = 0; i < d_head; ++i) k[h * d_head + i] += entry[i];
  }
}

}  // namespace

Stack::Stack(const Config& config, Dtype dtype)
    : config_(config),
      dtype_(dtype),
      channels_(Size(config.channels())),
      d_(Size(config.d)),
      wide_(Size(config.heads) * Size(config.d_head)),
      heads_(Size(config.heads)),
      d_head_(Size(config.d_head)),
      inner_(Size(config.latent > 0 ? config.latent : config.d)),
      ffn_(Size(config.ffn)),
      table_width_(Size(config.n_pos) + Size(config.n_time)),
      far_width_(kFarPositions + Size(config.n_time)),
      scale_(1.0f / std::sqrt(static_cast<float>(config.d_head))),
      windows_{config.window_rows, WindowUs(config.window_sec)},
      buckets_(config.n_time) {}

absl::StatusOr<Stack> Stack::Load(const Config& config, const TensorMap& tensors, Dtype dtype) {
  Stack stack(config, dtype);
  auto weights = LoadStackWeights(config, tensors, dtype);
  if (!weights.ok()) return weights.status();
  stack.weights_ = std::move(*weights);
  return stack;
}

PageShape Stack::page_shape() const { return {.kv_heads = heads_, .d_k = d_head_, .d_v = d_head_, .dtype = dtype_}; }

const float* Stack::Inner(const LayerWeights& w, const float* x, size_t rows, Scratch* s) const {
  const KernelTable& kernels = Kernels();
  if (config_.norm == Norm::kPre) {
    kernels.layer_norm({.x = x, .rows = rows, .n = d_, .g = w.n1_g.data(), .b = w.n1_b.data(), .y = s->z});
    x = s->z;
  }
  if (!w.wd.has_value()) return x;
  kernels.gemm({.a = x, .lda = d_, .m = rows, .b = &*w.wd, .c = s->latent, .ldc = inner_});
  return s->latent;
}

void Stack::BiasTableOf(const LayerWeights& w, size_t rows, size_t max_rank, Scratch* s) const {
  const size_t clip = Size(config_.n_pos) - 1;  // entry clip - p of a row is position p
  Kernels().gemm({.a = s->q,
                  .lda = d_head_,
                  .m = rows * heads_,
                  .b = &w.bias_codes,
                  .first_panel = (clip - std::min(max_rank, clip)) / kPanel,
                  .c = s->bias,
                  .ldc = table_width_});
}

void Stack::FarBiasTableOf(const LayerWeights& w, size_t rows, size_t max_time, Scratch* s) const {
  Kernels().gemm({.a = s->q,
                  .lda = d_head_,
                  .m = rows * heads_,
                  .b = &w.far_codes,
                  .end_panel = (kFarPositions + max_time) / kPanel + 1,
                  .c = s->bias,
                  .ldc = far_width_});
}

void Stack::FinishLayer(const LayerWeights& w, size_t rows, Scratch* s, float* x) const {
  const KernelTable& kernels = Kernels();
  const bool post = config_.norm == Norm::kPost;
  kernels.gemm({.a = s->o, .lda = wide_, .m = rows, .b = &w.wo, .c = s->z, .ldc = d_});
  const float* y = x;
  if (post) {
    kernels.layer_norm({.x = x, .rows = rows, .n = d_, .g = w.n1_g.data(), .b = w.n1_b.data(), .add = s->z, .y = x});
  } else {
    kernels.add(s->z, rows * d_, x);
    kernels.layer_norm({.x = x, .rows = rows, .n = d_, .g = w.n2_g.data(), .b = w.n2_b.data(), .y = s->z});
    y = s->z;
  }
  kernels.gemm({.a = y, .lda = d_, .m = rows, .b = &w.w1, .bias = w.b1.data(), .relu = true, .c = s->ffn, .ldc = ffn_});
  kernels.gemm({.a = s->ffn, .lda = ffn_, .m = rows, .b = &w.w2, .bias = w.b2.data(), .c = s->f, .ldc = d_});
  if (post) {
    kernels.layer_norm({.x = x, .rows = rows, .n = d_, .g = w.n2_g.data(), .b = w.n2_b.data(), .add = s->f, .y = x});
  } else {
    kernels.add(s->f, rows * d_, x);
  }
}

// ---- History ----

// Rows [first, first + rows) of one channel, whose states stand at x.
struct Stack::Tile {
  size_t channel = 0;
  size_t first = 0;
  size_t rows = 0;
  float* x = nullptr;
  const int32_t* action = nullptr;
  const RunLists* runs = nullptr;
};

void Stack::WriteKv(size_t layer, const Tile& tile, CpuUserKv* kv) const {
  const LayerWeights& w = weights_.layers[layer][tile.channel];
  Scratch scratch(*this, tile.rows, Scratch::kKeys);
  const KernelTable& kernels = Kernels();
  const float* z = Inner(w, tile.x, tile.rows, &scratch);
  kernels.gemm({.a = z, .lda = inner_, .m = tile.rows, .b = &w.wk, .c = scratch.k, .ldc = wide_});
  kernels.gemm({.a = z, .lda = inner_, .m = tile.rows, .b = &w.wv, .c = scratch.v, .ldc = wide_});
  ChannelState& channel = kv->channel(tile.channel);
  for (size_t r = 0; r < tile.rows; ++r) {
    float* k = scratch.k + r * wide_;
    FoldAction(w.bact.data() + Size(tile.action[r]) * d_head_, heads_, d_head_, k);
    const size_t row = tile.first + r;
    WriteRow(channel.shape(), row % kPageRows, k, scratch.v + r * wide_, &channel.page_of(layer, row));
  }
}

void Stack::HistoryLayer(size_t layer, const Tile& tile, std::span<const PageView> pages) const {
  const LayerWeights& w = weights_.layers[layer][tile.channel];
  Scratch scratch(*this, tile.rows, Scratch::kQueries);
  const KernelTable& kernels = Kernels();
  const float* z = Inner(w, tile.x, tile.rows, &scratch);
  kernels.gemm({.a = z, .lda = inner_, .m = tile.rows, .b = &w.wq, .c = scratch.q, .ldc = wide_});
  BiasTableOf(w, tile.rows, tile.first + tile.rows, &scratch);
  AttendArgs attend = scratch.Attend(*this, tile.rows, pages.first((tile.first + tile.rows - 1) / kPageRows + 1));
  attend.runs = tile.runs->of_row.data();
  kernels.attend(attend);
  FinishLayer(w, tile.rows, &scratch, tile.x);
}

void Stack::Append(std::span<const HistoryRows> channels, bool all_layers, ThreadPool* pool, CpuUserKv* kv) const {
  // Tiles of 32 rows keep the causal triangle's waste small and both cores busy.
  constexpr size_t kTileRows = 32;
  assert(channels.size() == channels_);
  std::vector<Tile> tiles;
  for (size_t c = 0; c < channels_; ++c) {
    const size_t before = kv->channel(c).rows(), added = channels[c].action.size();
    kv->channel(c).Grow(channels[c].facts);
    for (size_t r = 0; r < added; r += kTileRows) {
      tiles.push_back({.channel = c,
                       .first = before + r,
                       .rows = std::min(kTileRows, added - r),
                       .x = channels[c].x + r * d_,
                       .action = channels[c].action.data() + r});
    }
  }
  // Longest first: a row's cost is the rows before it.
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) { return a.first > b.first; });
  std::vector<RunLists> runs(tiles.size());
  if (config_.layers > 1 || all_layers) {
    ParallelFor(pool, tiles.size(), [&](size_t i) {
      runs[i] = HistoryRuns(kv->channel(tiles[i].channel).index(), tiles[i].first, tiles[i].first + tiles[i].rows,
                            windows_, buckets_);
    });
  }
  for (size_t i = 0; i < tiles.size(); ++i) tiles[i].runs = &runs[i];
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    ParallelFor(pool, tiles.size(), [&](size_t i) { WriteKv(layer, tiles[i], kv); });
    if (layer + 1 == weights_.layers.size() && !all_layers) break;
    std::vector<std::vector<PageView>> pages;
    for (size_t c = 0; c < channels_; ++c) pages.push_back(kv->channel(c).pages(layer));
    ParallelFor(pool, tiles.size(), [&](size_t i) { HistoryLayer(layer, tiles[i], pages[tiles[i].channel]); });
  }
}

// ---- Candidates ----

namespace {

// Pages up to the last visible row.
size_t PagesOf(const std::vector<KeyRun>& runs) {
  return runs.empty() ? 0 : (runs.back().end + kPageRows - 1) / kPageRows;
}

}  // namespace

struct Stack::Block {
  const CandidateRows* candidates;
  const Visibility* visibility;
  size_t first, rows;
  Scratch scratch;
  std::vector<float*> x;        // [channel] -> [rows][d]
  std::vector<PageView> pages;  // of the layer and channel at work
};

Stack::Visibility Stack::VisibilityOf(const CandidateRows& candidates) const {
  Visibility visibility;
  visibility.runs.resize(channels_);
  visibility.far_runs.resize(channels_);
  visibility.first_folded.resize(channels_);
  visibility.pages.resize(channels_, std::vector<std::vector<PageView>>(weights_.layers.size()));
  if (candidates.kv == nullptr) return visibility;
  for (size_t c = 0; c < channels_; ++c) {
    const ChannelState& channel = candidates.kv->channel(c);
    const size_t visible = std::min(candidates.visible_rows[c], channel.rows());
    const size_t first = candidates.first_row.empty() ? 0 : std::min(candidates.first_row[c], visible);
    visibility.runs[c] =
        CandidateRuns(channel.index(), first, visible, candidates.now_us, candidates.tie, windows_, buckets_);
    visibility.first_folded[c] = FirstNearPage(visibility.runs[c], Size(config_.n_pos));
    visibility.far_runs[c] = FoldedRuns(visibility.runs[c], visibility.first_folded[c]);
    for (size_t l = 0; l < weights_.layers.size(); ++l) visibility.pages[c][l] = channel.pages(l);
  }
  return visibility;
}

void Stack::MixTargets(size_t layer, Block* block) const {
  const GateWeights& gate = weights_.gates[layer];
  Scratch& s = block->scratch;
  for (size_t r = 0; r < block->rows; ++r) {
    for (size_t c = 0; c < channels_; ++c) {
      std::memcpy(s.concat + (r * channels_ + c) * d_, block->x[c] + r * d_, d_ * sizeof(float));
    }
  }
  const KernelTable& kernels = Kernels();
  kernels.gemm({.a = s.concat,
                .lda = channels_ * d_,
                .m = block->rows,
                .b = &gate.w,
                .bias = gate.b.data(),
                .c = s.beta,
                .ldc = channels_});
  kernels.sigmoid(block->rows * channels_, s.beta);
  kernels.mix({.x = block->x, .beta = s.beta, .rows = block->rows, .d = d_});
}

void Stack::FoldNewest(size_t layer, size_t c, Block* block) const {
  const Visibility& visibility = *block->visibility;
  const std::vector<KeyRun>& runs = visibility.runs[c];
  block->pages = visibility.pages[c][layer];
  const PageShape shape = page_shape();
  const size_t pages = PagesOf(runs);
  std::byte* to = reinterpret_cast<std::byte*>(block->scratch.folded);
  for (size_t p = visibility.first_folded[c]; p < pages; ++p) {
    Kernels().fold_bias({.shape = shape,
                         .from = block->pages[p].k,
                         .page = p,
                         .runs = runs,
                         .codes = &weights_.layers[layer][c].fold_codes,
                         .to = to});
    block->pages[p].k = to;
    to += shape.k_size() * shape.element_bytes();
  }
}

void Stack::CandidateLayer(size_t layer, size_t c, Block* block) const {
  const LayerWeights& w = weights_.layers[layer][c];
  Scratch& s = block->scratch;
  const size_t rows = block->rows;
  const KernelTable& kernels = Kernels();
  const float* z = Inner(w, block->x[c], rows, &s);
  kernels.gemm({.a = z, .lda = inner_, .m = rows, .b = &w.wq, .c = s.q, .ldc = wide_});
  kernels.gemm({.a = z, .lda = inner_, .m = rows, .b = &w.wk, .c = s.k, .ldc = wide_});
  kernels.gemm({.a = z, .lda = inner_, .m = rows, .b = &w.wv, .c = s.v, .ldc = wide_});
  const float* self_action = w.bact.data() + Size(config_.n_act - 1) * d_head_;
  for (size_t r = 0; r < rows; ++r) FoldAction(self_action, heads_, d_head_, s.k + r * wide_);
  const std::vector<KeyRun>& runs = block->visibility->far_runs[c];
  const bool far = !runs.empty() && runs.front().time != KeyRun::kNoBias;  // the oldest run has the largest bucket
  FarBiasTableOf(w, rows, far ? runs.front().time : 0, &s);
  FoldNewest(layer, c, block);
  AttendArgs attend = s.Attend(*this, rows, block->pages);
  attend.bias.stride = far_width_;
  attend.bias.n_pos = kFarPositions;
  attend.shared_runs = runs;
  attend.self_k = s.k;
  attend.self_v = s.v;
  const bool explains = block->candidates->explain_top > 0 && layer + 1 == weights_.layers.size();
  const bool traces = block->candidates->trace != nullptr && layer == 0;
  if (!explains && !traces) attend.lse = nullptr;
  kernels.attend(attend);
  if (traces) {
    ScoreTrace* trace = block->candidates->trace;
    std::copy_n(s.o, rows * wide_, trace->attend[c].begin() + static_cast<ptrdiff_t>(block->first * wide_));
    std::copy_n(s.lse, rows * heads_, trace->lse[c].begin() + static_cast<ptrdiff_t>(block->first * heads_));
  }
  if (explains) Explain(attend, c, block);
  FinishLayer(w, rows, &s, block->x[c]);
}

void Stack::Explain(const AttendArgs& attend, size_t c, Block* block) const {
  const auto& runs = block->visibility->runs[c];
  if (runs.empty()) return;
  const std::span<const uint64_t> ids = block->candidates->kv->channel(c).event_ids();
  const size_t width = attend.pages.size() * kPageRows;
  std::vector<float> mass(width);
  std::vector<uint32_t> order;
  for (size_t r = 0; r < block->rows; ++r) {
    std::fill(mass.begin(), mass.end(), 0.0f);
    AttendMassArgs one{.attend = attend, .mass = mass.data()};
    one.attend.queries = 1;
    one.attend.q = attend.q + r * wide_;
    one.attend.bias.rows = attend.bias.rows + r * heads_ * attend.bias.stride;
    one.attend.lse = attend.lse + r * heads_;
    Kernels().attend_mass(one);
    order.clear();
    for (const KeyRun& run : runs) {
      for (uint32_t j = run.begin; j < run.end; ++j) order.push_back(j);
    }
    const size_t top = std::min(order.size(), Size(block->candidates->explain_top));
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(top), order.end(),
                      [&](uint32_t a, uint32_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a > b; });
    auto& out = block->candidates->attributions[block->first + r];
    for (size_t i = 0; i < top; ++i) {
      out.push_back(
          {.channel = static_cast<int>(c), .row = order[i], .event_id = ids[order[i]], .mass = mass[order[i]]});
    }
  }
}

void Stack::Head(Block* block) const {
  Scratch& s = block->scratch;
  const CandidateRows& candidates = *block->candidates;
  for (size_t c = 0; c < channels_; ++c) {
    for (size_t r = 0; r < block->rows; ++r) {
      std::memcpy(s.concat + (r * channels_ + c) * d_, block->x[c] + r * d_, d_ * sizeof(float));
    }
    if (candidates.trace == nullptr) continue;
    std::copy_n(block->x[c], block->rows * d_,
                candidates.trace->final[c].begin() + static_cast<ptrdiff_t>(block->first * d_));
  }
  const size_t hidden = Size(config_.head_hidden), tasks = config_.tasks.size();
  const KernelTable& kernels = Kernels();
  kernels.gemm({.a = s.concat,
                .lda = channels_ * d_,
                .m = block->rows,
                .b = &weights_.head_w1,
                .bias = weights_.head_b1.data(),
                .relu = true,
                .c = s.head,
                .ldc = hidden});
  kernels.gemm({.a = s.head,
                .lda = hidden,
                .m = block->rows,
                .b = &weights_.head_w2,
                .bias = weights_.head_b2.data(),
                .c = candidates.logits + block->first * tasks,
                .ldc = tasks});
}

void Stack::ScoreBlock(const CandidateRows& candidates, const Visibility& visibility, size_t first,
                       size_t count) const {
  size_t folded = 0;
  for (size_t c = 0; c < channels_; ++c) {
    folded = std::max(folded, PagesOf(visibility.runs[c]) - visibility.first_folded[c]);
  }
  Block block{&candidates, &visibility, first, count, Scratch(*this, count, Scratch::kCandidates, folded), {}, {}};
  for (size_t c = 0; c < channels_; ++c) {
    block.x.push_back(block.scratch.x + c * count * d_);
    std::memcpy(block.x[c], candidates.x + first * d_, count * d_ * sizeof(float));
  }
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    if (!weights_.gates.empty()) MixTargets(layer, &block);
    for (size_t c = 0; c < channels_; ++c) CandidateLayer(layer, c, &block);
  }
  Head(&block);
}

void Stack::Score(const CandidateRows& candidates, ThreadPool* pool) const {
  if (ScoreTrace* trace = candidates.trace) {
    trace->attend.assign(channels_, std::vector<float>(candidates.rows * wide_));
    trace->lse.assign(channels_, std::vector<float>(candidates.rows * heads_));
    trace->final.assign(channels_, std::vector<float>(candidates.rows * d_));
  }
  const Visibility visibility = VisibilityOf(candidates);
  const size_t block = BlockRows(candidates.rows, pool);
  ParallelFor(pool, (candidates.rows + block - 1) / block, [&](size_t b) {
    const size_t first = b * block;
    ScoreBlock(candidates, visibility, first, std::min(block, candidates.rows - first));
  });
}

size_t Stack::BlockRows(size_t rows, const ThreadPool* pool) {
  // 128 rows read the history once and keep the cores busy meanwhile; 6 fill one GEMM tile.
  constexpr size_t kMost = 128, kLeast = 6;
  const size_t threads = pool == nullptr ? 1 : pool->threads();
  const size_t per_thread = (rows + threads - 1) / threads, passes = (per_thread + kMost - 1) / kMost;
  return std::max(kLeast, passes == 0 ? 0 : (per_thread + passes - 1) / passes);
}

}  // namespace backstory::grab
