#include "serving/cli/tokenize_columns.h"

#include <cassert>
#include <limits>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// The one value of a user-side column, repeated for every candidate.
SparseColumn Repeated(const SparseColumn& one, size_t rows) {
  SparseColumn column;
  for (size_t i = 0; i < rows; ++i) {
    column.ids.insert(column.ids.end(), one.ids.begin(), one.ids.end());
    column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
  }
  return column;
}

}  // namespace

std::vector<int64_t> TokenTensors::ShapeOf(const std::string& name, size_t size) const {
  const auto width = width_.find(name);
  if (width == width_.end()) return {static_cast<int64_t>(size)};
  const int64_t rows = width->second == 0 ? 0 : static_cast<int64_t>(size) / width->second;
  return {rows, width->second};
}

absl::Status TokenTensors::Write(const std::string& path, const std::map<std::string, std::string>& metadata) const {
  std::vector<SafetensorsTensor> tensors;
  const auto add = [&](const auto& columns, DType dtype) {
    for (const auto& [name, values] : columns) {
      tensors.push_back({name, dtype, ShapeOf(name, values.size()), AsBytes(values)});
    }
  };
  for (const auto& [name, values] : i32_) {
    if (values.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, " has more than 2^31 entries; fewer users per shard"));
    }
  }
  add(i64_, DType::kI64);
  add(i32_, DType::kI32);
  add(f32_, DType::kF32);
  add(u8_, DType::kU8);
  return WriteSafetensors(path, std::move(tensors), metadata);
}

CsrColumn::CsrColumn(const std::string& name, TokenTensors* tensors)
    : offsets_(&tensors->I32(name + ".offsets")), ids_(&tensors->I32(name + ".ids")) {
  if (offsets_->empty()) offsets_->push_back(0);
}

void CsrColumn::Append(const SparseColumn& block) {
  const auto base = static_cast<uint32_t>(ids_->size());
  for (size_t i = 1; i < block.offsets.size(); ++i) {
    offsets_->push_back(static_cast<int32_t>(base + block.offsets[i]));
  }
  for (uint32_t id : block.ids) ids_->push_back(static_cast<int32_t>(id));
}

RowColumns::RowColumns(const std::string& prefix, const TokenizerConfig& config, TokenTensors* tensors)
    : time_us_(&tensors->I64(prefix + ".time_us")),
      tie_(&tensors->I64(prefix + ".tie")),
      closed_us_(&tensors->I64(prefix + ".closed_us")),
      event_id_(&tensors->I64(prefix + ".event_id")),
      action_(&tensors->I32(prefix + ".action")) {
  for (const SparseFieldConfig& field : config.partial) {
    fields_.emplace_back(absl::StrCat(prefix, ".", field.name), tensors);
  }
}

void RowColumns::Append(const ChannelRows& channel, std::span<const HistoryRow> rows) {
  size_t at = 0;
  for (size_t i = 0; i < channel.time_us.size(); ++i) {
    while (rows[at].event_id != channel.event_id[i] || rows[at].time_us != channel.time_us[i]) ++at;
    closed_us_->push_back(rows[at].closed_us);
    event_id_->push_back(static_cast<int64_t>(channel.event_id[i]));
  }
  time_us_->insert(time_us_->end(), channel.time_us.begin(), channel.time_us.end());
  tie_->insert(tie_->end(), channel.tie.begin(), channel.tie.end());
  action_->insert(action_->end(), channel.action.begin(), channel.action.end());
  for (size_t f = 0; f < fields_.size(); ++f) fields_[f].Append(channel.tokens.sparse[f]);
}

FullColumns::FullColumns(const std::string& prefix, const TokenizerConfig& config, TokenTensors* tensors)
    : config_(config), dense_(&tensors->F32(prefix + ".dense")) {
  tensors->SetWidth(prefix + ".dense", static_cast<int64_t>(config.full_dense.size()));
  for (const SparseFieldConfig& field : config.full) {
    fields_.emplace_back(absl::StrCat(prefix, ".", field.name), tensors);
  }
}

void FullColumns::Append(const CandidateTokens& tokens) {
  size_t user = 0, item = 0;
  for (size_t f = 0; f < fields_.size(); ++f) {
    if (IsUserSide(config_.full[f])) {
      fields_[f].Append(Repeated(tokens.user.sparse[user++], tokens.item.rows));
    } else {
      fields_[f].Append(tokens.item.sparse[item++]);
    }
  }
  const size_t item_width = config_.full_dense.size() - tokens.user.dense.size();
  assert(tokens.item.dense.size() == item_width * tokens.item.rows);
  for (size_t i = 0; i < tokens.item.rows; ++i) {
    size_t user_dense = 0, item_dense = i * item_width;
    for (const DenseFieldConfig& field : config_.full_dense) {
      dense_->push_back(IsUserSide(field) ? tokens.user.dense[user_dense++] : tokens.item.dense[item_dense++]);
    }
  }
}

}  // namespace backstory
