#include "models/glass/decoder.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/dispatch.h"

namespace backstory::glass {

Decoder::Decoder(const Network* network, const Memory* memory, size_t beams_max)
    : network_(network),
      memory_(memory),
      beams_max_(beams_max),
      self_kv_(network->weights_.decoder.size() * kLevels * beams_max * 2 * network->inner_, AlignedFloats::kUninitialised),
      follow_(beams_max * 2 * network->inner_, AlignedFloats::kUninitialised),
      x_(beams_max * network->d_),
      z_(beams_max * network->d_),
      near_(beams_max * network->d_),
      far_(beams_max * network->d_),
      gate_in_(2 * beams_max * network->d_),
      gate_(beams_max * network->d_),
      q_(beams_max * network->inner_),
      o_(beams_max * network->inner_),
      sorted_q_(beams_max * network->inner_),
      sorted_o_(beams_max * network->inner_),
      lse_(beams_max * network->shape_.kv_heads),
      hidden_(beams_max * static_cast<size_t>(network->config_.ffn)),
      workspace_(AttendWorkspaceFloats(network->shape_)),
      order_(beams_max) {}

void Decoder::Step(std::span<const uint32_t> tokens, std::span<const RetrievedSet* const> retrieved, float* logits,
                   double* gate_sum) {
  const size_t beams = tokens.size(), d = network_->d_;
  assert(beams <= beams_max_ && position_ < kLevels);
  for (size_t w = 0; w < beams; ++w) {
    std::copy_n(network_->weights_.embedding.data() + tokens[w] * d, d, x_.data() + w * d);
  }
  if (position_ > 0 && network_->config_.retrieved_items > 0) {
    assert(retrieved.size() == beams);
    GroupBySet(retrieved);
  }
  for (size_t i = 0; i < network_->weights_.decoder.size(); ++i) {
    const DecoderLayer& layer = network_->weights_.decoder[i];
    SelfAttention(layer, i, beams);
    Cross(layer, i, beams, gate_sum);
    AddFfn(layer.ffn, beams, d, z_.data(), hidden_.data(), x_.data());
  }
  RmsNorm(x_.data(), beams, d, network_->weights_.decoder_norm.data(), z_.data());
  Kernels().gemm({.a = z_.data(), .lda = d, .m = beams, .b = &network_->weights_.head, .c = logits,
                  .ldc = static_cast<size_t>(network_->config_.vocabulary)});
  ++position_;
}

void Decoder::Follow(std::span<const uint32_t> parents) {
  const size_t width = 2 * network_->inner_;
  for (size_t layer = 0; layer < network_->weights_.decoder.size(); ++layer) {
    for (size_t p = 0; p < position_; ++p) {
      float* kv = Keys(layer, p);
      for (size_t w = 0; w < parents.size(); ++w) std::copy_n(kv + parents[w] * width, width, follow_.data() + w * width);
      std::copy_n(follow_.data(), parents.size() * width, kv);
    }
  }
}

// At most three keys a beam: plain loops.
void Decoder::SelfAttention(const DecoderLayer& layer, size_t index, size_t beams) {
  const KernelTable& kernels = Kernels();
  const size_t d = network_->d_, inner = network_->inner_, heads = network_->shape_.kv_heads, d_kv = network_->shape_.d_k;
  const Config& config = network_->config_;
  RmsNorm(x_.data(), beams, d, layer.norm.data(), z_.data());
  kernels.gemm({.a = z_.data(), .lda = d, .m = beams, .b = &layer.q, .c = q_.data(), .ldc = inner});
  kernels.gemm({.a = z_.data(), .lda = d, .m = beams, .b = &layer.kv, .c = Keys(index, position_), .ldc = 2 * inner});
  for (size_t w = 0; w < beams; ++w) {
    for (size_t h = 0; h < heads; ++h) {
      const float* q = q_.data() + w * inner + h * d_kv;
      float weight[kLevels], top = -HUGE_VALF, sum = 0;
      for (size_t p = 0; p <= position_; ++p) {
        const float* k = Keys(index, p) + w * 2 * inner + h * d_kv;
        const int bucket = RelativeBucket(static_cast<int>(p) - static_cast<int>(position_), config.relative_buckets,
                                          config.relative_distance_max);
        weight[p] = std::inner_product(q, q + d_kv, k, network_->weights_.decoder_bias[static_cast<size_t>(bucket) * heads + h]);
        top = std::max(top, weight[p]);
      }
      for (size_t p = 0; p <= position_; ++p) sum += weight[p] = std::exp(weight[p] - top);
      float* o = o_.data() + w * inner + h * d_kv;
      std::fill_n(o, d_kv, 0.0f);
      for (size_t p = 0; p <= position_; ++p) {
        const float* v = Keys(index, p) + (w * 2 + 1) * inner + h * d_kv;
        for (size_t i = 0; i < d_kv; ++i) o[i] += weight[p] / sum * v[i];
      }
    }
  }
  kernels.gemm({.a = o_.data(), .lda = inner, .m = beams, .b = &layer.o, .c = z_.data(), .ldc = d});
  kernels.add(z_.data(), beams * d, x_.data());
}

void Decoder::Cross(const DecoderLayer& layer, size_t index, size_t beams, double* gate_sum) {
  const KernelTable& kernels = Kernels();
  const size_t d = network_->d_, inner = network_->inner_;
  RmsNorm(x_.data(), beams, d, layer.cross_norm.data(), z_.data());
  kernels.gemm({.a = z_.data(), .lda = d, .m = beams, .b = &layer.memory_q, .c = q_.data(), .ldc = inner});
  AttendMemory(index, beams);
  kernels.gemm({.a = o_.data(), .lda = inner, .m = beams, .b = &layer.memory_o, .c = near_.data(), .ldc = d});
  // The first position predicts the first code and must not see what that code retrieves.
  if (position_ == 0 || network_->config_.retrieved_items == 0) {
    kernels.add(near_.data(), beams * d, x_.data());
    return;
  }
  kernels.gemm({.a = z_.data(), .lda = d, .m = beams, .b = &layer.retrieved_q, .c = q_.data(), .ldc = inner});
  AttendRetrieved(index, beams);
  kernels.gemm({.a = o_.data(), .lda = inner, .m = beams, .b = &layer.retrieved_o, .c = far_.data(), .ldc = d});
  const float* source = network_->config_.gate_input == GateInput::kState ? z_.data() : near_.data();
  for (size_t w = 0; w < beams; ++w) {
    std::copy_n(source + w * d, d, gate_in_.data() + w * 2 * d);
    std::copy_n(far_.data() + w * d, d, gate_in_.data() + (w * 2 + 1) * d);
  }
  kernels.gemm({.a = gate_in_.data(), .lda = 2 * d, .m = beams, .b = &layer.gate, .bias = layer.gate_b.data(),
                .c = gate_.data(), .ldc = d});
  kernels.sigmoid(beams * d, gate_.data());
  for (size_t i = 0; i < beams * d; ++i) x_[i] += (1 - gate_[i]) * near_[i] + gate_[i] * far_[i];
  for (size_t w = 0; gate_sum != nullptr && w < beams; ++w) {
    gate_sum[w] += std::accumulate(gate_.data() + w * d, gate_.data() + (w + 1) * d, 0.0) / static_cast<double>(d);
  }
}

void Decoder::AttendMemory(size_t index, size_t beams) {
  const size_t pages = (memory_->rows + kPageRows - 1) / kPageRows;
  views_.clear();
  for (size_t p = 0; p < pages; ++p) views_.push_back(memory_->pages[index * pages + p].view());
  const KeyRun all{0, static_cast<uint32_t>(memory_->rows), 0, KeyRun::kNoBias};
  AttendArgs args;
  args.queries = beams;
  args.heads = network_->shape_.kv_heads;
  args.shape = network_->shape_;
  args.q = q_.data();
  args.pages = views_;
  args.shared_runs = {&all, memory_->rows > 0 ? size_t{1} : size_t{0}};
  args.o = o_.data();
  args.lse = lse_.data();
  args.workspace = workspace_.data();
  Kernels().attend(args);
}

void Decoder::GroupBySet(std::span<const RetrievedSet* const> retrieved) {
  order_.resize(retrieved.size());
  std::iota(order_.begin(), order_.end(), 0u);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](uint32_t a, uint32_t b) { return std::less<>()(retrieved[a], retrieved[b]); });
  groups_.clear();
  for (size_t i = 0; i < order_.size(); ++i) {
    if (groups_.empty() || groups_.back().set != retrieved[order_[i]]) groups_.push_back({i, i, retrieved[order_[i]]});
    groups_.back().end = i + 1;
  }
}

void Decoder::AttendRetrieved(size_t index, size_t beams) {
  const size_t inner = network_->inner_, heads = network_->shape_.kv_heads;
  for (size_t i = 0; i < beams; ++i) std::copy_n(q_.data() + order_[i] * inner, inner, sorted_q_.data() + i * inner);
  for (const Group& group : groups_) {
    const RetrievedSet& set = *group.set;
    float* o = sorted_o_.data() + group.begin * inner;
    if (set.empty) {  // attention over nothing but pads
      for (size_t i = group.begin; i < group.end; ++i, o += inner) {
        std::copy_n(network_->pad_v_.data() + index * inner, inner, o);
      }
      continue;
    }
    const size_t pages = set.log_count.size() / kPageRows;
    views_.clear();
    log_w_.clear();
    for (size_t p = 0; p < pages; ++p) {
      views_.push_back(set.pages.empty() ? set.gathered[index * pages + p].view()
                                         : network_->token_pages_[index][set.pages[p]].view());
      log_w_.push_back(set.log_count.data() + p * kPageRows);
    }
    const KeyRun all{0, static_cast<uint32_t>(pages * kPageRows), 0, KeyRun::kNoBias};
    AttendArgs args;
    args.queries = group.end - group.begin;
    args.heads = heads;
    args.shape = network_->shape_;
    args.q = sorted_q_.data() + group.begin * inner;
    args.pages = views_;
    args.log_w = log_w_.data();
    args.shared_runs = {&all, 1};
    args.o = o;
    args.lse = lse_.data();
    args.workspace = workspace_.data();
    Kernels().attend(args);
  }
  for (size_t i = 0; i < beams; ++i) std::copy_n(sorted_o_.data() + i * inner, inner, o_.data() + order_[i] * inner);
}

std::vector<float> Decoder::SearchAttention(size_t w, const RetrievedSet& set) const {
  const size_t inner = network_->inner_, heads = network_->shape_.kv_heads, d_kv = network_->shape_.d_k;
  const size_t layer = network_->weights_.decoder.size() - 1, pages = set.log_count.size() / kPageRows;
  std::vector<float> mass(set.members.size()), logit(set.members.size() * heads), k(inner), v(inner);
  for (size_t i = 0; i < set.members.size(); ++i) {
    const size_t row = set.members[i].row, page = row / kPageRows;
    const PageView view = set.pages.empty() ? set.gathered[layer * pages + page].view()
                                            : network_->token_pages_[layer][set.pages[page]].view();
    ReadRow(network_->shape_, row % kPageRows, view, k.data(), v.data());
    for (size_t h = 0; h < heads; ++h) {
      const float* q = q_.data() + w * inner + h * d_kv;  // of the last layer still
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
