#include "models/glass/decoder.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "kernels/dispatch.h"

namespace backstory::glass {
namespace {

// The tiles of a product are 12, 6 and 3 rows high; single rows after them cost as much as six.
size_t PaddedRows(size_t rows) { return rows <= 3 ? rows : (rows + 5) / 6 * 6; }

constexpr size_t kRowsPerPartMin = 6;  // fewer are not worth another thread

}  // namespace

size_t DecoderScratch::bytes() const {
  size_t floats = self_kv.size() + follow.size();
  for (const Part& p : parts) {
    for (const AlignedFloats* one : {&p.x, &p.z, &p.near, &p.far, &p.gate_in, &p.gate, &p.q, &p.o, &p.kv, &p.bias,
                                     &p.sorted_q, &p.sorted_o, &p.lse, &p.hidden, &p.logits, &p.workspace}) {
      floats += one->size();
    }
  }
  return floats * sizeof(float);
}

std::unique_ptr<DecoderScratch> DecoderScratchPool::Take() {
  std::lock_guard lock(mutex_);
  if (free_.empty()) return std::make_unique<DecoderScratch>();
  auto scratch = std::move(free_.back());
  free_.pop_back();
  return scratch;
}

void DecoderScratchPool::Give(std::unique_ptr<DecoderScratch> scratch) {
  if (scratch->bytes() > kKeptBytesMax) return;
  std::lock_guard lock(mutex_);
  free_.push_back(std::move(scratch));
}

Decoder::Decoder(const Network* network, const Memory* memory, size_t beams_max, ThreadPool* pool)
    : network_(network),
      memory_(memory),
      beams_max_(beams_max),
      pool_(pool),
      scratch_(network->decoder_scratch_->Take()) {
  const size_t kv = beams_max * 2 * network->inner_, all = network->weights_.decoder.size() * kLevels * kv;
  if (scratch_->self_kv.size() < all) scratch_->self_kv = AlignedFloats(all, AlignedFloats::kUninitialised);
  if (scratch_->follow.size() < kv) scratch_->follow = AlignedFloats(kv, AlignedFloats::kUninitialised);
}

Decoder::~Decoder() { network_->decoder_scratch_->Give(std::move(scratch_)); }

// Splits `beams` into as many parts as there are threads, whole tiles each where that is possible.
void Decoder::Deal(size_t beams) {
  const size_t threads = pool_ == nullptr ? 1 : pool_->threads();
  const size_t wanted = std::max<size_t>(1, std::min(threads, beams / kRowsPerPartMin));
  const size_t rows = wanted == 1 ? beams : PaddedRows((beams + wanted - 1) / wanted);
  used_parts_ = (beams + rows - 1) / rows;
  if (scratch_->parts.size() < used_parts_) scratch_->parts.resize(used_parts_);
  for (size_t i = 0; i < used_parts_; ++i) {
    Part& part = scratch_->parts[i];
    part.first = i * rows;
    part.rows = std::min(rows, beams - part.first);
    part.padded = PaddedRows(part.rows);
    if (part.q.size() < part.padded * network_->inner_) Allocate(&part, part.padded);
    std::fill(part.x.data() + part.rows * network_->d_, part.x.data() + part.padded * network_->d_, 0.0f);
  }
}

void Decoder::Allocate(Part* part, size_t rows) const {
  const size_t d = network_->d_, inner = network_->inner_;
  const auto make = [rows](size_t width) { return AlignedFloats(rows * width); };
  part->x = make(d), part->z = make(d), part->near = make(d), part->far = make(d), part->gate = make(d);
  part->gate_in = make(2 * d), part->kv = make(2 * inner);
  part->q = make(inner), part->o = make(inner), part->sorted_q = make(inner), part->sorted_o = make(inner);
  part->lse = make(network_->shape_.kv_heads);
  part->hidden = make(static_cast<size_t>(network_->config_.ffn));
  part->logits = make(static_cast<size_t>(network_->config_.vocabulary));
  part->workspace = AlignedFloats(AttendWorkspaceFloats(network_->shape_));
}

void Decoder::Step(std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved, float* logits,
                   double* gate_sum) {
  assert(tokens.size() <= beams_max_ && position_ < kLevels);
  assert(position_ == 0 || network_->config_.retrieved_items == 0 || retrieved.size() == tokens.size());
  Deal(tokens.size());
  const size_t vocabulary = static_cast<size_t>(network_->config_.vocabulary);
  ParallelFor(used_parts_ > 1 ? pool_ : nullptr, used_parts_, [&](size_t i) {
    Part& part = scratch_->parts[i];
    Run(&part, tokens.subspan(part.first, part.rows),
        retrieved.empty() ? retrieved : retrieved.subspan(part.first, part.rows), logits + part.first * vocabulary,
        gate_sum == nullptr ? nullptr : gate_sum + part.first);
  });
  ++position_;
}

void Decoder::Run(Part* part, std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved,
                  float* logits, double* gate_sum) {
  const size_t d = network_->d_, vocabulary = static_cast<size_t>(network_->config_.vocabulary);
  for (size_t w = 0; w < part->rows; ++w) {
    std::copy_n(network_->weights_.embedding.data() + tokens[w] * d, d, part->x.data() + w * d);
  }
  if (position_ > 0 && network_->config_.retrieved_items > 0) PrepareSets(retrieved, part);
  for (size_t i = 0; i < network_->weights_.decoder.size(); ++i) {
    const DecoderLayer& layer = network_->weights_.decoder[i];
    SelfAttention(layer, i, part);
    Cross(layer, i, part, gate_sum);
    AddFfn(layer.ffn, part->padded, d, part->z.data(), part->hidden.data(), part->x.data());
  }
  RmsNorm(part->x.data(), part->padded, d, network_->weights_.decoder_norm.data(), part->z.data());
  Kernels().gemm({.a = part->z.data(),
                  .lda = d,
                  .m = part->padded,
                  .b = &network_->weights_.head,
                  .c = part->logits.data(),
                  .ldc = vocabulary});
  std::copy_n(part->logits.data(), part->rows * vocabulary, logits);
}

void Decoder::Follow(std::span<const uint32_t> parents) {
  const size_t width = 2 * network_->inner_;
  for (size_t layer = 0; layer < network_->weights_.decoder.size(); ++layer) {
    for (size_t p = 0; p < position_; ++p) {
      float* kv = Keys(layer, p);
      for (size_t w = 0; w < parents.size(); ++w)
        std::copy_n(kv + parents[w] * width, width, scratch_->follow.data() + w * width);
      std::copy_n(scratch_->follow.data(), parents.size() * width, kv);
    }
  }
}

// At most three keys a beam: plain loops.
void Decoder::SelfAttention(const DecoderLayer& layer, size_t index, Part* part) {
  const KernelTable& kernels = Kernels();
  const size_t d = network_->d_, inner = network_->inner_, heads = network_->shape_.kv_heads,
               d_kv = network_->shape_.d_k;
  const Config& config = network_->config_;
  RmsNorm(part->x.data(), part->padded, d, layer.norm.data(), part->z.data());
  kernels.gemm({.a = part->z.data(), .lda = d, .m = part->padded, .b = &layer.q, .c = part->q.data(), .ldc = inner});
  kernels.gemm(
      {.a = part->z.data(), .lda = d, .m = part->padded, .b = &layer.kv, .c = part->kv.data(), .ldc = 2 * inner});
  std::copy_n(part->kv.data(), part->rows * 2 * inner, Keys(index, position_) + part->first * 2 * inner);
  for (size_t w = 0; w < part->rows; ++w) {
    for (size_t h = 0; h < heads; ++h) {
      const float* q = part->q.data() + w * inner + h * d_kv;
      float weight[kLevels], top = -HUGE_VALF, sum = 0;
      for (size_t p = 0; p <= position_; ++p) {
        const float* k = Keys(index, p) + (part->first + w) * 2 * inner + h * d_kv;
        const int bucket = RelativeBucket(static_cast<int>(p) - static_cast<int>(position_), config.relative_buckets,
                                          config.relative_distance_max);
        weight[p] = std::inner_product(q, q + d_kv, k,
                                       network_->weights_.decoder_bias[static_cast<size_t>(bucket) * heads + h]);
        top = std::max(top, weight[p]);
      }
      for (size_t p = 0; p <= position_; ++p) sum += weight[p] = std::exp(weight[p] - top);
      float* o = part->o.data() + w * inner + h * d_kv;
      std::fill_n(o, d_kv, 0.0f);
      for (size_t p = 0; p <= position_; ++p) {
        const float* v = Keys(index, p) + ((part->first + w) * 2 + 1) * inner + h * d_kv;
        for (size_t i = 0; i < d_kv; ++i) o[i] += weight[p] / sum * v[i];
      }
    }
  }
  kernels.gemm({.a = part->o.data(), .lda = inner, .m = part->padded, .b = &layer.o, .c = part->z.data(), .ldc = d});
  kernels.add(part->z.data(), part->padded * d, part->x.data());
}

void Decoder::Cross(const DecoderLayer& layer, size_t index, Part* part, double* gate_sum) const {
  const KernelTable& kernels = Kernels();
  const size_t d = network_->d_, inner = network_->inner_, m = part->padded;
  RmsNorm(part->x.data(), m, d, layer.cross_norm.data(), part->z.data());
  kernels.gemm({.a = part->z.data(), .lda = d, .m = m, .b = &layer.memory_q, .c = part->q.data(), .ldc = inner});
  AttendMemory(index, part);
  kernels.gemm({.a = part->o.data(), .lda = inner, .m = m, .b = &layer.memory_o, .c = part->near.data(), .ldc = d});
  // The first position predicts the first code and must not see what that code retrieves.
  if (position_ == 0 || network_->config_.retrieved_items == 0) {
    kernels.add(part->near.data(), m * d, part->x.data());
    return;
  }
  kernels.gemm({.a = part->z.data(), .lda = d, .m = m, .b = &layer.retrieved_q, .c = part->q.data(), .ldc = inner});
  AttendRetrieved(index, part);
  kernels.gemm({.a = part->o.data(), .lda = inner, .m = m, .b = &layer.retrieved_o, .c = part->far.data(), .ldc = d});
  const float* source = network_->config_.gate_input == GateInput::kState ? part->z.data() : part->near.data();
  for (size_t w = 0; w < m; ++w) {
    std::copy_n(source + w * d, d, part->gate_in.data() + w * 2 * d);
    std::copy_n(part->far.data() + w * d, d, part->gate_in.data() + (w * 2 + 1) * d);
  }
  kernels.gemm({.a = part->gate_in.data(),
                .lda = 2 * d,
                .m = m,
                .b = &layer.gate,
                .bias = layer.gate_b.data(),
                .c = part->gate.data(),
                .ldc = d});
  kernels.sigmoid(m * d, part->gate.data());
  for (size_t i = 0; i < m * d; ++i) {
    part->x[i] += (1 - part->gate[i]) * part->near[i] + part->gate[i] * part->far[i];
  }
  for (size_t w = 0; gate_sum != nullptr && w < part->rows; ++w) {
    const float* gate = part->gate.data() + w * d;
    gate_sum[w] += std::accumulate(gate, gate + d, 0.0) / static_cast<double>(d);
  }
}

void Decoder::AttendMemory(size_t index, Part* part) const {
  const size_t pages = (memory_->rows + kPageRows - 1) / kPageRows;
  part->views.clear();
  for (size_t p = 0; p < pages; ++p) part->views.push_back(memory_->pages[index * pages + p].view());
  const KeyRun all{0, static_cast<uint32_t>(memory_->rows), 0, KeyRun::kNoBias};
  AttendArgs args;
  args.queries = part->padded;
  args.heads = network_->shape_.kv_heads;
  args.shape = network_->shape_;
  args.q = part->q.data();
  args.pages = part->views;
  args.shared_runs = {&all, memory_->rows > 0 ? size_t{1} : size_t{0}};
  args.o = part->o.data();
  args.lse = part->lse.data();
  args.workspace = part->workspace.data();
  Kernels().attend(args);
}

void Decoder::PrepareSets(std::span<const RetrievedSet* const> retrieved, Part* part) const {
  part->order.resize(retrieved.size());
  std::iota(part->order.begin(), part->order.end(), 0u);
  std::stable_sort(part->order.begin(), part->order.end(),
                   [&](uint32_t a, uint32_t b) { return std::less<>()(retrieved[a], retrieved[b]); });
  part->groups.clear();
  part->union_pages.clear();
  bool gathered = false;
  for (size_t i = 0; i < part->order.size(); ++i) {
    const RetrievedSet* set = retrieved[part->order[i]];
    if (part->groups.empty() || part->groups.back().set != set) {
      part->groups.push_back({i, i, set});
      part->union_pages.insert(part->union_pages.end(), set->pages.begin(), set->pages.end());
      gathered |= !set->gathered.empty();
    }
    part->groups.back().end = i + 1;
  }
  std::sort(part->union_pages.begin(), part->union_pages.end());
  part->union_pages.erase(std::unique(part->union_pages.begin(), part->union_pages.end()), part->union_pages.end());
  if (gathered || part->union_pages.size() > Network::kTokenPagesMax) part->union_pages.clear();
  if (!part->union_pages.empty()) FillBias(part);
}

// The bias of key j is entry j of a query's row: ranks fall by one per key, and entries stand newest last
// (kernels/attend.h).
void Decoder::FillBias(Part* part) const {
  const size_t heads = network_->shape_.kv_heads, keys = part->union_pages.size() * kPageRows;
  part->bias_stride = keys + kPanel;
  const size_t wanted = part->padded * heads * part->bias_stride + kPanel;
  if (part->bias.size() < wanted) part->bias = AlignedFloats(wanted);
  for (const Group& group : part->groups) {
    for (size_t i = group.begin; i < group.end; ++i) {
      float* first = part->bias.data() + part->order[i] * heads * part->bias_stride;
      std::fill_n(first, keys, -HUGE_VALF);
      std::fill_n(first + keys, kPanel, 0.0f);  // the one time bucket
      for (const RetrievedSet::Member& member : group.set->members) {
        const uint32_t page = group.set->pages[member.row / kPageRows];
        const auto at =
            std::lower_bound(part->union_pages.begin(), part->union_pages.end(), page) - part->union_pages.begin();
        first[static_cast<size_t>(at) * kPageRows + member.row % kPageRows] = group.set->log_count[member.row];
      }
      for (size_t h = 1; h < heads; ++h) std::copy_n(first, part->bias_stride, first + h * part->bias_stride);
    }
  }
  for (size_t w = part->rows; w < part->padded; ++w) {
    std::fill_n(part->bias.data() + w * heads * part->bias_stride, heads * part->bias_stride, 0.0f);
  }
}

void Decoder::AttendUnion(size_t index, Part* part) const {
  const size_t inner = network_->inner_, keys = part->union_pages.size() * kPageRows;
  part->views.clear();
  for (const uint32_t page : part->union_pages) part->views.push_back(network_->token_pages_[index][page].view());
  const KeyRun all{0, static_cast<uint32_t>(keys), static_cast<uint32_t>(keys - 1), 0};
  AttendArgs args;
  args.queries = part->padded;
  args.heads = network_->shape_.kv_heads;
  args.shape = network_->shape_;
  args.q = part->q.data();
  args.bias = {part->bias.data(), part->bias_stride, keys, 1};
  args.pages = part->views;
  args.shared_runs = {&all, 1};
  args.o = part->o.data();
  args.lse = part->lse.data();
  args.workspace = part->workspace.data();
  Kernels().attend(args);
  for (const Group& group : part->groups) {
    if (!group.set->empty) continue;  // attention over nothing but pads
    for (size_t i = group.begin; i < group.end; ++i) {
      std::copy_n(network_->pad_v_.data() + index * inner, inner, part->o.data() + part->order[i] * inner);
    }
  }
}

void Decoder::AttendRetrieved(size_t index, Part* part) const {
  if (!part->union_pages.empty()) return AttendUnion(index, part);
  const size_t inner = network_->inner_, heads = network_->shape_.kv_heads;
  for (size_t i = 0; i < part->rows; ++i) {
    std::copy_n(part->q.data() + part->order[i] * inner, inner, part->sorted_q.data() + i * inner);
  }
  for (const Group& group : part->groups) {
    const RetrievedSet& set = *group.set;
    float* o = part->sorted_o.data() + group.begin * inner;
    if (set.empty) {  // attention over nothing but pads
      for (size_t i = group.begin; i < group.end; ++i, o += inner) {
        std::copy_n(network_->pad_v_.data() + index * inner, inner, o);
      }
      continue;
    }
    const size_t pages = set.log_count.size() / kPageRows;
    part->views.clear();
    part->log_w.clear();
    for (size_t p = 0; p < pages; ++p) {
      part->views.push_back(set.pages.empty() ? set.gathered[index * pages + p].view()
                                              : network_->token_pages_[index][set.pages[p]].view());
      part->log_w.push_back(set.log_count.data() + p * kPageRows);
    }
    const KeyRun all{0, static_cast<uint32_t>(pages * kPageRows), 0, KeyRun::kNoBias};
    AttendArgs args;
    args.queries = group.end - group.begin;
    args.heads = heads;
    args.shape = network_->shape_;
    args.q = part->sorted_q.data() + group.begin * inner;
    args.pages = part->views;
    args.log_w = part->log_w.data();
    args.shared_runs = {&all, 1};
    args.o = o;
    args.lse = part->lse.data();
    args.workspace = part->workspace.data();
    Kernels().attend(args);
  }
  for (size_t i = 0; i < part->rows; ++i) {
    std::copy_n(part->sorted_o.data() + i * inner, inner, part->o.data() + part->order[i] * inner);
  }
}

std::vector<float> Decoder::SearchAttention(size_t w, const RetrievedSet& set) const {
  const size_t inner = network_->inner_, heads = network_->shape_.kv_heads, d_kv = network_->shape_.d_k;
  const size_t layer = network_->weights_.decoder.size() - 1, pages = set.log_count.size() / kPageRows;
  size_t i_part = 0;
  while (w >= scratch_->parts[i_part].first + scratch_->parts[i_part].rows) ++i_part;
  const float* query =
      scratch_->parts[i_part].q.data() + (w - scratch_->parts[i_part].first) * inner;  // of the last layer still
  std::vector<float> mass(set.members.size()), logit(set.members.size() * heads), k(inner), v(inner);
  for (size_t i = 0; i < set.members.size(); ++i) {
    const size_t row = set.members[i].row, page = row / kPageRows;
    const PageView view = set.pages.empty() ? set.gathered[layer * pages + page].view()
                                            : network_->token_pages_[layer][set.pages[page]].view();
    ReadRow(network_->shape_, row % kPageRows, view, k.data(), v.data());
    for (size_t h = 0; h < heads; ++h) {
      const float* q = query + h * d_kv;
      logit[h * mass.size() + i] = std::inner_product(q, q + d_kv, k.data() + h * d_kv, set.log_count[row]);
    }
  }
  for (size_t h = 0; h < heads && !mass.empty(); ++h) {
    float* p = logit.data() + h * mass.size();
    const float top = *std::max_element(p, p + mass.size());
    float sum = 0;
    for (size_t i = 0; i < mass.size(); ++i) sum += p[i] = std::exp(p[i] - top);
    for (size_t i = 0; i < mass.size(); ++i) mass[i] += p[i] / (sum * static_cast<float>(heads));
  }
  return mass;
}

}  // namespace backstory::glass
