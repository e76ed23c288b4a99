#include "models/grab/token_net.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "features/tokenizer.h"
#include "kernels/dispatch.h"
#include "models/grab/weights.h"

namespace backstory::grab {
namespace {

constexpr float kEps = 1e-5f;

// Chan et al.: moments of two groups joined.
Moments Join(const Moments& a, size_t na, const Moments& b, size_t nb) {
  if (na == 0) return b;
  if (nb == 0) return a;
  const float n = static_cast<float>(na + nb), delta = b.mean - a.mean;
  return {a.mean + delta * (static_cast<float>(nb) / n),
          a.m2 + b.m2 + delta * delta * (static_cast<float>(na) * static_cast<float>(nb) / n)};
}

}  // namespace

// The first-layer weights by column of v, before they are split and packed.
struct TokenNet::Columns {
  std::vector<float> g, b, b1, bg;
  TensorView w1, wg;

  // Rows `from` of G [W1 | Wg].
  PackedMatrix Pack(const std::vector<size_t>& from, size_t hidden, size_t d) const {
    std::vector<float> rows;
    for (size_t column : from) {
      for (size_t j = 0; j < hidden; ++j) rows.push_back(g[column] * w1.data[column * hidden + j]);
      for (size_t j = 0; j < d; ++j) rows.push_back(g[column] * wg.data[column * d + j]);
    }
    return PackedMatrix(rows.data(), from.size(), hidden + d, hidden + d);
  }
};

absl::StatusOr<TokenNet> TokenNet::LoadPartial(const Config& config, const TensorMap& tensors) {
  return Load(config, tensors, "tok.p.", config.tokenizer.partial, {}, false, Dtype::kF32);
}

absl::StatusOr<TokenNet> TokenNet::LoadFull(const Config& config, const TensorMap& tensors, Dtype dtype) {
  return Load(config, tensors, "tok.f.", config.tokenizer.full, config.tokenizer.full_dense, true, dtype);
}

absl::StatusOr<TokenNet> TokenNet::Load(const Config& config, const TensorMap& tensors, const std::string& prefix,
                                        const std::vector<SparseFieldConfig>& sparse,
                                        const std::vector<DenseFieldConfig>& dense, bool split, Dtype dtype) {
  TokenNet net;
  net.tensors_ = tensors;
  net.embedding_ = static_cast<size_t>(config.embedding);
  net.hidden_ = static_cast<size_t>(config.gate_mlp_hidden);
  net.d_ = static_cast<size_t>(config.d);
  std::vector<size_t> user_columns, item_columns;
  size_t width = 0;
  for (const SparseFieldConfig& field : sparse) {
    const bool user = split && IsUserSide(field);
    auto table = tensors.Get(absl::StrCat("tok.table.", field.table), {int64_t{field.vocab}, config.embedding});
    if (!table.ok()) return table.status();
    (user ? net.user_ : net.item_).sparse.push_back({field.name, table->data, field.vocab});
    for (size_t i = 0; i < net.embedding_; ++i) (user ? user_columns : item_columns).push_back(width++);
  }
  for (const DenseFieldConfig& field : dense) {
    const bool user = split && IsUserSide(field);
    ++(user ? net.user_ : net.item_).dense;
    (user ? user_columns : item_columns).push_back(width++);
  }
  const int64_t v = static_cast<int64_t>(width), hidden = config.gate_mlp_hidden, d = config.d;
  Columns columns;
  for (auto [name, n, to] :
       {std::tuple{"ln.g", v, &columns.g}, std::tuple{"ln.b", v, &columns.b}, std::tuple{"b1", hidden, &columns.b1},
        std::tuple{"bg", d, &columns.bg}, std::tuple{"b2", d, &net.b2_}}) {
    auto vector = LoadVector(tensors, prefix + name, n);
    if (!vector.ok()) return vector.status();
    *to = std::move(*vector);
  }
  for (auto [name, n, to] : {std::tuple{"w1", hidden, &columns.w1}, std::tuple{"wg", d, &columns.wg}}) {
    auto view = tensors.Get(prefix + name, {v, n});
    if (!view.ok()) return view.status();
    *to = *view;
  }
  auto w2 = LoadMatrix(tensors, prefix + "w2", hidden, d, dtype);
  if (!w2.ok()) return w2.status();
  net.w2_ = std::move(*w2);

  net.user_.width = user_columns.size();
  net.item_.width = item_columns.size();
  net.user_.w = columns.Pack(user_columns, net.hidden_, net.d_);
  net.item_.w = columns.Pack(item_columns, net.hidden_, net.d_);
  for (size_t j = 0; j < net.hidden_ + net.d_; ++j) {
    const bool first = j < net.hidden_;
    const float* w = first ? columns.w1.data + j : columns.wg.data + (j - net.hidden_);
    const size_t stride = first ? net.hidden_ : net.d_;
    double sum = 0, bias = first ? columns.b1[j] : columns.bg[j - net.hidden_];
    for (size_t i = 0; i < width; ++i) {
      sum += static_cast<double>(columns.g[i]) * w[i * stride];
      bias += static_cast<double>(columns.b[i]) * w[i * stride];
    }
    net.column_sums_.push_back(static_cast<float>(sum));
    net.bias_.push_back(static_cast<float>(bias));
  }
  return net;
}

absl::Status TokenNet::Check(const Side& side, const TokenColumns& tokens, size_t first,
                             const std::string& what) const {
  if (tokens.sparse.size() != side.sparse.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", tokens.sparse.size(), " sparse columns, the model reads ", side.sparse.size()));
  }
  if (tokens.dense.size() != tokens.rows * side.dense) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", tokens.dense.size(), " dense values for ", tokens.rows,
                                                   " rows, the model reads ", side.dense, " a row"));
  }
  for (size_t f = 0; f < side.sparse.size(); ++f) {
    const SparseColumn& column = tokens.sparse[f];
    const std::string& name = side.sparse[f].name;
    if (column.offsets.size() != tokens.rows + 1 || column.offsets.front() != 0 ||
        column.offsets.back() != column.ids.size() ||
        !std::is_sorted(column.offsets.begin() + static_cast<ptrdiff_t>(first), column.offsets.end())) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": offsets of field '", name, "' do not fit its ids"));
    }
    for (size_t at = column.offsets[first]; at < column.ids.size(); ++at) {
      if (column.ids[at] >= side.sparse[f].vocab) {
        return absl::InvalidArgumentError(
            absl::StrCat(what, ": id ", column.ids[at], " of field '", name, "', vocab is ", side.sparse[f].vocab));
      }
    }
  }
  for (float value : tokens.dense) {
    if (!std::isfinite(value)) return absl::InvalidArgumentError(absl::StrCat(what, ": a dense value is not finite"));
  }
  return absl::OkStatus();
}

void TokenNet::Pool(const Side& side, const TokenColumns& tokens, size_t first, size_t rows, float* v) const {
  for (size_t f = 0; f < side.sparse.size(); ++f) {
    Kernels().embedding_bag({.table = side.sparse[f].table,
                             .width = embedding_,
                             .offsets = tokens.sparse[f].offsets.data() + first,
                             .ids = tokens.sparse[f].ids.data(),
                             .rows = rows,
                             .out = v + f * embedding_,
                             .out_stride = side.width});
  }
  for (size_t r = 0; r < rows; ++r) {
    std::copy_n(tokens.dense.data() + (first + r) * side.dense, side.dense,
                v + r * side.width + side.sparse.size() * embedding_);
  }
}

TokenNet::UserPart TokenNet::RunUser(const TokenColumns& user) const {
  UserPart part;
  part.product.assign(hidden_ + d_, 0.0f);
  if (user_.width == 0) return part;
  std::vector<float> v(user_.width);
  Pool(user_, user, 0, 1, v.data());
  part.moments = Kernels().moments(v.data(), user_.width);
  Kernels().gemm(
      {.a = v.data(), .lda = user_.width, .m = 1, .b = &user_.w, .c = part.product.data(), .ldc = hidden_ + d_});
  return part;
}

void TokenNet::Run(const UserPart& user, const TokenColumns& item, size_t first, size_t rows, float* e) const {
  const KernelTable& kernels = Kernels();
  const size_t n = hidden_ + d_;
  Arena arena(Arena::Padded(rows * item_.width) + Arena::Padded(rows * n), arenas_.get());
  float* const v = arena.Take(rows * item_.width);
  float* const a = arena.Take(rows * n);
  Pool(item_, item, first, rows, v);
  kernels.gemm({.a = v, .lda = item_.width, .m = rows, .b = &item_.w, .c = a, .ldc = n});
  for (size_t r = 0; r < rows; ++r) {
    const Moments moments =
        Join(user.moments, user_.width, kernels.moments(v + r * item_.width, item_.width), item_.width);
    const float rstd = 1.0f / std::sqrt(moments.m2 / static_cast<float>(user_.width + item_.width) + kEps);
    float* row = a + r * n;
    for (size_t j = 0; j < n; ++j) {
      row[j] = rstd * ((user.product[j] + row[j]) - moments.mean * column_sums_[j]) + bias_[j];
    }
    for (size_t j = 0; j < hidden_; ++j) row[j] = std::max(row[j], 0.0f);
  }
  kernels.gemm({.a = a, .lda = n, .m = rows, .b = &w2_, .bias = b2_.data(), .c = e, .ldc = d_});
  for (size_t r = 0; r < rows; ++r) kernels.sigmoid_gate(a + r * n + hidden_, d_, e + r * d_);
}

size_t TokenNet::Bytes() const {
  return user_.w.bytes() + item_.w.bytes() + w2_.bytes() + (2 * (hidden_ + d_) + d_) * sizeof(float);
}

}  // namespace backstory::grab
