#include "models/grab/cuda/tokens.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
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

// What travels to the card with every launch, packed for its number of rows so that one copy takes it along.
struct Layout {
  static constexpr size_t kUsersMax = 512, kIdsOfField = 8;  // ids: of a row's field, on average
  size_t ranges, dense, user, users, ids, bytes;
  Layout(size_t rows, size_t fields, size_t dense_width, size_t user_floats, size_t user_count, size_t id_count) {
    size_t at = 0;
    const auto place = [&](size_t* to, size_t size) {
      *to = at;
      at += (size + 15) / 16 * 16;
    };
    place(&ranges, rows * fields * sizeof(CudaIdRange));
    place(&dense, rows * dense_width * sizeof(float));
    place(&user, rows * sizeof(int32_t));
    place(&users, std::max<size_t>(1, user_count) * user_floats * sizeof(float));
    place(&ids, id_count * sizeof(uint32_t));
    bytes = at;
  }
};

class TokenLane final : public CudaTokenLane {
 public:
  explicit TokenLane(size_t most_ids, size_t most_bytes) : ids_max(most_ids), bytes_max(most_bytes) {}
  const size_t ids_max, bytes_max;
  CudaBuffer pinned, card;
  void *v = nullptr, *h = nullptr;
  float *moments = nullptr, *a = nullptr;
};

class Tokens final : public CudaTokens {
 public:
  Tokens(std::shared_ptr<CudaDevice> device, std::shared_ptr<CudaGemmLibrary> gemms)
      : device_(std::move(device)), gemms_(std::move(gemms)) {}

  absl::Status Load(View view, const Config& config, const TensorMap& tensors, int stride,
                    std::shared_ptr<CudaTokenTables> tables);
  absl::StatusOr<std::unique_ptr<CudaTokenLane>> NewLane(size_t rows_max) const override;
  absl::Status Run(std::span<const CudaTokenSlice> slices, int rows, CudaTokenLane* lane, float* out, void* workspace,
                   void* stream) const override;

 private:
  struct Products {
    std::unique_ptr<CudaGemm> first, second;
  };
  absl::Status LoadTables(std::span<const SparseFieldConfig> fields, const TensorMap& tensors);
  absl::Status LoadNetwork(View view, const Config& config, const TensorMap& tensors);
  void Fill(std::span<const CudaTokenSlice> slices, size_t rows, const Layout& l, TokenLane* lane) const;
  absl::StatusOr<const Products*> ProductsFor(int rows) const;
  size_t n() const { return Size(args_.hidden + args_.d); }

  const std::shared_ptr<CudaDevice> device_;
  const std::shared_ptr<CudaGemmLibrary> gemms_;
  CudaTokenArgs args_;  // what does not change from launch to launch
  size_t plain_hidden_ = 0, plain_d_ = 0;
  std::shared_ptr<CudaTokenTables> tables_;
  CudaBuffer matrices_, vectors_;
  size_t w2_ = 0, b2_ = 0;
  mutable std::mutex mutex_;
  mutable std::map<int, Products> products_;  // guarded by mutex_; by rows
};

absl::Status Tokens::LoadTables(std::span<const SparseFieldConfig> fields, const TensorMap& tensors) {
  if (fields.size() > kCudaTokenFields) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.size(), " item fields, the card's tokenizer takes ", kCudaTokenFields));
  }
  for (size_t f = 0; f < fields.size(); ++f) {
    auto table = tables_->Find(fields[f], args_.embedding, tensors);
    if (!table.ok()) return table.status();
    args_.table[f] = *table;
  }
  args_.fields = static_cast<int>(fields.size());
  return absl::OkStatus();
}

absl::Status Tokens::LoadNetwork(View view, const Config& config, const TensorMap& tensors) {
  const bool history = view == View::kHistory;
  // Columns of v in the model's order, and whose side each is on.
  std::vector<bool> user_side;
  for (const SparseFieldConfig& field : history ? config.tokenizer.partial : config.tokenizer.full) {
    user_side.insert(user_side.end(), Size(config.embedding), !history && IsUserSide(field));
  }
  for (const DenseFieldConfig& field : config.tokenizer.full_dense) {
    if (history) break;
    user_side.push_back(IsUserSide(field));
    args_.dense += !IsUserSide(field);
  }
  args_.user_columns = static_cast<int>(std::count(user_side.begin(), user_side.end(), true));
  args_.v_stride = Padded(args_.fields * args_.embedding + args_.dense);
  if (args_.v_stride > 3072) return absl::InvalidArgumentError("the card's tokenizer takes 3072 item columns");
  const int64_t v = static_cast<int64_t>(user_side.size()), hidden = config.gate_mlp_hidden, d = config.d;
  absl::Status status;
  const auto get = [&](const char* name, std::vector<int64_t> shape) -> const float* {
    auto view = tensors.Get(absl::StrCat(history ? "tok.p." : "tok.f.", name), shape);
    if (!view.ok() && status.ok()) status = view.status();
    return view.ok() ? view->data : nullptr;
  };
  const float *g = get("ln.g", {v}), *b = get("ln.b", {v}), *w1 = get("w1", {v, hidden}), *b1 = get("b1", {hidden});
  const float *wg = get("wg", {v, d}), *bg = get("bg", {d}), *w2 = get("w2", {hidden, d}), *b2 = get("b2", {d});
  if (!status.ok()) return status;
  plain_hidden_ = static_cast<size_t>(hidden);
  plain_d_ = static_cast<size_t>(d);
  const size_t stride = Size(args_.v_stride), h = Size(args_.hidden), parts = Size(args_.parts);
  std::vector<uint16_t> matrices(parts * (n() * stride + Size(args_.d) * h));
  std::vector<float> vectors(2 * n() + Size(args_.d));
  w2_ = parts * n() * stride;
  // Element i of a row of `width` elements a part.
  const auto store = [parts](float value, size_t width, size_t i, uint16_t* row) {
    row[i] = ToBf16(value);
    if (parts == 1) return;
    row[width + i] = row[i];
    row[2 * width + i] = ToBf16(value - FromBf16(row[i]));
  };
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
          store(g[i] * weight, stride, item++, matrices.data() + (first + j) * parts * stride);
        }
      }
      vectors[first + j] = static_cast<float>(sum);
      vectors[n() + first + j] = static_cast<float>(offset);
    }
  }
  for (size_t j = 0; j < plain_d_; ++j) {
    for (size_t i = 0; i < plain_hidden_; ++i) {
      store(w2[i * plain_d_ + j], h, i, matrices.data() + w2_ + j * parts * h);
    }
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

absl::Status Tokens::Load(View view, const Config& config, const TensorMap& tensors, int stride,
                          std::shared_ptr<CudaTokenTables> tables) {
  tables_ = std::move(tables);
  args_.hidden = Padded(config.gate_mlp_hidden);
  args_.d = stride;
  args_.embedding = config.embedding;
  args_.parts = view == View::kHistory ? 3 : 1;
  std::vector<SparseFieldConfig> fields = view == View::kHistory ? config.tokenizer.partial : config.tokenizer.full;
  if (view == View::kCandidates)
    std::erase_if(fields, [](const SparseFieldConfig& field) { return IsUserSide(field); });
  RETURN_IF_ERROR(LoadTables(fields, tensors));
  return LoadNetwork(view, config, tensors);
}

absl::StatusOr<std::unique_ptr<CudaTokenLane>> Tokens::NewLane(size_t rows) const {
  const size_t ids_max = rows * std::max<size_t>(1, Size(args_.fields)) * Layout::kIdsOfField;
  const Layout most(rows, Size(args_.fields), Size(args_.dense), 2 + n(), Layout::kUsersMax, ids_max);
  auto lane = std::make_unique<TokenLane>(ids_max, most.bytes);
  size_t bytes = (most.bytes + 255) / 256 * 256;
  std::vector<std::pair<void**, size_t>> places;
  const auto place = [&](auto** to, size_t size) {
    places.emplace_back(reinterpret_cast<void**>(to), bytes);
    bytes += (size + 255) / 256 * 256;
  };
  place(&lane->v, rows * Size(args_.parts * args_.v_stride) * 2);
  place(&lane->moments, rows * 2 * 4);
  place(&lane->a, rows * n() * 4);
  place(&lane->h, rows * Size(args_.parts * args_.hidden) * 2);
  auto card = device_->Allocate(bytes, "a tokenizer lane");
  if (!card.ok()) return card.status();
  lane->card = *std::move(card);
  for (const auto& [to, at] : places) *to = lane->card.as<char>(at);
  auto pinned = device_->Allocate(most.bytes, "a tokenizer lane's inputs", CudaBuffer::Place::kPinned);
  if (!pinned.ok()) return pinned.status();
  lane->pinned = *std::move(pinned);
  return lane;
}

void Tokens::Fill(std::span<const CudaTokenSlice> slices, size_t rows, const Layout& l, TokenLane* lane) const {
  const size_t fields = Size(args_.fields), dense = Size(args_.dense);
  auto* ranges = lane->pinned.as<CudaIdRange>(l.ranges);
  auto* ids = lane->pinned.as<uint32_t>(l.ids);
  auto* values = lane->pinned.as<float>(l.dense);
  auto* user = lane->pinned.as<int32_t>(l.user);
  auto* users = lane->pinned.as<float>(l.users);
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
      std::copy(column.ids.begin() + static_cast<ptrdiff_t>(from), column.ids.begin() + static_cast<ptrdiff_t>(to),
                ids + id);
      // Plain pointers: every element of a checked vector would be checked again.
      const uint32_t* const offsets = column.offsets.data() + slice.first;
      const auto shift = static_cast<uint32_t>(id - from);  // modulo 2^32
      CudaIdRange* const to_ranges = ranges + f * rows + slice.row;
      for (size_t r = 0; r < slice.count; ++r) to_ranges[r] = {offsets[r] + shift, offsets[r + 1] + shift};
      id += to - from;
    }
    std::copy_n(item.dense.data() + slice.first * dense, slice.count * dense, values + slice.row * dense);
    std::fill_n(user + slice.row, slice.count, static_cast<int32_t>(s));
    float* part = users + s * (2 + n());
    std::fill_n(part, 2 + n(), 0.0f);
    if (slice.user == nullptr) continue;
    part[0] = slice.user->moments.mean;
    part[1] = slice.user->moments.m2;
    std::copy_n(slice.user->product.data(), plain_hidden_, part + 2);
    std::copy_n(slice.user->product.data() + plain_hidden_, plain_d_, part + 2 + args_.hidden);
  }
}

absl::StatusOr<const Tokens::Products*> Tokens::ProductsFor(int rows) const {
  std::lock_guard lock(mutex_);
  Products& products = products_[rows];
  if (products.second != nullptr) return &products;
  auto first = CudaGemm::Create(gemms_, {.m = rows,
                                         .n = args_.hidden + args_.d,
                                         .k = args_.parts * args_.v_stride,
                                         .ldx = args_.parts * args_.v_stride,
                                         .ldy = args_.hidden + args_.d,
                                         .output_is_float = true});
  if (!first.ok()) return first.status();
  auto second = CudaGemm::Create(gemms_, {.m = rows,
                                          .n = args_.d,
                                          .k = args_.parts * args_.hidden,
                                          .ldx = args_.parts * args_.hidden,
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
  size_t id_count = 0;
  for (const CudaTokenSlice& slice : slices) {
    for (size_t f = 0; f < Size(args_.fields); ++f) {
      const std::vector<uint32_t>& offsets = slice.item->sparse[f].offsets;
      id_count += offsets[slice.first + slice.count] - offsets[slice.first];
    }
  }
  if (id_count > lane->ids_max) return absl::ResourceExhaustedError("too many ids in one launch");
  if (slices.size() > Layout::kUsersMax) {
    return absl::ResourceExhaustedError(absl::StrCat(slices.size(), " users in one launch"));
  }
  const Layout l(Size(rows), Size(args_.fields), Size(args_.dense), 2 + n(), slices.size(), id_count);
  assert(l.bytes <= lane->bytes_max);
  Fill(slices, Size(rows), l, lane);
  RETURN_IF_ERROR(device_->Check(cudaMemcpyAsync(lane->card.data(), lane->pinned.data(), l.bytes,
                                                 cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                                 "uploading tokens"));
  CudaTokenArgs args = args_;
  args.rows = rows;
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

absl::StatusOr<const float*> CudaTokenTables::Find(const SparseFieldConfig& field, int embedding,
                                                   const TensorMap& tensors) {
  if (const auto found = tables_.find(field.table); found != tables_.end()) return found->second.as<const float>();
  auto table = tensors.Get(absl::StrCat("tok.table.", field.table), {int64_t{field.vocab}, embedding});
  if (!table.ok()) return table.status();
  const size_t bytes = table->size * sizeof(float);
  if (bytes > bytes_max_ - bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("embedding table ", field.table, " has ", bytes, " bytes, ",
                                                     bytes_max_ - bytes_, " of ", bytes_max_, " for tables are left"));
  }
  auto buffer = device_->Allocate(bytes, "embedding tables");
  if (!buffer.ok()) return buffer.status();
  RETURN_IF_ERROR(
      device_->Check(cudaMemcpy(buffer->data(), table->data, bytes, cudaMemcpyHostToDevice), "copying tables"));
  bytes_ += bytes;
  return tables_.emplace(field.table, *std::move(buffer)).first->second.as<const float>();
}

absl::StatusOr<std::unique_ptr<CudaTokens>> CudaTokens::Load(View view, const Config& config, const TensorMap& tensors,
                                                             int stride, std::shared_ptr<CudaTokenTables> tables,
                                                             std::shared_ptr<CudaDevice> device,
                                                             std::shared_ptr<CudaGemmLibrary> gemms) {
  auto tokens = std::make_unique<Tokens>(std::move(device), std::move(gemms));
  if (absl::Status s = tokens->Load(view, config, tensors, stride, std::move(tables)); !s.ok()) return s;
  return tokens;
}

}  // namespace backstory::grab
