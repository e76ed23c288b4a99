#include "models/glass/network.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/dispatch.h"
#include "models/glass/decoder.h"

namespace backstory::glass {
namespace {

constexpr size_t kRowsPerTask = 12;  // the height of a GEMM tile: finer tasks balance threads at no cost
constexpr float kMinusInf = -HUGE_VALF;

size_t Size(int value) { return static_cast<size_t>(value); }
size_t Pages(size_t rows) { return (rows + kPageRows - 1) / kPageRows; }

}  // namespace

int RelativeBucket(int distance, int buckets, int distance_max) {
  const int half = buckets / 2, exact = half / 2, size = std::abs(distance);
  const int side = distance > 0 ? half : 0;
  if (size < exact) return side + size;
  const double far = std::log(static_cast<double>(size) / exact) / std::log(static_cast<double>(distance_max) / exact);
  return side + std::min(half - 1, exact + static_cast<int>(far * (half - exact)));
}

void RmsNorm(const float* x, size_t rows, size_t n, const float* g, float* y) {
  for (size_t r = 0; r < rows; ++r, x += n, y += n) {
    float lanes[16] = {};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
    }
    for (; i < n; ++i) lanes[0] += x[i] * x[i];
    float sum = 0;
    for (const float lane : lanes) sum += lane;
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + 1e-6f);
    for (i = 0; i < n; ++i) y[i] = x[i] * scale * g[i];
  }
}

void AddFfn(const FfnWeights& ffn, size_t rows, size_t n, float* z, float* hidden, float* x) {
  const KernelTable& kernels = Kernels();
  RmsNorm(x, rows, n, ffn.norm.data(), z);
  kernels.gemm({.a = z, .lda = n, .m = rows, .b = &ffn.w1, .relu = true, .c = hidden, .ldc = ffn.w1.n()});
  kernels.gemm({.a = hidden, .lda = ffn.w1.n(), .m = rows, .b = &ffn.w2, .c = z, .ldc = n});
  kernels.add(z, rows * n, x);
}

size_t Memory::bytes() const {
  size_t sum = states.size() * sizeof(float) + slots.size() * sizeof(uint32_t);
  for (const Page& page : pages) sum += page.bytes();
  return sum;
}

absl::StatusOr<std::unique_ptr<const Network>> Network::Create(const Config& config, const TensorMap& tensors,
                                                               Dtype precision) {
  absl::StatusOr<Weights> weights = LoadWeights(config, tensors, precision);
  if (!weights.ok()) return weights.status();
  std::unique_ptr<Network> network(new Network(config, *std::move(weights), precision));
  network->MakeEncoderBias();
  network->MakeTokenPages();
  return network;
}

Network::Network(const Config& config, Weights weights, Dtype precision)
    : config_(config),
      weights_(std::move(weights)),
      d_(Size(config.d)),
      inner_(config.inner()),
      slots_(config.slots()),
      shape_{.kv_heads = Size(config.heads), .d_k = Size(config.d_kv), .d_v = Size(config.d_kv), .dtype = precision},
      decoder_scratch_(std::make_shared<DecoderScratchPool>()) {}

// A bias that depends on key slot - query slot alone is a position codebook entry: rank r = query slot - key slot +
// slots - 1 falls by one per later key, as attend wants it. One "time bucket" of zero completes the row.
void Network::MakeEncoderBias() {
  const size_t heads = Size(config_.heads), n_pos = 2 * slots_ - 1;
  encoder_bias_stride_ = n_pos + 1;
  encoder_bias_ = AlignedFloats(kRowsPerTask * heads * encoder_bias_stride_ + kPanel);
  for (size_t u = 0; u < n_pos; ++u) {  // newest last: entry u is rank n_pos - 1 - u, so distance u - (slots - 1)
    const int distance = static_cast<int>(u) - static_cast<int>(slots_ - 1);
    const int bucket = RelativeBucket(distance, config_.relative_buckets, config_.relative_distance_max);
    for (size_t row = 0; row < kRowsPerTask; ++row) {
      for (size_t h = 0; h < heads; ++h) {
        encoder_bias_[(row * heads + h) * encoder_bias_stride_ + u] = weights_.encoder_bias[Size(bucket) * heads + h];
      }
    }
  }
}

void Network::MakeTokenPages() {
  if (config_.retrieved_items == 0) return;
  uint32_t pages = 0;
  for (size_t l = 0; l < kLevels; ++l) {
    first_page_[l] = pages;
    pages += static_cast<uint32_t>(Pages(Size(config_.levels[l])));
  }
  pad_v_ = AlignedFloats(weights_.decoder.size() * inner_);
  const KernelTable& kernels = Kernels();
  std::vector<float> embedded(d_), kv(2 * inner_);
  for (size_t layer = 0; layer < weights_.decoder.size(); ++layer) {
    token_pages_.emplace_back();
    for (uint32_t p = 0; p < pages; ++p) token_pages_[layer].emplace_back(shape_);
    for (uint32_t token = 0; token < static_cast<uint32_t>(config_.vocabulary); ++token) {
      uint32_t page = 0, row = 0;
      if (token != 0 && !Place(token, &page, &row)) continue;
      const float* e = weights_.embedding.data() + token * d_;
      kernels.gemm({.a = e,
                    .lda = d_,
                    .m = 1,
                    .b = &weights_.retrieved,
                    .bias = weights_.retrieved_b.data(),
                    .c = embedded.data(),
                    .ldc = d_});
      kernels.gemm({.a = embedded.data(),
                    .lda = d_,
                    .m = 1,
                    .b = &weights_.decoder[layer].retrieved_kv,
                    .c = kv.data(),
                    .ldc = 2 * inner_});
      if (token == 0) {
        std::copy_n(kv.data() + inner_, inner_, pad_v_.data() + layer * inner_);
      } else {
        WriteRow(shape_, row, kv.data(), kv.data() + inner_, &token_pages_[layer][page]);
      }
    }
  }
}

bool Network::Place(uint32_t token, uint32_t* page, uint32_t* row) const {
  for (size_t l = kLevels; l-- > 0;) {
    const uint32_t begin = config_.offset(l);
    if (token < begin) continue;
    if (token - begin >= static_cast<uint32_t>(config_.levels[l])) return false;
    *page = first_page_[l] + (token - begin) / static_cast<uint32_t>(kPageRows);
    *row = (token - begin) % static_cast<uint32_t>(kPageRows);
    return true;
  }
  return false;
}

RetrievedSet Network::Retrieve(std::span<const uint32_t> tokens, size_t pages_max) const {
  uint32_t page = 0, row = 0;
  std::vector<uint32_t> sorted;
  sorted.reserve(tokens.size());
  for (const uint32_t token : tokens) {
    if (token != 0 && Place(token, &page, &row)) sorted.push_back(token);
  }
  std::sort(sorted.begin(), sorted.end());
  RetrievedSet set;
  set.empty = sorted.empty();
  for (const uint32_t token : sorted) {
    if (set.members.empty() || set.members.back().token != token) set.members.push_back({token, 0, 0});
    ++set.members.back().count;
  }
  for (RetrievedSet::Member& member : set.members) {  // pages rise with tokens
    Place(member.token, &page, &row);
    if (set.pages.empty() || set.pages.back() != page) set.pages.push_back(page);
    member.row = static_cast<uint32_t>((set.pages.size() - 1) * kPageRows + row);
  }
  if (set.pages.size() > pages_max) Gather(&set);
  const size_t pages = set.pages.empty() ? Pages(set.members.size()) : set.pages.size();
  set.log_count.assign(pages * kPageRows, kMinusInf);
  for (const RetrievedSet::Member& member : set.members) {
    set.log_count[member.row] = std::log(static_cast<float>(member.count));
  }
  return set;
}

void Network::Gather(RetrievedSet* set) const {
  const size_t pages = Pages(set->members.size());
  std::vector<float> k(inner_), v(inner_);
  for (size_t layer = 0; layer < token_pages_.size(); ++layer) {
    for (size_t p = 0; p < pages; ++p) set->gathered.emplace_back(shape_);
    for (size_t i = 0; i < set->members.size(); ++i) {
      uint32_t page = 0, row = 0;
      Place(set->members[i].token, &page, &row);
      ReadRow(shape_, row, token_pages_[layer][page].view(), k.data(), v.data());
      WriteRow(shape_, i % kPageRows, k.data(), v.data(), &set->gathered[layer * pages + i / kPageRows]);
    }
  }
  for (size_t i = 0; i < set->members.size(); ++i) set->members[i].row = static_cast<uint32_t>(i);
  set->pages.clear();
}

// ---- Encoder ----

Memory Network::Encode(std::span<const uint32_t> short_tokens, const float* tier, ThreadPool* pool) const {
  assert(short_tokens.size() <= kLevels * Size(config_.short_items));
  const KernelTable& kernels = Kernels();
  const bool has_tier = config_.bins() > 0, tier_first = has_tier && config_.tier_position == TierPosition::kFirst;
  Memory memory;
  const size_t first_slot = slots_ - short_tokens.size() - (has_tier && !tier_first ? 1 : 0);
  std::vector<const float*> from;  // of each row: a token's embedding, nullptr for the tier token
  if (tier_first) {
    memory.slots.push_back(0);
    from.push_back(nullptr);
  }
  for (size_t i = 0; i < short_tokens.size(); ++i) {
    assert(short_tokens[i] < Size(config_.vocabulary));
    if (short_tokens[i] == 0) continue;
    memory.slots.push_back(static_cast<uint32_t>(first_slot + i));
    from.push_back(weights_.embedding.data() + short_tokens[i] * d_);
  }
  if (has_tier && !tier_first) {
    memory.slots.push_back(static_cast<uint32_t>(slots_ - 1));
    from.push_back(nullptr);
  }
  memory.rows = from.size();
  memory.states = AlignedFloats(std::max<size_t>(1, memory.rows) * d_);
  for (size_t r = 0; r < memory.rows; ++r) {
    float* x = memory.states.data() + r * d_;
    if (from[r] != nullptr) {
      std::copy_n(from[r], d_, x);
      continue;
    }
    std::vector<float> hidden(d_);
    kernels.gemm({.a = tier,
                  .lda = weights_.tier1.k(),
                  .m = 1,
                  .b = &weights_.tier1,
                  .bias = weights_.tier_b1.data(),
                  .relu = true,
                  .c = hidden.data(),
                  .ldc = d_});
    kernels.gemm({.a = hidden.data(),
                  .lda = d_,
                  .m = 1,
                  .b = &weights_.tier2,
                  .bias = weights_.tier_b2.data(),
                  .c = x,
                  .ldc = d_});
  }
  std::vector<KeyRun> runs;  // of a query in slot 0: rows whose slots follow one another
  for (size_t r = 0; r < memory.rows; ++r) {
    if (r > 0 && memory.slots[r] == memory.slots[r - 1] + 1) {
      runs.back().end = static_cast<uint32_t>(r + 1);
    } else {
      runs.push_back({static_cast<uint32_t>(r), static_cast<uint32_t>(r + 1),
                      static_cast<uint32_t>(slots_ - 1) - memory.slots[r], 0});
    }
  }
  RunEncoder(runs, &memory, pool);
  return memory;
}

// Every row's own work from one attention to the next is one task: threads meet once a layer.
void Network::RunEncoder(std::span<const KeyRun> runs, Memory* memory, ThreadPool* pool) const {
  const size_t n = memory->rows, tasks = (n + kRowsPerTask - 1) / kRowsPerTask, layers = weights_.encoder.size();
  for (size_t p = 0; p < weights_.decoder.size() * Pages(n); ++p) memory->pages.emplace_back(shape_);
  std::array<std::vector<Page>, 2> pages;  // of a layer, and of the next one
  for (size_t p = 0; p < 2 * Pages(n); ++p) pages[p % 2].emplace_back(shape_);
  AlignedFloats q(n * inner_, AlignedFloats::kUninitialised);
  const auto rows_of = [n](size_t task) { return std::min(kRowsPerTask, n - task * kRowsPerTask); };
  ParallelFor(pool, tasks, [&](size_t task) {
    ProjectRows(weights_.encoder[0], task * kRowsPerTask, rows_of(task), *memory, q.data(), &pages[0]);
  });
  for (size_t l = 0; l < layers; ++l) {
    std::vector<PageView> views;
    for (const Page& page : pages[l % 2]) views.push_back(page.view());
    ParallelFor(pool, tasks, [&](size_t task) {
      const size_t first = task * kRowsPerTask, rows = rows_of(task);
      EncodeRows(weights_.encoder[l], first, rows, runs, views, q.data(), memory);
      if (l + 1 < layers) {
        ProjectRows(weights_.encoder[l + 1], first, rows, *memory, q.data(), &pages[(l + 1) % 2]);
      } else {
        FinishRows(first, rows, memory);
      }
    });
  }
}

// Queries, keys and values of rows [first, first + rows) for a layer.
void Network::ProjectRows(const EncoderLayer& layer, size_t first, size_t rows, const Memory& memory, float* q,
                          std::vector<Page>* pages) const {
  Arena scratch(Arena::Padded(rows * d_) + Arena::Padded(rows * 2 * inner_), arenas_.get());
  float *z = scratch.Take(rows * d_), *kv = scratch.Take(rows * 2 * inner_);
  RmsNorm(memory.states.data() + first * d_, rows, d_, layer.norm.data(), z);
  Kernels().gemm({.a = z, .lda = d_, .m = rows, .b = &layer.q, .c = q + first * inner_, .ldc = inner_});
  Kernels().gemm({.a = z, .lda = d_, .m = rows, .b = &layer.kv, .c = kv, .ldc = 2 * inner_});
  for (size_t r = 0; r < rows; ++r) {
    const float* k = kv + r * 2 * inner_;
    WriteRow(shape_, (first + r) % kPageRows, k, k + inner_, &(*pages)[(first + r) / kPageRows]);
  }
}

// Attention to all rows, whose keys and values lie in `pages`, and the feed-forward net.
void Network::EncodeRows(const EncoderLayer& layer, size_t first, size_t rows, std::span<const KeyRun> runs,
                         std::span<const PageView> pages, const float* q, Memory* memory) const {
  const size_t ffn = Size(config_.ffn);
  Arena scratch(Arena::Padded(rows * inner_) + Arena::Padded(rows * shape_.kv_heads) + Arena::Padded(rows * d_) +
                    Arena::Padded(rows * ffn) + Arena::Padded(AttendWorkspaceFloats(shape_)),
                arenas_.get());
  float *o = scratch.Take(rows * inner_), *lse = scratch.Take(rows * shape_.kv_heads), *z = scratch.Take(rows * d_);
  float *hidden = scratch.Take(rows * ffn), *workspace = scratch.Take(AttendWorkspaceFloats(shape_));
  std::vector<KeyRun> own(rows * runs.size());
  std::vector<std::span<const KeyRun>> lists(rows);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i < runs.size(); ++i) {
      own[r * runs.size() + i] = runs[i];
      own[r * runs.size() + i].rank += memory->slots[first + r];
    }
    lists[r] = std::span(own).subspan(r * runs.size(), runs.size());
  }
  AttendArgs args;
  args.queries = rows;
  args.heads = shape_.kv_heads;
  args.shape = shape_;
  args.q = q + first * inner_;
  args.bias = {encoder_bias_.data(), encoder_bias_stride_, 2 * slots_ - 1, 1};
  args.pages = pages;
  args.runs = lists.data();
  args.o = o;
  args.lse = lse;
  args.workspace = workspace;
  Kernels().attend(args);
  float* mine = memory->states.data() + first * d_;
  Kernels().gemm({.a = o, .lda = inner_, .m = rows, .b = &layer.o, .c = z, .ldc = d_});
  Kernels().add(z, rows * d_, mine);
  AddFfn(layer.ffn, rows, d_, z, hidden, mine);
}

// The last norm, and what each decoder layer attends to of these rows.
void Network::FinishRows(size_t first, size_t rows, Memory* memory) const {
  float* x = memory->states.data() + first * d_;
  RmsNorm(x, rows, d_, weights_.encoder_norm.data(), x);
  Arena scratch(Arena::Padded(rows * 2 * inner_), arenas_.get());
  float* kv = scratch.Take(rows * 2 * inner_);
  for (size_t l = 0; l < weights_.decoder.size(); ++l) {
    Kernels().gemm({.a = x, .lda = d_, .m = rows, .b = &weights_.decoder[l].memory_kv, .c = kv, .ldc = 2 * inner_});
    for (size_t r = 0; r < rows; ++r) {
      const float* k = kv + r * 2 * inner_;
      const size_t page = l * Pages(memory->rows) + (first + r) / kPageRows;
      WriteRow(shape_, (first + r) % kPageRows, k, k + inner_, &memory->pages[page]);
    }
  }
}

size_t Network::bytes() const {
  size_t sum = 0;
  for (const auto& layer : token_pages_) {
    for (const Page& page : layer) sum += page.bytes();
  }
  return sum;
}

}  // namespace backstory::glass
