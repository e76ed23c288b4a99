// Internal to tokenize: growing columns of a shard, and how they become safetensors.
#ifndef BACKSTORY_SERVING_CLI_TOKENIZE_COLUMNS_H_
#define BACKSTORY_SERVING_CLI_TOKENIZE_COLUMNS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "features/token.h"
#include "features/tokenizer.h"
#include "models/safetensors.h"

namespace backstory {

// Named columns in one file. Each name is of one type; columns grow at the end.
class TokenTensors {
 public:
  std::vector<int64_t>& I64(const std::string& name) { return i64_[name]; }
  std::vector<int32_t>& I32(const std::string& name) { return i32_[name]; }
  std::vector<float>& F32(const std::string& name) { return f32_[name]; }
  std::vector<uint8_t>& U8(const std::string& name) { return u8_[name]; }
  void SetWidth(const std::string& name, int64_t width) { width_[name] = width; }  // [rows, width] instead of [rows]

  // INVALID_ARGUMENT if a CSR offset passed 2^31 - 1: fewer users per shard are needed.
  absl::Status Write(const std::string& path, const std::map<std::string, std::string>& metadata) const;

 private:
  std::vector<int64_t> ShapeOf(const std::string& name, size_t size) const;
  std::map<std::string, std::vector<int64_t>> i64_;
  std::map<std::string, std::vector<int32_t>> i32_;
  std::map<std::string, std::vector<float>> f32_;
  std::map<std::string, std::vector<uint8_t>> u8_;
  std::map<std::string, int64_t> width_;
};

// A CSR column "<name>.offsets", "<name>.ids" that grows by whole blocks.
class CsrColumn {
 public:
  CsrColumn(const std::string& name, TokenTensors* tensors);
  void Append(const SparseColumn& block);

 private:
  std::vector<int32_t>* offsets_;
  std::vector<int32_t>* ids_;
};

// Columns "<prefix>.time_us", ".action", ".tie", ".closed_us", ".event_id" and those of the partial fields.
class RowColumns {
 public:
  RowColumns(const std::string& prefix, const TokenizerConfig& config, TokenTensors* tensors);
  // `rows` are the history rows that the channel was made of; they give closed_us.
  void Append(const ChannelRows& channel, std::span<const HistoryRow> rows);

 private:
  std::vector<int64_t>*time_us_, *tie_, *closed_us_, *event_id_;
  std::vector<int32_t>* action_;
  std::vector<CsrColumn> fields_;
};

// Columns "<prefix>.<field>.*" and "<prefix>.dense" of full tokens, user and item side back in the config's order.
class FullColumns {
 public:
  FullColumns(const std::string& prefix, const TokenizerConfig& config, TokenTensors* tensors);
  void Append(const CandidateTokens& tokens);

 private:
  const TokenizerConfig& config_;
  std::vector<CsrColumn> fields_;
  std::vector<float>* dense_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_TOKENIZE_COLUMNS_H_
