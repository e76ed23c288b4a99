#include "models/grab/cuda/weights.h"

#include <cuda_runtime.h>

#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"

namespace backstory::grab {
namespace {

constexpr size_t kAlign = 64;  // elements between tensors: base addresses of 128 bytes

int Padded(int n) { return (n + 7) / 8 * 8; }

// Gathers the tensors in host memory; keeps the first error.
class Packer {
 public:
  Packer(const Config& config, const TensorMap& tensors, const CudaWidths& widths)
      : config_(config), tensors_(tensors), w_(widths) {}

  void Run(CudaWeights* out) {
    for (int l = 0; l < w_.layers; ++l) out->layers.push_back(Layer(l));
    out->pos = Codebooks("bpos", w_.n_pos);
    out->time = Codebooks("btime", w_.n_time);
    out->act = Codebooks("bact", w_.n_act);
    Codes(out);
    Head(out);
  }

  absl::Status status = absl::OkStatus();
  std::vector<uint16_t> matrices;
  std::vector<float> vectors;

 private:
  const float* Get(const std::string& name, std::vector<int64_t> shape) {
    if (!status.ok()) return nullptr;
    auto view = tensors_.Get(name, shape);
    if (!view.ok()) status = view.status();
    return view.ok() ? view->data : nullptr;
  }
  std::string Name(int layer, int channel, const char* name) const {
    return absl::StrCat("w.l", layer, ".c", channel, ".", name);
  }
  template <typename T>
  static size_t Room(std::vector<T>* to, size_t size) {
    const size_t at = (to->size() + kAlign - 1) / kAlign * kAlign;
    to->resize(at + size, T{});
    return at;
  }

  // Transposes a [k][n] tensor into [n_padded][k_padded] at `at`. A width of heads x d_head is spread to heads x d_h.
  void Transpose(const float* from, int k, int n, bool k_heads, bool n_heads, int k_stride, size_t at) {
    if (from == nullptr) return;
    const auto spread = [&](int i, bool heads) { return heads ? i / w_.d_head * w_.d_h + i % w_.d_head : i; };
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j < n; ++j) {
        matrices[at + static_cast<size_t>(spread(j, n_heads)) * k_stride + spread(i, k_heads)] =
            ToBf16(from[static_cast<size_t>(i) * n + j]);
      }
    }
  }

  size_t Matrices(int layer, const char* name, int k, int n, int k_stride, int n_padded, bool k_heads, bool n_heads) {
    const size_t one = static_cast<size_t>(k_stride) * n_padded;
    const size_t at = Room(&matrices, one * w_.channels);
    for (int c = 0; c < w_.channels; ++c) {
      Transpose(Get(Name(layer, c, name), {k, n}), k, n, k_heads, n_heads, k_stride, at + one * c);
    }
    return at;
  }

  size_t Vectors(int layer, const char* name, int n, int padded) {
    const size_t at = Room(&vectors, static_cast<size_t>(padded) * w_.channels);
    for (int c = 0; c < w_.channels; ++c) {
      const float* from = Get(Name(layer, c, name), {n});
      for (int i = 0; from != nullptr && i < n; ++i) vectors[at + static_cast<size_t>(padded) * c + i] = from[i];
    }
    return at;
  }

  // Q, K, V one below the other, and what is added to K: the self key's biases.
  void Qkv(int layer, CudaLayerOffsets* o) {
    const int k = config_.latent > 0 ? config_.latent : config_.d, n = config_.heads * config_.d_head;
    const size_t part = static_cast<size_t>(w_.wide) * w_.inner;
    o->wqkv = Room(&matrices, 3 * part * w_.channels);
    o->qkv_b = Room(&matrices, size_t{3} * w_.wide * w_.channels);
    o->wbias = Room(&matrices, static_cast<size_t>(w_.heads) * w_.segments * w_.inner * w_.channels);
    for (int c = 0; c < w_.channels; ++c) {
      const char* names[] = {"wq", "wk", "wv"};
      const float* wq = Get(Name(layer, c, "wq"), {k, n});
      for (int i = 0; i < 3; ++i) {
        Transpose(Get(Name(layer, c, names[i]), {k, n}), k, n, false, true, w_.inner, o->wqkv + (3 * c + i) * part);
      }
      const float* pos = Get(Name(layer, c, "bpos"), {config_.n_pos, config_.d_head});
      const float* time = Get(Name(layer, c, "btime"), {config_.n_time, config_.d_head});
      const float* act = Get(Name(layer, c, "bact"), {config_.n_act, config_.d_head});
      if (!status.ok()) return;
      for (int h = 0; h < w_.heads; ++h) {
        for (int i = 0; i < w_.d_head; ++i) {
          matrices[o->qkv_b + static_cast<size_t>(3 * c + 1) * w_.wide + h * w_.d_h + i] =
              ToBf16(pos[i] + time[i] + act[(config_.n_act - 1) * w_.d_head + i]);
        }
        SegmentRows(wq, pos + (w_.n_pos - 1) * w_.d_head, time, k, n, h,
                    o->wbias + static_cast<size_t>(c * w_.heads + h) * w_.segments * w_.inner);
      }
    }
  }

  // Row t of head h: Wq (Bpos[last] + Btime[t]), so that the bias of segment t is one product with the layer's input.
  void SegmentRows(const float* wq, const float* pos, const float* time, int k, int n, int h, size_t at) {
    for (int t = 0; t < w_.n_time; ++t) {
      for (int i = 0; i < k; ++i) {
        double sum = 0;
        for (int x = 0; x < w_.d_head; ++x) {
          sum += double{wq[static_cast<size_t>(i) * n + h * w_.d_head + x]} * (pos[x] + time[t * w_.d_head + x]);
        }
        matrices[at + static_cast<size_t>(t) * w_.inner + i] = ToBf16(static_cast<float>(sum));
      }
    }
  }

  CudaLayerOffsets Layer(int l) {
    CudaLayerOffsets o;
    const int wide = config_.heads * config_.d_head;
    if (w_.latent > 0) o.wd = Matrices(l, "wd", w_.d, w_.latent, w_.stride, w_.inner, false, false);
    Qkv(l, &o);
    o.wo = Matrices(l, "wo", wide, w_.d, w_.wide, w_.stride, true, false);
    o.w1 = Matrices(l, "w1", w_.d, config_.ffn, w_.stride, w_.ffn, false, false);
    o.w2 = Matrices(l, "w2", config_.ffn, w_.d, w_.ffn, w_.stride, false, false);
    o.b1 = Room(&matrices, static_cast<size_t>(w_.ffn) * w_.channels);
    for (int c = 0; c < w_.channels; ++c) {
      const float* b1 = Get(Name(l, c, "b1"), {config_.ffn});
      for (int i = 0; b1 != nullptr && i < config_.ffn; ++i) {
        matrices[o.b1 + static_cast<size_t>(w_.ffn) * c + i] = ToBf16(b1[i]);
      }
    }
    o.b2 = Vectors(l, "b2", w_.d, w_.stride);
    o.n1_g = Vectors(l, "n1.g", w_.d, w_.stride);
    o.n1_b = Vectors(l, "n1.b", w_.d, w_.stride);
    o.n2_g = Vectors(l, "n2.g", w_.d, w_.stride);
    o.n2_b = Vectors(l, "n2.b", w_.d, w_.stride);
    if (!config_.target_mixing) return o;
    o.gate_w = Room(&vectors, static_cast<size_t>(w_.channels) * w_.channels * w_.stride);
    o.gate_b = Room(&vectors, w_.channels);
    const float* w = Get(absl::StrCat("w.l", l, ".gate.w"), {int64_t{w_.channels} * w_.d, w_.channels});
    const float* b = Get(absl::StrCat("w.l", l, ".gate.b"), {w_.channels});
    if (!status.ok()) return o;
    for (int from = 0; from < w_.channels; ++from) {
      for (int gate = 0; gate < w_.channels; ++gate) {
        for (int i = 0; i < w_.d; ++i) {
          vectors[o.gate_w + static_cast<size_t>(from * w_.channels + gate) * w_.stride + i] =
              w[static_cast<size_t>(from * w_.d + i) * w_.channels + gate];
        }
      }
      vectors[o.gate_b + from] = b[from];
    }
    return o;
  }

  size_t Codebooks(const char* name, int rows) {
    const size_t one = static_cast<size_t>(rows) * w_.d_h;
    const size_t at = Room(&vectors, one * w_.layers * w_.channels);
    for (int l = 0; l < w_.layers; ++l) {
      for (int c = 0; c < w_.channels; ++c) {
        const float* from = Get(Name(l, c, name), {rows, w_.d_head});
        if (from == nullptr) return at;
        for (int r = 0; r < rows; ++r) {
          for (int i = 0; i < w_.d_head; ++i) {
            vectors[at + (static_cast<size_t>(l) * w_.channels + c) * one + static_cast<size_t>(r) * w_.d_h + i] =
                from[r * w_.d_head + i];
          }
        }
      }
    }
    return at;
  }

  // The fp32 codebooks once more, joined, for products with history rows' queries.
  void Codes(CudaWeights* out) {
    const size_t one = static_cast<size_t>(w_.table) * w_.d_h;
    out->codes = Room(&matrices, one * w_.layers * w_.channels);
    if (!status.ok()) return;
    for (int lc = 0; lc < w_.layers * w_.channels; ++lc) {
      for (const auto& [from, rows, first] : {std::tuple{out->pos, w_.n_pos, 0}, {out->time, w_.n_time, w_.n_pos}}) {
        for (int i = 0; i < rows * w_.d_h; ++i) {
          matrices[out->codes + lc * one + static_cast<size_t>(first) * w_.d_h + i] =
              ToBf16(vectors[from + static_cast<size_t>(lc) * rows * w_.d_h + i]);
        }
      }
    }
  }

  void Head(CudaWeights* out) {
    const int hidden = config_.head_hidden, tasks = w_.tasks;
    const float* w1 = Get("w.head.w1", {int64_t{w_.channels} * w_.d, hidden});
    const float* b1 = Get("w.head.b1", {hidden});
    const float* w2 = Get("w.head.w2", {hidden, tasks});
    const float* b2 = Get("w.head.b2", {tasks});
    if (!status.ok()) return;
    const size_t width = static_cast<size_t>(w_.channels) * w_.stride;
    out->head_w1 = Room(&matrices, width * w_.hidden);
    out->head_b1 = Room(&vectors, w_.hidden);
    out->head_w2 = Room(&vectors, static_cast<size_t>(tasks) * w_.hidden);
    out->head_b2 = Room(&vectors, tasks);
    for (int j = 0; j < hidden; ++j) {
      for (int c = 0; c < w_.channels; ++c) {
        for (int i = 0; i < w_.d; ++i) {
          matrices[out->head_w1 + j * width + static_cast<size_t>(c) * w_.stride + i] =
              ToBf16(w1[static_cast<size_t>(c * w_.d + i) * hidden + j]);
        }
      }
      vectors[out->head_b1 + j] = b1[j];
      for (int t = 0; t < tasks; ++t) {
        vectors[out->head_w2 + static_cast<size_t>(t) * w_.hidden + j] = w2[static_cast<size_t>(j) * tasks + t];
      }
    }
    for (int t = 0; t < tasks; ++t) vectors[out->head_b2 + t] = b2[t];
  }

  const Config& config_;
  const TensorMap& tensors_;
  const CudaWidths& w_;
};

template <typename T>
absl::StatusOr<CudaBuffer> ToCard(const std::vector<T>& from, CudaDevice* device) {
  auto buffer = device->Allocate(from.size() * sizeof(T), "weights");
  if (!buffer.ok()) return buffer.status();
  const cudaError_t copied = cudaMemcpy(buffer->data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice);
  if (absl::Status status = device->Check(copied, "copying weights"); !status.ok()) return status;
  return buffer;
}

}  // namespace

absl::StatusOr<CudaWidths> CudaWidthsOf(const Config& c) {
  if (c.d_head > 128) {
    return absl::InvalidArgumentError(absl::StrCat("d_head ", c.d_head, ": the card's attention takes at most 128"));
  }
  CudaWidths w;
  w.channels = c.channels();
  w.layers = c.layers;
  w.heads = c.heads;
  w.tasks = static_cast<int>(c.tasks.size());
  w.d = c.d;
  w.stride = Padded(c.d);
  w.d_head = c.d_head;
  w.d_h = c.d_head <= 64 ? 64 : 128;
  w.wide = w.heads * w.d_h;
  w.latent = c.latent;
  w.inner = Padded(c.latent > 0 ? c.latent : c.d);
  w.ffn = Padded(c.ffn);
  w.hidden = Padded(c.head_hidden);
  w.segments = Padded(c.n_time);
  w.n_pos = c.n_pos;
  w.n_time = c.n_time;
  w.n_act = c.n_act;
  w.table = Padded(c.n_pos + c.n_time);
  if (w.channels > 32 || w.channels * w.stride > 24 << 10) {
    return absl::InvalidArgumentError(
        absl::StrCat(w.channels, " channels of d ", c.d, ": the card's row kernels take 24576 values a row"));
  }
  if (c.n_pos > 65536 || c.n_time > 32767) return absl::InvalidArgumentError("n_pos or n_time beyond 65536 or 32767");
  return w;
}

absl::StatusOr<CudaWeights> LoadCudaWeights(const Config& config, const TensorMap& tensors, CudaDevice* device) {
  auto widths = CudaWidthsOf(config);
  if (!widths.ok()) return widths.status();
  CudaWeights weights;
  weights.widths = *widths;
  Packer packer(config, tensors, weights.widths);
  packer.Run(&weights);
  if (!packer.status.ok()) return packer.status;
  auto matrices = ToCard(packer.matrices, device);
  if (!matrices.ok()) return matrices.status();
  auto vectors = ToCard(packer.vectors, device);
  if (!vectors.ok()) return vectors.status();
  weights.matrices = *std::move(matrices);
  weights.vectors = *std::move(vectors);
  return weights;
}

}  // namespace backstory::grab
