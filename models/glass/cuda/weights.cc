#include "models/glass/cuda/weights.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/dispatch.h"
#include "kernels/dtype.h"
#include "models/glass/network.h"
#include "models/glass/weights.h"

namespace backstory::glass::cuda {
namespace {

constexpr int kHeadWidth = 32, kDMax = 96, kHeadsMax = 8, kSlotsMax = 256, kDensePlacesMax = 511;

int RoundUp(int value, int to) { return (value + to - 1) / to * to; }
size_t Size(int value) { return static_cast<size_t>(value); }

// One block of memory that pointers are set into once it exists.
class Block {
 public:
  void Add(const void* data, size_t bytes, const void* field) {
    const size_t at = host_.size();
    host_.resize((at + bytes + 255) / 256 * 256);
    std::memcpy(host_.data() + at, data, bytes);
    fields_.emplace_back(const_cast<void*>(field), at);
  }
  template <typename T>
  void Add(const std::vector<T>& values, const void* field) {
    Add(values.data(), values.size() * sizeof(T), field);
  }
  absl::StatusOr<grab::CudaBuffer> Upload(grab::CudaDevice* device) {
    auto memory = device->Allocate(host_.size(), "the weights of a generative version");
    if (!memory.ok()) return memory.status();
    for (const auto& [field, at] : fields_) {
      const void* there = memory->as<char>(at);
      std::memcpy(field, &there, sizeof(there));
    }
    const auto error = cudaMemcpy(memory->data(), host_.data(), host_.size(), cudaMemcpyHostToDevice);
    if (absl::Status status = device->Check(error, "copying weights"); !status.ok()) return status;
    return memory;
  }

 private:
  std::vector<char> host_;
  std::vector<std::pair<void*, size_t>> fields_;
};

class Packer {
 public:
  Packer(const Config& config, const TensorMap& tensors, const Weights& weights, int parts, CardWeights* out)
      : c_(config),
        tensors_(tensors),
        weights_(weights),
        parts_(parts),
        d_pad_(RoundUp(config.d, 32) == 64 ? 96 : RoundUp(config.d, 32)),
        out_(out),
        m_(out->model) {}

  absl::StatusOr<grab::CudaBuffer> Run(grab::CudaDevice* device) {
    Shape();
    Shared();
    for (int i = 0; i < c_.encoder_layers; ++i) Encoder(i);
    for (int i = 0; i < c_.decoder_layers; ++i) Decoder(i);
    MemoryKv();
    if (c_.retrieved_items > 0) Sets();
    return block_.Upload(device);
  }

 private:
  const float* Data(const std::string& name) const { return tensors_.Find(name)->data; }

  void Shape() {
    m_.parts = parts_, m_.d = c_.d, m_.d_pairs = d_pad_ / 32, m_.heads = c_.heads, m_.ffn = RoundUp(c_.ffn, 32);
    m_.vocabulary = c_.vocabulary, m_.slots = static_cast<int>(c_.slots());
    m_.bins_width = c_.levels[0] * static_cast<int>(c_.bins());
    m_.encoder_layers = c_.encoder_layers, m_.decoder_layers = c_.decoder_layers;
    m_.key_capacity = RoundUp(m_.slots, 32);
    for (size_t l = 0; l < kLevels; ++l) {
      m_.places += c_.levels[l];
      m_.levels[l] = c_.levels[l], m_.offset[l] = static_cast<int>(c_.offset(l));
    }
    m_.set_capacity = c_.retrieved_items > 0 && m_.places <= kDensePlacesMax ? RoundUp(m_.places + 1, 32) : 0;
    if (StepBytes(m_) > kSharedMax) m_.set_capacity = 0;
    m_.bos = static_cast<int>(c_.bos());
    m_.search = c_.retrieved_items > 0, m_.gate_reads_state = c_.gate_input == GateInput::kState;
    m_.first_step_epsilon = c_.first_step_epsilon;
  }

  // A row of d numbers, padded.
  void Row(const std::string& name, const void* field) {
    std::vector<float> row(Size(d_pad_));
    std::copy_n(Data(name), c_.d, row.begin());
    block_.Add(row, field);
  }
  void Columns(int n, int k, const Element& element, const void* field) {
    block_.Add(PackByColumns(n, k, parts_, element), field);
  }
  // Matrices [inner][d] of all heads, one after the other.
  Element Heads(std::vector<const float*> matrices) const {
    return [this, matrices = std::move(matrices)](int n, int k) {
      const int dim = n % kHeadWidth, head = n / kHeadWidth % c_.heads;
      if (dim >= c_.d_kv || k >= c_.d) return 0.0f;
      return matrices[Size(n / kHeadWidth / c_.heads)][Size((head * c_.d_kv + dim) * c_.d + k)];
    };
  }
  // A matrix [d][inner].
  Element Output(const float* matrix) const {
    return [this, matrix](int n, int k) {
      const int dim = k % kHeadWidth, head = k / kHeadWidth;
      return n < c_.d && dim < c_.d_kv ? matrix[Size(n) * c_.inner() + Size(head * c_.d_kv + dim)] : 0.0f;
    };
  }
  static Element Plain(const float* matrix, int n_true, int k_true) {
    return [=](int n, int k) { return n < n_true && k < k_true ? matrix[Size(n) * Size(k_true) + Size(k)] : 0.0f; };
  }
  int heads_width() const { return c_.heads * kHeadWidth; }

  void Shared() {
    std::vector<float> rows(Size(c_.vocabulary) * Size(d_pad_));
    for (int v = 0; v < c_.vocabulary; ++v) {
      std::copy_n(Data("token_embedding") + Size(v * c_.d), c_.d, rows.begin() + int64_t{v} * d_pad_);
    }
    block_.Add(rows, &m_.embedding);
    Columns(RoundUp(c_.vocabulary, 8), d_pad_, Plain(Data("token_embedding"), c_.vocabulary, c_.d), &m_.head);
    if (m_.bins_width > 0) {
      block_.Add(Data("tier.w1"), Size(c_.d * m_.bins_width) * 4, &m_.tier_w1);
      block_.Add(Data("tier.b1"), Size(c_.d) * 4, &m_.tier_b1);
      block_.Add(Data("tier.w2"), Size(c_.d * c_.d) * 4, &m_.tier_w2);
      block_.Add(Data("tier.b2"), Size(c_.d) * 4, &m_.tier_b2);
    }
    std::vector<float> encoder, decoder;
    for (int h = 0; h < c_.heads; ++h) {
      const auto bias = [&](const AlignedFloats& table, int distance) {
        return table[Size(RelativeBucket(distance, c_.relative_buckets, c_.relative_distance_max) * c_.heads + h)];
      };
      for (int u = 1 - m_.slots; u < m_.slots; ++u) encoder.push_back(bias(weights_.encoder_bias, u));
      for (int back = 0; back < 3; ++back) decoder.push_back(bias(weights_.decoder_bias, -back));
    }
    block_.Add(encoder, &m_.encoder_bias);
    block_.Add(decoder, &m_.decoder_bias);
    Row("enc.final_norm", &m_.encoder_norm);
    Row("dec.final_norm", &m_.decoder_norm);
  }

  template <typename Layer>
  void SelfAndFfn(const std::string& p, Layer* layer) {
    Row(p + ".self.norm", &layer->norm);
    Row(p + ".ffn.norm", &layer->ffn_norm);
    Columns(3 * heads_width(), d_pad_, Heads({Data(p + ".self.q"), Data(p + ".self.k"), Data(p + ".self.v")}),
            &layer->qkv);
    Columns(d_pad_, heads_width(), Output(Data(p + ".self.o")), &layer->o);
    Columns(m_.ffn, d_pad_, Plain(Data(p + ".ffn.w1"), c_.ffn, c_.d), &layer->w1);
    block_.Add(PackByRows(d_pad_, m_.ffn, parts_, Plain(Data(p + ".ffn.w2"), c_.d, c_.ffn)), &layer->w2);
  }
  void Encoder(int i) { SelfAndFfn("enc." + std::to_string(i), &m_.encoder[i]); }
  void Decoder(int i) {
    const std::string p = "dec." + std::to_string(i);
    DecoderLayerWeights& layer = m_.decoder[i];
    SelfAndFfn(p, &layer);
    Row(p + ".cross.norm", &layer.cross_norm);
    Columns(heads_width(), d_pad_, Heads({Data(p + ".memory.q")}), &layer.memory_q);
    Columns(d_pad_, heads_width(), Output(Data(p + ".memory.o")), &layer.memory_o);
    if (c_.retrieved_items == 0) return;
    Columns(heads_width(), d_pad_, Heads({Data(p + ".retrieved.q")}), &layer.retrieved_q);
    Columns(d_pad_, heads_width(), Output(Data(p + ".retrieved.o")), &layer.retrieved_o);
    const float* gate = Data(p + ".gate.w");
    Columns(
        d_pad_, 2 * d_pad_,
        [=, this](int n, int k) {
          const int half = k / d_pad_, of = k % d_pad_;
          return n < c_.d && of < c_.d ? gate[Size(n * 2 * c_.d + half * c_.d + of)] : 0.0f;
        },
        &layer.gate);
    Row(p + ".gate.b", &layer.gate_b);
  }
  void MemoryKv() {
    std::vector<uint16_t> all;
    for (int i = 0; i < c_.decoder_layers; ++i) {
      const std::string p = "dec." + std::to_string(i) + ".memory.";
      const auto layer = PackByColumns(2 * heads_width(), d_pad_, parts_, Heads({Data(p + "k"), Data(p + "v")}));
      all.insert(all.end(), layer.begin(), layer.end());
    }
    block_.Add(all, &m_.memory_kv);
  }

  // K and V of every token that a search can find, and of the pad.
  void Sets() {
    const size_t d = Size(c_.d), inner = c_.inner(), places = Size(m_.places) + 1;
    const KernelTable& kernels = Kernels();
    std::vector<float> embedded(places * d), rows(places * d), kv(places * 2 * inner);
    for (size_t place = 0; place < places; ++place) {
      size_t token = 0, of_level = place;
      for (size_t l = 0; l < kLevels && place + 1 < places; ++l) {
        token = c_.offset(l) + of_level;
        if (of_level < Size(c_.levels[l])) break;
        of_level -= Size(c_.levels[l]);
      }
      std::copy_n(Data("token_embedding") + token * d, d, embedded.begin() + static_cast<int64_t>(place * d));
    }
    kernels.gemm({.a = embedded.data(),
                  .lda = d,
                  .m = places,
                  .b = &weights_.retrieved,
                  .bias = weights_.retrieved_b.data(),
                  .c = rows.data(),
                  .ldc = d});
    for (int i = 0; i < c_.decoder_layers; ++i) {
      kernels.gemm({.a = rows.data(),
                    .lda = d,
                    .m = places,
                    .b = &weights_.decoder[Size(i)].retrieved_kv,
                    .c = kv.data(),
                    .ldc = 2 * inner});
      // Dimension `dim` of K (0) or V (1).
      const auto at = [&](size_t place, int head, int which, int dim) {
        return dim < c_.d_kv ? kv[place * 2 * inner + Size(which) * inner + Size(head * c_.d_kv + dim)] : 0.0f;
      };
      if (m_.set_capacity > 0) {
        Tables(places, at, &m_.decoder[i]);
        continue;
      }
      std::vector<float> wide(places * Size(c_.heads) * 2 * kHeadWidth);
      for (size_t x = 0; x < wide.size(); ++x) {
        const size_t place = x / (2 * kHeadWidth) / Size(c_.heads);
        wide[x] = at(place, static_cast<int>(x / (2 * kHeadWidth) % Size(c_.heads)),
                     static_cast<int>(x / kHeadWidth % 2), static_cast<int>(x % kHeadWidth));
      }
      block_.Add(wide, &m_.decoder[i].set_rows);
    }
  }
  template <typename At>
  void Tables(size_t places, const At& at, DecoderLayerWeights* layer) {
    const size_t capacity = Size(m_.set_capacity), parts = Size(parts_), part = capacity * kHeadWidth;
    std::vector<uint16_t> k(Size(c_.heads) * parts * part), vt(k.size()), split(parts);
    const auto in_32 = [](size_t i) { return i / 2 % 4 * 8 + i / 8 * 2 + i % 2; };  // attend.cuh
    for (int head = 0; head < c_.heads; ++head) {
      for (size_t place = 0; place < places; ++place) {
        for (size_t dim = 0; dim < kHeadWidth; ++dim) {
          SplitToBf16(at(place, head, 0, static_cast<int>(dim)), parts_, split.data());
          for (size_t s = 0; s < parts; ++s)
            k[(Size(head) * parts + s) * part + place * kHeadWidth + in_32(dim)] = split[s];
          SplitToBf16(at(place, head, 1, static_cast<int>(dim)), parts_, split.data());
          for (size_t s = 0; s < parts; ++s) {
            vt[(Size(head) * parts + s) * part + dim * capacity + place / 32 * 32 + in_32(place % 32)] = split[s];
          }
        }
      }
    }
    block_.Add(k, &layer->set_k);
    block_.Add(vt, &layer->set_vt);
  }

  const Config& c_;
  const TensorMap& tensors_;
  const Weights& weights_;
  const int parts_, d_pad_;
  CardWeights* out_;
  Model& m_;
  Block block_;
};

absl::Status CheckFits(const Config& c) {
  const auto refuse = [](const char* field, int value, int limit) {
    return absl::FailedPreconditionError(
        absl::StrCat("field ", field, " is ", value, ", the card's kernels take at most ", limit));
  };
  if (c.d > kDMax) return refuse("d", c.d, kDMax);
  if (c.d_kv > kHeadWidth) return refuse("d_kv", c.d_kv, kHeadWidth);
  if (c.heads > kHeadsMax) return refuse("heads", c.heads, kHeadsMax);
  if (c.encoder_layers > kLayersMax) return refuse("encoder_layers", c.encoder_layers, kLayersMax);
  if (c.decoder_layers > kLayersMax) return refuse("decoder_layers", c.decoder_layers, kLayersMax);
  if (c.slots() > kSlotsMax) return refuse("short_items", c.short_items, (kSlotsMax - 1) / 3);
  return absl::OkStatus();
}

}  // namespace

void SplitToBf16(float value, int parts, uint16_t* out) {
  for (int s = 0; s < parts; ++s) {
    out[s] = ToBf16(value);
    value -= FromBf16(out[s]);
  }
}

std::vector<uint16_t> PackByColumns(int n, int k, int parts, const Element& element) {
  std::vector<uint16_t> packed(Size(n) * Size(k) * Size(parts)), split(Size(parts));
  for (int row = 0; row < n; ++row) {
    for (int column = 0; column < k; ++column) {
      const int lane = row % 8 * 4 + column % 8 / 2, in_lane = column % 32 / 8 * 2 + column % 2;
      SplitToBf16(element(row, column), parts, split.data());
      for (int s = 0; s < parts; ++s) {
        packed[((Size(row / 8) * Size(k / 32) + Size(column / 32)) * Size(parts) + Size(s)) * 256 +
               Size(lane * 8 + in_lane)] = split[Size(s)];
      }
    }
  }
  return packed;
}

std::vector<uint16_t> PackByRows(int n, int k, int parts, const Element& element) {
  std::vector<uint16_t> packed(Size(n) * Size(k) * Size(parts)), split(Size(parts));
  for (int row = 0; row < n; ++row) {
    for (int column = 0; column < k; ++column) {
      const int lane = row % 8 * 4 + column % 8 / 2, in_lane = row % 16 / 8 * 4 + column % 16 / 8 * 2 + column % 2;
      SplitToBf16(element(row, column), parts, split.data());
      for (int s = 0; s < parts; ++s) {
        packed[((Size(column / 16) * Size(n / 16) + Size(row / 16)) * Size(parts) + Size(s)) * 256 +
               Size(lane * 8 + in_lane)] = split[Size(s)];
      }
    }
  }
  return packed;
}

absl::StatusOr<std::unique_ptr<CardWeights>> UploadWeights(const Config& config, const TensorMap& tensors, int parts,
                                                           grab::CudaDevice* device) {
  if (absl::Status status = CheckFits(config); !status.ok()) return status;
  absl::StatusOr<Weights> weights = LoadWeights(config, tensors);
  if (!weights.ok()) return weights.status();
  auto card = std::make_unique<CardWeights>();
  card->model = {};
  auto memory = Packer(config, tensors, *weights, parts, card.get()).Run(device);
  if (!memory.ok()) return memory.status();
  card->memory = *std::move(memory);
  return card;
}

}  // namespace backstory::glass::cuda
