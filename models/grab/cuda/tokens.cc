#include "models/grab/cuda/tokens.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "features/tokenizer.h"
#include "kernels/dtype.h"
#include "models/grab/cuda/token_kernels.h"

namespace backstory::grab {
namespace {

#define RETURN_IF_ERROR(expression) \
  if (absl::Status status = (expression); !status.ok()) return status

size_t Size(int n) { return static_cast<size_t>(n); }
int Padded(int n) { return (n + 7) / 8 * 8; }

// Offsets of what travels to the card with every launch.
struct Layout {
  static constexpr size_t kUsersMax = 512;
  size_t ids_max, ranges, ids, dense, user, users, bytes;
  Layout(size_t rows, size_t fields, size_t dense_width, size_t user_floats) {
    size_t at = 0;
    const auto place = [&](size_t* to, size_t size) {
      *to = at;
      at += (size + 255) / 256 * 256;
    };
    ids_max = rows * std::max<size_t>(1, fields) * 8;
    place(&ranges, rows * fields * sizeof(CudaIdRange));
    place(&ids, ids_max * sizeof(uint32_t));
    place(&dense, rows * dense_width * sizeof(float));
    place(&user, rows * sizeof(int32_t));
    place(&users, kUsersMax * user_floats * sizeof(float));
    bytes = at;
  }
};

class TokenLane final : public CudaTokenLane {
 public:
  explicit TokenLane(const Layout& l) : layout(l) {}
  const Layout layout;
  CudaBuffer pinned, card;
  void *v = nullptr, *h = nullptr;
  float *moments = nullptr, *a = nullptr;
};

class Tokens final : public CudaTokens {
 public:
  Tokens(std::shared_ptr<CudaDevice> device, std::shared_ptr<CudaGemmLibrary> gemms, CudaTokenView view)
      : device_(std::move(device)), gemms_(std::move(gemms)), history_(view == CudaTokenView::kHistory) {}

  absl::Status Load(const Config& config, const TensorMap& tensors, int stride, size_t table_bytes_max);
  absl::StatusOr<std::unique_ptr<CudaTokenLane>> NewLane(size_t rows_max) const override;
  absl::Status Run(std::span<const CudaTokenSlice> slices, int rows, CudaTokenLane* lane, float* out, void* workspace,
                   void* stream) const override;

 private:
  struct Products {
    std::unique_ptr<CudaGemm> first, second;
  };
  absl::Status LoadTables(const Config& config, const TensorMap& tensors, size_t table_bytes_max);
  absl::Status LoadNetwork(const Config& config, const TensorMap& tensors);
  absl::Status Fill(std::span<const CudaTokenSlice> slices, size_t rows, TokenLane* lane, cudaStream_t stream) const;
  absl::StatusOr<const Products*> ProductsFor(int rows) const;
  size_t n() const { return Size(args_.hidden + args_.d); }
  const std::vector<SparseFieldConfig>& Sparse(const Config& config) const {
    return history_ ? config.tokenizer.partial : config.tokenizer.full;
  }
  bool OnUserSide(const auto& field) const { return !history_ && IsUserSide(field); }

  const std::shared_ptr<CudaDevice> device_;
  const std::shared_ptr<CudaGemmLibrary> gemms_;
  const bool history_;
  CudaTokenArgs args_;  // what does not change from launch to launch
  size_t plain_hidden_ = 0, plain_d_ = 0;
  CudaBuffer tables_, matrices_, vectors_;
  size_t w2_ = 0, b2_ = 0;
  mutable std::mutex mutex_;
  mutable std::map<int, Products> products_;  // guarded by mutex_; by rows
};

absl::Status Tokens::LoadTables(const Config& config, const TensorMap& tensors, size_t table_bytes_max) {
  std::map<std::string, size_t> at;
  size_t bytes = 0;
  std::vector<std::pair<const float*, size_t>> copies;
  std::vector<std::string> of_field;
  for (const SparseFieldConfig& field : Sparse(config)) {
    if (OnUserSide(field)) continue;
    of_field.push_back(field.table);
    if (at.contains(field.table)) continue;
    auto table = tensors.Get(absl::StrCat("tok.table.", field.table), {int64_t{field.vocab}, config.embedding});
    if (!table.ok()) return table.status();
    at[field.table] = bytes;
    copies.emplace_back(table->data, table->size * sizeof(float));
    bytes += (copies.back().second + 255) / 256 * 256;
  }
  if (bytes > table_bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat("their embedding tables have ", bytes, " bytes, at most ",
                                                     table_bytes_max, " go to the card"));
  }
  if (of_field.size() > kCudaTokenFields) {
    return absl::InvalidArgumentError(
        absl::StrCat(of_field.size(), " item fields, the card's tokenizer takes ", kCudaTokenFields));
  }
  auto tables = device_->Allocate(bytes, "embedding tables");
  if (!tables.ok()) return tables.status();
  tables_ = *std::move(tables);
  size_t to = 0;
  for (const auto& [from, size] : copies) {
    RETURN_IF_ERROR(
        device_->Check(cudaMemcpy(tables_.as<char>(to), from, size, cudaMemcpyHostToDevice), "copying tables"));
    to += (size + 255) / 256 * 256;
  }
  for (size_t f = 0; f < of_field.size(); ++f) args_.table[f] = tables_.as<float>(at[of_field[f]]);
  args_.fields = static_cast<int>(of_field.size());
  return absl::OkStatus();
}

absl::Status Tokens::LoadNetwork(const Config& config, const TensorMap& tensors) {
  // Columns of v in the model's order, and whose side each is on.
  std::vector<bool> user_side;
  for (const SparseFieldConfig& field : Sparse(config)) {
    user_side.insert(user_side.end(), Size(config.embedding), OnUserSide(field));
  }
  for (size_t f = 0; !history_ && f < config.tokenizer.full_dense.size(); ++f) {
    const DenseFieldConfig& field = config.tokenizer.full_dense[f];
    user_side.push_back(OnUserSide(field));
    args_.dense += !OnUserSide(field);
  }
  args_.user_columns = static_cast<int>(std::count(user_side.begin(), user_side.end(), true));
  args_.embedding = config.embedding;
  args_.v_stride = Padded(args_.fields * args_.embedding + args_.dense);
  if (args_.v_stride > 3072) return absl::InvalidArgumentError("the card's tokenizer takes 3072 item columns");
  const int64_t v = static_cast<int64_t>(user_side.size()), hidden = config.gate_mlp_hidden, d = config.d;
  absl::Status status;
  const auto get = [&](const char* name, std::vector<int64_t> shape) -> const float* {
    auto view = tensors.Get(absl::StrCat(history_ ? "tok.p." : "tok.f.", name), shape);
    if (!view.ok() && status.ok()) status = view.status();
    return view.ok() ? view->data : nullptr;
  };
  const float *g = get("ln.g", {v}), *b = get("ln.b", {v}), *w1 = get("w1", {v, hidden}), *b1 = get("b1", {hidden});
  const float *wg = get("wg", {v, d}), *bg = get("bg", {d}), *w2 = get("w2", {hidden, d}), *b2 = get("b2", {d});
  if (!status.ok()) return status;
  plain_hidden_ = static_cast<size_t>(hidden);
  plain_d_ = static_cast<size_t>(d);
  const size_t stride = Size(args_.v_stride), h = Size(args_.hidden);
  std::vector<uint16_t> matrices(n() * stride + Size(args_.d) * h);
  std::vector<float> vectors(2 * n() + Size(args_.d));
  w2_ = n() * stride;
  b2_ = 2 * n();
  for (const auto& [w, bias, width, first] : {std::tuple{w1, b1, plain_hidden_, size_t{0}}, {wg, bg, plain_d_, h}}) {
    for (size_t j = 0; j < width; ++j) {
      double sum = 0, offset = bias[j];
      size_t item = 0;
      for (size_t i = 0; i < user_side.size(); ++i) {
        const float weight = w[i * width + j];
        offset += static_cast<double>(b[i]) * weight;
        if (user_side[i]) {
          sum += static_cast<double>(g[i]) * weight;
        } else {
          matrices[(first + j) * stride + item++] = ToBf16(g[i] * weight);
        }
      }
      vectors[first + j] = static_cast<float>(sum);
      vectors[n() + first + j] = static_cast<float>(offset);
    }
  }
  for (size_t j = 0; j < plain_d_; ++j) {
    for (size_t i = 0; i < plain_hidden_; ++i) matrices[w2_ + j * h + i] = ToBf16(w2[i * plain_d_ + j]);
    vectors[b2_ + j] = b2[j];
  }
  const auto to_card = [&](const auto& from, CudaBuffer* to) -> absl::Status {
    auto buffer = device_->Allocate(from.size() * sizeof(from[0]), "the tokenizer's weights");
    if (!buffer.ok()) return buffer.status();
    *to = *std::move(buffer);
    return device_->Check(cudaMemcpy(to->data(), from.data(), to->bytes(), cudaMemcpyHostToDevice), "copying weights");
  };
  RETURN_IF_ERROR(to_card(matrices, &matrices_));
  RETURN_IF_ERROR(to_card(vectors, &vectors_));
  args_.column_sums = vectors_.as<float>();
  args_.bias = vectors_.as<float>() + n();
  return absl::OkStatus();
}

absl::Status Tokens::Load(const Config& config, const TensorMap& tensors, int stride, size_t table_bytes_max) {
  args_.hidden = Padded(config.gate_mlp_hidden);
  args_.d = stride;
  RETURN_IF_ERROR(LoadTables(config, tensors, table_bytes_max));
  return LoadNetwork(config, tensors);
}

absl::StatusOr<std::unique_ptr<CudaTokenLane>> Tokens::NewLane(size_t rows) const {
  auto lane = std::make_unique<TokenLane>(Layout(rows, Size(args_.fields), Size(args_.dense), 2 + n()));
  size_t bytes = lane->layout.bytes;
  std::vector<std::pair<void**, size_t>> places;
  const auto place = [&](auto** to, size_t size) {
    places.emplace_back(reinterpret_cast<void**>(to), bytes);
    bytes += (size + 255) / 256 * 256;
  };
  place(&lane->v, rows * Size(args_.v_stride) * 2);
  place(&lane->moments, rows * 2 * 4);
  place(&lane->a, rows * n() * 4);
  place(&lane->h, rows * Size(args_.hidden) * 2);
  auto card = device_->Allocate(bytes, "a tokenizer lane");
  if (!card.ok()) return card.status();
  lane->card = *std::move(card);
  for (const auto& [to, at] : places) *to = lane->card.as<char>(at);
  auto pinned = device_->Allocate(lane->layout.bytes, "a tokenizer lane's inputs", CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  lane->pinned = *std::move(pinned);
  return lane;
}

absl::Status Tokens::Fill(std::span<const CudaTokenSlice> slices, size_t rows, TokenLane* lane,
                          cudaStream_t stream) const {
  const Layout& l = lane->layout;
  const size_t fields = Size(args_.fields), dense = Size(args_.dense);
  auto* ranges = lane->pinned.as<CudaIdRange>(l.ranges);
  auto* ids = lane->pinned.as<uint32_t>(l.ids);
  auto* values = lane->pinned.as<float>(l.dense);
  auto* user = lane->pinned.as<int32_t>(l.user);
  auto* users = lane->pinned.as<float>(l.users);
  if (slices.size() > Layout::kUsersMax) {
    return absl::ResourceExhaustedError(absl::StrCat(slices.size(), " users in one launch"));
  }
  std::fill_n(ranges, rows * fields, CudaIdRange{});
  std::fill_n(values, rows * dense, 0.0f);
  std::fill_n(user, rows, 0);
  std::fill_n(users, 2 + n(), 0.0f);
  size_t id = 0;
  for (size_t s = 0; s < slices.size(); ++s) {
    const CudaTokenSlice& slice = slices[s];
    const TokenColumns& item = *slice.item;
    for (size_t f = 0; f < fields; ++f) {
      const SparseColumn& column = item.sparse[f];
      const size_t from = column.offsets[slice.first], to = column.offsets[slice.first + slice.count];
      if (id + (to - from) > l.ids_max) return absl::ResourceExhaustedError("too many ids in one launch");
      std::copy(column.ids.begin() + static_cast<ptrdiff_t>(from), column.ids.begin() + static_cast<ptrdiff_t>(to),
                ids + id);
      for (size_t r = 0; r < slice.count; ++r) {
        ranges[f * rows + slice.row + r] = {static_cast<uint32_t>(id + column.offsets[slice.first + r] - from),
                                            static_cast<uint32_t>(id + column.offsets[slice.first + r + 1] - from)};
      }
      id += to - from;
    }
    std::copy_n(item.dense.data() + slice.first * dense, slice.count * dense, values + slice.row * dense);
    std::fill_n(user + slice.row, slice.count, static_cast<int32_t>(s));
    float* part = users + s * (2 + n());
    std::fill_n(part, 2 + n(), 0.0f);
    part[0] = slice.user->moments.mean;
    part[1] = slice.user->moments.m2;
    std::copy_n(slice.user->product.data(), plain_hidden_, part + 2);
    std::copy_n(slice.user->product.data() + plain_hidden_, plain_d_, part + 2 + args_.hidden);
  }
  const auto copy = [&](size_t at, size_t bytes) {
    return bytes == 0 ? absl::OkStatus()
                      : device_->Check(cudaMemcpyAsync(lane->card.as<char>(at), lane->pinned.as<char>(at), bytes,
                                                       cudaMemcpyHostToDevice, stream),
                                       "uploading tokens");
  };
  RETURN_IF_ERROR(copy(l.ranges, rows * fields * sizeof(CudaIdRange)));
  RETURN_IF_ERROR(copy(l.ids, id * sizeof(uint32_t)));
  RETURN_IF_ERROR(copy(l.dense, rows * dense * sizeof(float)));
  RETURN_IF_ERROR(copy(l.user, rows * sizeof(int32_t)));
  return copy(l.users, std::max<size_t>(1, slices.size()) * (2 + n()) * sizeof(float));
}

absl::StatusOr<const Tokens::Products*> Tokens::ProductsFor(int rows) const {
  std::lock_guard lock(mutex_);
  Products& products = products_[rows];
  if (products.second != nullptr) return &products;
  auto first = CudaGemm::Create(gemms_, {.m = rows,
                                         .n = args_.hidden + args_.d,
                                         .k = args_.v_stride,
                                         .ldx = args_.v_stride,
                                         .ldy = args_.hidden + args_.d,
                                         .output_is_float = true});
  if (!first.ok()) return first.status();
  auto second = CudaGemm::Create(gemms_, {.m = rows,
                                          .n = args_.d,
                                          .k = args_.hidden,
                                          .ldx = args_.hidden,
                                          .ldy = args_.d,
                                          .output_is_float = true,
                                          .bias = true});
  if (!second.ok()) return second.status();
  products.first = *std::move(first);
  products.second = *std::move(second);
  return &products;
}

absl::Status Tokens::Run(std::span<const CudaTokenSlice> slices, int rows, CudaTokenLane* base, float* out,
                         void* workspace, void* stream) const {
  auto* lane = static_cast<TokenLane*>(base);
  const auto products = ProductsFor(rows);
  if (!products.ok()) return products.status();
  RETURN_IF_ERROR(Fill(slices, Size(rows), lane, static_cast<cudaStream_t>(stream)));
  CudaTokenArgs args = args_;
  args.rows = rows;
  const Layout& l = lane->layout;
  args.ranges = lane->card.as<CudaIdRange>(l.ranges);
  args.ids = lane->card.as<uint32_t>(l.ids);
  args.dense_values = lane->card.as<float>(l.dense);
  args.user = lane->card.as<int32_t>(l.user);
  args.users = lane->card.as<float>(l.users);
  args.v = lane->v, args.moments = lane->moments, args.a = lane->a, args.h = lane->h, args.e = out;
  RETURN_IF_ERROR(device_->CheckText(CudaPoolTokens(args, stream), "tokens"));
  RETURN_IF_ERROR((*products)->first->Run(lane->v, matrices_.data(), nullptr, lane->a, workspace, stream));
  RETURN_IF_ERROR(device_->CheckText(CudaTokenHidden(args, stream), "tokens"));
  RETURN_IF_ERROR((*products)->second->Run(lane->h, matrices_.as<uint16_t>() + w2_, vectors_.as<float>() + b2_, out,
                                           workspace, stream));
  return device_->CheckText(CudaGateTokens(args, stream), "tokens");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaTokens>> CudaTokens::Load(const Config& config, const TensorMap& tensors, int stride,
                                                             size_t table_bytes_max, std::shared_ptr<CudaDevice> device,
                                                             std::shared_ptr<CudaGemmLibrary> gemms,
                                                             CudaTokenView view) {
  auto tokens = std::make_unique<Tokens>(std::move(device), std::move(gemms), view);
  if (absl::Status status = tokens->Load(config, tensors, stride, table_bytes_max); !status.ok()) return status;
  return tokens;
}

}  // namespace backstory::grab
