#include "models/glass/weights.h"

#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace backstory::glass {
namespace {

// Reads tensors until one is wrong; what follows that is left empty.
class Reader {
 public:
  Reader(const Config& config, const TensorMap& tensors, Dtype precision)
      : config_(config), tensors_(tensors), precision_(precision) {}
  const absl::Status& status() const { return status_; }
  // Also a tensor that nothing has read is wrong.
  absl::Status Finish() const {
    if (!status_.ok() || read_.size() == tensors_.size()) return status_;
    for (const std::string& name : tensors_.Names()) {
      if (read_.contains(name)) continue;
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": the configuration calls for no such tensor"));
    }
    return absl::OkStatus();
  }

  // [out][in] matrices that read one input, side by side.
  PackedMatrix Matrix(std::initializer_list<std::string> names, int64_t out, int64_t in) {
    return Matrix(names, out, in, precision_);
  }
  PackedMatrix Matrix(std::initializer_list<std::string> names, int64_t out, int64_t in, Dtype precision) {
    const size_t n = static_cast<size_t>(out), k = static_cast<size_t>(in), count = names.size();
    std::vector<float> transposed(k * n * count);
    size_t part = 0;
    for (const std::string& name : names) {
      const TensorView view = Get(name, {out, in});
      if (view.data == nullptr) return {};
      for (size_t j = 0; j < n; ++j) {
        for (size_t i = 0; i < k; ++i) transposed[i * n * count + part * n + j] = view.data[j * k + i];
      }
      ++part;
    }
    return PackedMatrix(transposed.data(), k, n * count, n * count, precision);
  }

  AlignedFloats Values(const std::string& name, std::initializer_list<int64_t> shape) {
    const TensorView view = Get(name, shape);
    AlignedFloats values(view.size);
    if (view.size > 0) std::memcpy(values.data(), view.data, view.size * sizeof(float));
    return values;
  }

  FfnWeights Ffn(const std::string& prefix) {
    FfnWeights ffn;
    ffn.norm = Values(prefix + ".ffn.norm", {config_.d});
    ffn.w1 = Matrix({prefix + ".ffn.w1"}, config_.ffn, config_.d);
    ffn.w2 = Matrix({prefix + ".ffn.w2"}, config_.d, config_.ffn);
    return ffn;
  }

 private:
  TensorView Get(const std::string& name, std::initializer_list<int64_t> shape) {
    if (!status_.ok()) return {};
    absl::StatusOr<TensorView> view = tensors_.Get(name, shape);
    read_.insert(name);
    if (view.ok()) return *std::move(view);
    status_ = view.status();
    return {};
  }

  const Config& config_;
  const TensorMap& tensors_;
  const Dtype precision_;
  absl::Status status_;
  std::set<std::string> read_;
};

}  // namespace

absl::StatusOr<Weights> LoadWeights(const Config& config, const TensorMap& tensors, Dtype precision) {
  Reader read(config, tensors, precision);
  const int64_t d = config.d, inner = static_cast<int64_t>(config.inner()), vocabulary = config.vocabulary;
  const bool search = config.retrieved_items > 0;
  Weights w;
  w.embedding = read.Values("token_embedding", {vocabulary, d});
  w.head = read.Matrix({"token_embedding"}, vocabulary, d);
  if (config.bins() > 0) {
    w.tier1 = read.Matrix({"tier.w1"}, d, config.levels[0] * static_cast<int64_t>(config.bins()), Dtype::kF32);
    w.tier2 = read.Matrix({"tier.w2"}, d, d, Dtype::kF32);
    w.tier_b1 = read.Values("tier.b1", {d});
    w.tier_b2 = read.Values("tier.b2", {d});
  }
  if (search) {
    w.retrieved = read.Matrix({"retrieved.w"}, d, d, Dtype::kF32);
    w.retrieved_b = read.Values("retrieved.b", {d});
  }
  w.encoder_bias = read.Values("enc.0.self.rel_bias", {config.relative_buckets, config.heads});
  w.decoder_bias = read.Values("dec.0.self.rel_bias", {config.relative_buckets, config.heads});
  w.encoder_norm = read.Values("enc.final_norm", {d});
  w.decoder_norm = read.Values("dec.final_norm", {d});
  for (int i = 0; i < config.encoder_layers && read.status().ok(); ++i) {
    const std::string p = "enc." + std::to_string(i);
    EncoderLayer& layer = w.encoder.emplace_back();
    layer.norm = read.Values(p + ".self.norm", {d});
    layer.q = read.Matrix({p + ".self.q"}, inner, d);
    layer.kv = read.Matrix({p + ".self.k", p + ".self.v"}, inner, d);
    layer.o = read.Matrix({p + ".self.o"}, d, inner);
    layer.ffn = read.Ffn(p);
  }
  for (int i = 0; i < config.decoder_layers && read.status().ok(); ++i) {
    const std::string p = "dec." + std::to_string(i);
    DecoderLayer& layer = w.decoder.emplace_back();
    layer.norm = read.Values(p + ".self.norm", {d});
    layer.q = read.Matrix({p + ".self.q"}, inner, d);
    layer.kv = read.Matrix({p + ".self.k", p + ".self.v"}, inner, d);
    layer.o = read.Matrix({p + ".self.o"}, d, inner);
    layer.cross_norm = read.Values(p + ".cross.norm", {d});
    layer.memory_q = read.Matrix({p + ".memory.q"}, inner, d);
    layer.memory_kv = read.Matrix({p + ".memory.k", p + ".memory.v"}, inner, d);
    layer.memory_o = read.Matrix({p + ".memory.o"}, d, inner);
    if (search) {
      layer.retrieved_q = read.Matrix({p + ".retrieved.q"}, inner, d);
      layer.retrieved_kv = read.Matrix({p + ".retrieved.k", p + ".retrieved.v"}, inner, d);
      layer.retrieved_o = read.Matrix({p + ".retrieved.o"}, d, inner);
      layer.gate = read.Matrix({p + ".gate.w"}, d, 2 * d);
      layer.gate_b = read.Values(p + ".gate.b", {d});
    }
    layer.ffn = read.Ffn(p);
  }
  if (absl::Status status = read.Finish(); !status.ok()) return status;
  return w;
}

}  // namespace backstory::glass
