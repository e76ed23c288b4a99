#include "tests/models/grab_fixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "features/tokenizer.h"
#include "models/grab/tensors.h"

namespace backstory::grab {

Config SmallConfig(const ConfigChoice& choice) {
  Config c;
  c.name = "small";
  TokenizerConfig& t = c.tokenizer;
  t.partial = {{"item", SparseSource::kItemId, "", "item", 50},
               {"category", SparseSource::kItemCategories, "", "category", 9},
               {"action", SparseSource::kActionClass, "", "action", 6}};
  t.full = {{"f_item", SparseSource::kItemId, "", "item", 50},
            {"f_user", SparseSource::kUserId, "", "user", 20},
            {"f_category", SparseSource::kItemCategories, "", "category", 9}};
  t.full_dense = {{"user_rate", DenseSource::kUserRate},
                  {"item_rate", DenseSource::kItemRate},
                  {"item_count", DenseSource::kItemLogCount}};
  t.actions = {{ActionType::kClick, -3.4e38f, 3.4e38f, 1}};
  t.label = {ActionType::kClick};
  for (int i = 0; i < choice.channels; ++i) t.channels.push_back({std::string("c") + std::to_string(i), {}});
  t.label_window_us = 60'000'000;
  c.d = 12;
  c.heads = 3;
  c.d_head = 5;
  c.layers = choice.layers;
  c.latent = choice.latent;
  c.ffn = 19;
  c.n_pos = 40;
  c.n_time = 30;
  c.n_act = 6;
  c.window_rows = choice.window_rows;
  c.window_sec = choice.window_sec;
  c.norm = choice.norm;
  c.target_mixing = choice.mixing;
  c.embedding = 7;
  c.gate_mlp_hidden = 11;
  c.head_hidden = 10;
  c.tasks = choice.tasks == 1 ? std::vector<std::string>{"like"} : std::vector<std::string>{"click", "buy"};
  return c;
}

TensorMap RandomTensors(const Config& config, uint64_t seed) {
  Random random(seed);
  TensorMap tensors;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    size_t size = 1;
    for (int64_t dim : spec.shape) size *= static_cast<size_t>(dim);
    std::vector<float> values(size);
    const bool scale = spec.name.ends_with(".g"), matrix = spec.shape.size() == 2;
    const bool codebook = spec.name.ends_with("bpos") || spec.name.ends_with("btime") || spec.name.ends_with("bact");
    const float sigma = codebook ? 0.7f : matrix ? 1.2f / std::sqrt(static_cast<float>(spec.shape[0])) : 0.2f;
    const bool table = spec.name.starts_with("tok.table.");
    for (float& v : values) v = scale ? 1 + random.Normal(0.1f) : random.Normal(table ? 0.8f : sigma);
    EXPECT_TRUE(tensors.Add(spec.name, spec.shape, std::move(values)).ok());
  }
  return tensors;
}

namespace {

TokenColumns RandomColumns(const std::vector<uint32_t>& vocab, size_t dense, size_t rows, Random* random) {
  TokenColumns t;
  t.rows = rows;
  for (uint32_t v : vocab) {
    SparseColumn& column = t.sparse.emplace_back();
    for (size_t r = 0; r < rows; ++r) {
      for (size_t n = random->Below(4); n > 0; --n) column.ids.push_back(static_cast<uint32_t>(random->Below(v)));
      column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
    }
  }
  for (size_t i = 0; i < rows * dense; ++i) t.dense.push_back(random->Normal());
  return t;
}

TokenColumns PickColumns(const TokenColumns& from, size_t dense, std::span<const size_t> picks) {
  TokenColumns t;
  t.rows = picks.size();
  for (const SparseColumn& column : from.sparse) {
    SparseColumn& to = t.sparse.emplace_back();
    for (size_t r : picks) {
      to.ids.insert(to.ids.end(), column.ids.begin() + column.offsets[r], column.ids.begin() + column.offsets[r + 1]);
      to.offsets.push_back(static_cast<uint32_t>(to.ids.size()));
    }
  }
  for (size_t r : picks) {
    for (size_t i = 0; i < dense; ++i) t.dense.push_back(from.dense[r * dense + i]);
  }
  return t;
}

}  // namespace

ChannelRows RandomHistory(const Config& config, size_t rows, Random* random) {
  ChannelRows r;
  std::vector<uint32_t> vocab;
  for (const auto& field : config.tokenizer.partial) vocab.push_back(field.vocab);
  r.tokens = RandomColumns(vocab, 0, rows, random);
  int64_t time = 1'600'000'000'000'000;
  for (size_t i = 0; i < rows; ++i) {
    const double gap = std::exp(3.0 + 3.0 * random->Normal());  // milliseconds to months
    if (!random->Chance(0.2)) time += static_cast<int64_t>(gap * 1e6);
    r.time_us.push_back(time);
    r.action.push_back(static_cast<int32_t>(random->Below(static_cast<size_t>(config.n_act - 1))));
    const bool joins = i > 3 && random->Chance(0.25);
    r.tie.push_back(joins ? r.tie[i - 1 - random->Below(3)] : static_cast<int64_t>(1000 + i));
    r.event_id.push_back(7'000'000 + i);
  }
  r.closed = rows;
  return r;
}

ChannelRows Prefix(const ChannelRows& rows, size_t count) {
  std::vector<size_t> picks(count);
  for (size_t i = 0; i < count; ++i) picks[i] = i;
  ChannelRows r;
  r.tokens = PickColumns(rows.tokens, 0, picks);
  const auto n = static_cast<ptrdiff_t>(count);
  r.time_us.assign(rows.time_us.begin(), rows.time_us.begin() + n);
  r.action.assign(rows.action.begin(), rows.action.begin() + n);
  r.tie.assign(rows.tie.begin(), rows.tie.begin() + n);
  r.event_id.assign(rows.event_id.begin(), rows.event_id.begin() + n);
  r.closed = std::min(rows.closed, count);
  return r;
}

CandidateTokens RandomCandidates(const Config& config, size_t count, int64_t now_us, Random* random) {
  std::vector<uint32_t> user, item;
  size_t user_dense = 0, item_dense = 0;
  for (const auto& field : config.tokenizer.full) (IsUserSide(field) ? user : item).push_back(field.vocab);
  for (const auto& field : config.tokenizer.full_dense) ++(IsUserSide(field) ? user_dense : item_dense);
  return {.user = RandomColumns(user, user_dense, 1, random),
          .item = RandomColumns(item, item_dense, count, random),
          .now_us = now_us};
}

CandidateTokens Pick(const CandidateTokens& candidates, std::span<const size_t> picks) {
  CandidateTokens c = candidates;
  c.item = PickColumns(candidates.item,
                       candidates.item.rows == 0 ? 0 : candidates.item.dense.size() / candidates.item.rows, picks);
  return c;
}

double LogitTolerance(const Config& c, size_t longest, double scale, Dtype precision) {
  if (precision == Dtype::kBf16) {
    const double products = 8.0 * c.layers * c.layers;
    return 5 * std::ldexp(std::sqrt(2.0 / 3 * products), -9) * std::max(scale, 1.0);
  }
  const double width = static_cast<double>(FullWidth(c));
  const double per_layer = 2.0 * c.d + (c.latent > 0 ? c.d : 0) + 2.0 * c.d_head + c.heads * c.d_head + 2.0 * c.ffn +
                           static_cast<double>(longest + 1) + static_cast<double>(c.channels()) * c.d + 16;
  // A history row's error reaches a candidate through every layer above it: layers squared bounds the sum of the paths.
  const double terms = width + 2.0 * c.gate_mlp_hidden + per_layer * c.layers * c.layers + c.head_hidden;
  return std::ldexp(1.0, -24) * terms * std::max(scale, 1.0);
}

Scored ScoreAll(const Model& model, const UserKv* kv, const CandidateTokens& candidates, int explain_top) {
  Scored scored;
  scored.logits.assign(candidates.item.rows * model.config().tasks.size(), NAN);
  std::vector<size_t> visible;
  for (int c = 0; c < model.config().channels(); ++c) visible.push_back(kv == nullptr ? 0 : kv->Rows(c));
  const ScoreSegment segment{.kv = kv,
                             .visible_rows = visible,
                             .candidates = &candidates,
                             .logits = scored.logits.data(),
                             .explain_top = explain_top,
                             .attributions = &scored.attributions};
  const absl::Status status = model.Score({&segment, 1});
  EXPECT_TRUE(status.ok()) << status;
  return scored;
}

std::unique_ptr<Model> MakeModel(const Config& config, const TensorMap& tensors, ThreadPool* pool, Dtype precision) {
  auto model = CreateModel(config, tensors, pool, precision);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? std::move(*model) : nullptr;
}

}  // namespace backstory::grab
