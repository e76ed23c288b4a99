#include "models/grab/weights.h"

#include "absl/strings/str_cat.h"

namespace backstory::grab {
namespace {

// Loads in sequence and keeps the first error, so that the list of tensors below reads as a list.
class Reader {
 public:
  Reader(const TensorMap& tensors, std::string prefix, Dtype dtype)
      : tensors_(tensors), prefix_(std::move(prefix)), dtype_(dtype) {}

  void Matrix(const char* name, int64_t k, int64_t n, PackedMatrix* to) {
    if (!status_.ok()) return;
    auto matrix = LoadMatrix(tensors_, absl::StrCat(prefix_, name), k, n, dtype_);
    status_ = matrix.status();
    if (matrix.ok()) *to = std::move(*matrix);
  }
  void Vector(const char* name, int64_t n, std::vector<float>* to) {
    if (!status_.ok()) return;
    auto vector = LoadVector(tensors_, absl::StrCat(prefix_, name), n);
    status_ = vector.status();
    if (vector.ok()) *to = std::move(*vector);
  }
  void Codebook(const char* name, int64_t rows, int64_t width, std::vector<float>* to) {
    if (!status_.ok()) return;
    auto view = tensors_.Get(absl::StrCat(prefix_, name), {rows, width});
    status_ = view.status();
    if (view.ok()) to->assign(view->data, view->data + view->size);
  }
  const absl::Status& status() const { return status_; }

 private:
  const TensorMap& tensors_;
  std::string prefix_;
  Dtype dtype_;  // of matrices
  absl::Status status_;
};

PackedMatrix PackBiasCodes(const std::vector<float>& pos, const std::vector<float>& time, size_t n_pos, size_t n_time,
                           size_t d_head, Dtype dtype) {
  const size_t n = n_pos + n_time;
  std::vector<float> columns(d_head * n);
  for (size_t i = 0; i < d_head; ++i) {
    for (size_t p = 0; p < n_pos; ++p) columns[i * n + (n_pos - 1 - p)] = pos[p * d_head + i];
    for (size_t t = 0; t < n_time; ++t) columns[i * n + n_pos + t] = time[t * d_head + i];
  }
  return PackedMatrix(columns.data(), d_head, n, n, dtype);
}

absl::StatusOr<LayerWeights> LoadLayer(const Config& c, const TensorMap& tensors, const std::string& prefix,
                                       Dtype dtype) {
  const int64_t inner = c.latent > 0 ? c.latent : c.d, wide = int64_t{c.heads} * c.d_head;
  LayerWeights w;
  Reader read(tensors, prefix, dtype);
  if (c.latent > 0) read.Matrix("wd", c.d, c.latent, &w.wd.emplace());
  read.Matrix("wq", inner, wide, &w.wq);
  read.Matrix("wk", inner, wide, &w.wk);
  read.Matrix("wv", inner, wide, &w.wv);
  read.Matrix("wo", wide, c.d, &w.wo);
  read.Matrix("w1", c.d, c.ffn, &w.w1);
  read.Vector("b1", c.ffn, &w.b1);
  read.Matrix("w2", c.ffn, c.d, &w.w2);
  read.Vector("b2", c.d, &w.b2);
  read.Vector("n1.g", c.d, &w.n1_g);
  read.Vector("n1.b", c.d, &w.n1_b);
  read.Vector("n2.g", c.d, &w.n2_g);
  read.Vector("n2.b", c.d, &w.n2_b);
  std::vector<float> pos, time;
  read.Codebook("bpos", c.n_pos, c.d_head, &pos);
  read.Codebook("btime", c.n_time, c.d_head, &time);
  read.Codebook("bact", c.n_act, c.d_head, &w.bact);
  if (!read.status().ok()) return read.status();
  const size_t n_pos = static_cast<size_t>(c.n_pos), n_time = static_cast<size_t>(c.n_time),
               d_head = static_cast<size_t>(c.d_head);
  w.bias_codes = PackBiasCodes(pos, time, n_pos, n_time, d_head, dtype);
  std::vector<float> ends(pos.begin(), pos.begin() + c.d_head);  // of rank 0 and of every rank from n_pos - 1 on
  ends.insert(ends.end(), pos.end() - c.d_head, pos.end());
  w.far_codes = PackBiasCodes(ends, time, kFarPositions, n_time, d_head, dtype);
  w.fold_codes = FoldCodes(pos.data(), n_pos, time.data(), n_time, d_head);
  return w;
}

size_t BytesOf(const LayerWeights& w) {
  size_t bytes = w.fold_codes.bytes() + (w.wd.has_value() ? w.wd->bytes() : 0);
  for (const PackedMatrix* m : {&w.wq, &w.wk, &w.wv, &w.wo, &w.w1, &w.w2, &w.bias_codes, &w.far_codes})
    bytes += m->bytes();
  for (const auto* v : {&w.b1, &w.b2, &w.n1_g, &w.n1_b, &w.n2_g, &w.n2_b, &w.bact}) bytes += v->size() * sizeof(float);
  return bytes;
}

}  // namespace

absl::StatusOr<PackedMatrix> LoadMatrix(const TensorMap& tensors, const std::string& name, int64_t k, int64_t n,
                                        Dtype dtype) {
  auto view = tensors.Get(name, {k, n});
  if (!view.ok()) return view.status();
  return PackedMatrix(view->data, static_cast<size_t>(k), static_cast<size_t>(n), static_cast<size_t>(n), dtype);
}

absl::StatusOr<std::vector<float>> LoadVector(const TensorMap& tensors, const std::string& name, int64_t n) {
  auto view = tensors.Get(name, {n});
  if (!view.ok()) return view.status();
  return std::vector<float>(view->data, view->data + view->size);
}

absl::StatusOr<StackWeights> LoadStackWeights(const Config& c, const TensorMap& tensors, Dtype layers) {
  StackWeights w;
  const int64_t channels = c.channels(), tasks = static_cast<int64_t>(c.tasks.size());
  for (int l = 0; l < c.layers; ++l) {
    auto& layer = w.layers.emplace_back();
    for (int channel = 0; channel < channels; ++channel) {
      auto loaded = LoadLayer(c, tensors, absl::StrCat("w.l", l, ".c", channel, "."), layers);
      if (!loaded.ok()) return loaded.status();
      layer.push_back(std::move(*loaded));
    }
    if (!c.target_mixing) continue;
    GateWeights& gate = w.gates.emplace_back();
    Reader read(tensors, absl::StrCat("w.l", l, ".gate."), Dtype::kF32);
    read.Matrix("w", channels * c.d, channels, &gate.w);
    read.Vector("b", channels, &gate.b);
    if (!read.status().ok()) return read.status();
  }
  Reader read_first(tensors, "w.head.", layers), read(tensors, "w.head.", Dtype::kF32);
  read_first.Matrix("w1", channels * c.d, c.head_hidden, &w.head_w1);
  read.Vector("b1", c.head_hidden, &w.head_b1);
  read.Matrix("w2", c.head_hidden, tasks, &w.head_w2);
  read.Vector("b2", tasks, &w.head_b2);
  if (!read_first.status().ok()) return read_first.status();
  if (!read.status().ok()) return read.status();
  return w;
}

size_t StackWeights::Bytes() const {
  size_t bytes = head_w1.bytes() + head_w2.bytes() + (head_b1.size() + head_b2.size()) * sizeof(float);
  for (const auto& layer : layers) {
    for (const LayerWeights& w : layer) bytes += BytesOf(w);
  }
  for (const GateWeights& gate : gates) bytes += gate.w.bytes() + gate.b.size() * sizeof(float);
  return bytes;
}

}  // namespace backstory::grab
