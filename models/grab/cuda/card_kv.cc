#include "models/grab/cuda/card_kv.h"

#include <algorithm>

namespace backstory::grab {
namespace {

// Appends tokens [first, n) of one view.
void AppendTokens(const TokenColumns& from, size_t first, TokenColumns* to) {
  to->sparse.resize(from.sparse.size());
  for (size_t f = 0; f < from.sparse.size(); ++f) {
    const SparseColumn& column = from.sparse[f];
    SparseColumn& out = to->sparse[f];
    const uint32_t shift = out.offsets.back() - column.offsets[first];
    out.ids.insert(out.ids.end(), column.ids.begin() + column.offsets[first],
                   column.ids.begin() + column.offsets.back());
    for (size_t r = first + 1; r < column.offsets.size(); ++r) out.offsets.push_back(column.offsets[r] + shift);
  }
  const size_t width = from.rows == 0 ? 0 : from.dense.size() / from.rows;
  to->dense.insert(to->dense.end(), from.dense.begin() + static_cast<ptrdiff_t>(first * width), from.dense.end());
  to->rows = from.rows;
}

void TruncateTokens(size_t rows, TokenColumns* tokens) {
  const size_t width = tokens->rows == 0 ? 0 : tokens->dense.size() / tokens->rows;
  for (SparseColumn& column : tokens->sparse) {
    column.ids.resize(column.offsets[rows]);
    column.offsets.resize(rows + 1);
  }
  tokens->dense.resize(rows * width);
  tokens->rows = rows;
}

size_t BytesOf(const ChannelRows& rows) {
  size_t bytes = rows.tokens.dense.capacity() * sizeof(float) + rows.time_us.capacity() * 8 + rows.tie.capacity() * 8 +
                 rows.event_id.capacity() * 8 + rows.action.capacity() * 4;
  for (const SparseColumn& column : rows.tokens.sparse) {
    bytes += (column.offsets.capacity() + column.ids.capacity()) * sizeof(uint32_t);
  }
  return bytes;
}

}  // namespace

CudaUserKv::~CudaUserKv() {
  if (pool_ != nullptr) pool_->Forget(this);
}

size_t CudaUserKv::Bytes() const {
  size_t bytes = facts_.Bytes() + host_bytes_;
  for (const ChannelRows& rows : tokens_) bytes += BytesOf(rows);
  return bytes;
}

void CudaUserKv::Append(std::span<const ChannelRows> tokens) {
  for (size_t c = 0; c < tokens.size(); ++c) {
    const size_t first = facts_.channel(c).rows();
    const ChannelRows& from = tokens[c];
    ChannelRows& to = tokens_[c];
    facts_.channel(c).Grow({.time_us = std::span(from.time_us).subspan(first),
                            .tie = std::span(from.tie).subspan(first),
                            .event_id = std::span(from.event_id).subspan(first)});
    AppendTokens(from.tokens, first, &to.tokens);
    const auto append = [first](const auto& column, auto* out) {
      out->insert(out->end(), column.begin() + static_cast<ptrdiff_t>(first), column.end());
    };
    append(from.time_us, &to.time_us);
    append(from.action, &to.action);
    append(from.tie, &to.tie);
    append(from.event_id, &to.event_id);
    to.closed = from.closed;
  }
}

void CudaUserKv::Truncate(int channel, size_t rows) {
  if (rows >= Rows(channel)) return;
  const size_t c = static_cast<size_t>(channel);
  ChannelRows& tokens = tokens_[c];
  facts_.Truncate(channel, rows);
  TruncateTokens(rows, &tokens.tokens);
  tokens.time_us.resize(rows);
  tokens.action.resize(rows);
  tokens.tie.resize(rows);
  tokens.event_id.resize(rows);
  {
    std::lock_guard lock(host_mutex_);
    host_->Truncate(channel, rows);
    host_bytes_ = host_->Bytes();
  }
  if (pool_ != nullptr) pool_->Truncate(this, c, rows);
}

absl::StatusOr<const CpuUserKv*> CudaUserKv::OnHost(const Model& model) const {
  std::lock_guard lock(host_mutex_);
  bool complete = true;
  for (size_t c = 0; c < host_->channels(); ++c) complete &= host_->channel(c).rows() == facts(c).rows();
  if (complete) return host_.get();
  const absl::Status status = model.Extend(tokens_, host_.get());
  host_bytes_ = host_->Bytes();
  if (!status.ok()) return status;
  return host_.get();
}

}  // namespace backstory::grab
