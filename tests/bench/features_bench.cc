// The tokenizer's numbers: joining and tokenising 4,096 rows, extending them by one event, 1,000 candidates. Beside
// each, the time that copying the produced bytes once takes on this machine (the bound that no tokenizer can beat).
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstring>
#include <random>

#include "features/incremental.h"
#include "features/user_summary.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

TokenizerConfig Config() {
  TokenizerConfig config = testing::ClickConfig();
  config.full = {{.name = "item", .source = SparseSource::kItemId, .table = "item", .vocab = 1000},
                 {.name = "user", .source = SparseSource::kUserId, .table = "user", .vocab = 1000},
                 {.name = "genres", .source = SparseSource::kItemCategories, .table = "genre", .vocab = 50},
                 {.name = "year", .source = SparseSource::kItemYear, .table = "year", .vocab = 32}};
  config.full_dense = {{.name = "rate", .source = DenseSource::kItemRate},
                       {.name = "count", .source = DenseSource::kItemLogCount},
                       {.name = "user_rate", .source = DenseSource::kUserRate},
                       {.name = "category_rate", .source = DenseSource::kUserCategoryRate},
                       {.name = "age", .source = DenseSource::kItemAge}};
  return config;
}

// At least 4,096 rows.
testing::RandomHistory LongHistory() {
  std::mt19937_64 random(1);
  return testing::MakeHistory(random, 7500);
}

size_t TokenBytes(const std::vector<ChannelRows>& channels) {
  size_t bytes = 0;
  for (const ChannelRows& channel : channels) {
    bytes += channel.tokens.rows * (8 + 4 + 8 + 8);
    for (const SparseColumn& column : channel.tokens.sparse) bytes += 4 * (column.offsets.size() + column.ids.size());
  }
  return bytes;
}

void ReportCopyBound(benchmark::State& state, size_t bytes) {
  std::vector<char> from(bytes, 1), to(bytes);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) {
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::DoNotOptimize(to.data());
  }
  state.counters["copy_bound_us"] =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 20;
}

void BM_JoinHistory(benchmark::State& state) {
  const auto history = LongHistory();
  const TokenizerConfig config = Config();
  size_t rows = 0;
  for (auto _ : state) {
    const auto joined = JoinHistory(history.events, {}, config);
    rows = joined.size();
    benchmark::DoNotOptimize(joined.data());
  }
  state.counters["rows"] = static_cast<double>(rows);
  ReportCopyBound(state, rows * sizeof(HistoryRow));
}
BENCHMARK(BM_JoinHistory)->Unit(benchmark::kMicrosecond);

void BM_TokenizeHistory(benchmark::State& state) {
  const auto history = LongHistory();
  const TokenizerConfig config = Config();
  auto rows = JoinHistory(history.events, {}, config);
  rows.resize(4096);
  const ItemLookup items = history.Lookup();
  size_t bytes = 0;
  for (auto _ : state) {
    const auto tokens = TokenizeHistory(rows, INT64_MAX, items, config);
    bytes = TokenBytes(tokens);
    benchmark::DoNotOptimize(tokens.data());
  }
  state.counters["rows"] = static_cast<double>(rows.size());
  ReportCopyBound(state, bytes);
}
BENCHMARK(BM_TokenizeHistory)->Unit(benchmark::kMicrosecond);

void BM_AppendOneEvent(benchmark::State& state) {
  const auto history = LongHistory();
  const TokenizerConfig config = Config();
  JoinedHistory joined = JoinAll(history.events, config);
  TokenizedHistory tokens;
  const ItemLookup items = history.Lookup();
  UpdateTokens(joined.rows, 0, INT64_MAX, items, config, &tokens);
  Event event = history.events.back();
  event.kind = EventKind::kExposure;
  for (auto _ : state) {
    event.time_us += 1;
    event.event_id += 1;
    const size_t first = ExtendJoin({&event, 1}, config, &joined);
    benchmark::DoNotOptimize(UpdateTokens(joined.rows, first, INT64_MAX, items, config, &tokens));
  }
}
BENCHMARK(BM_AppendOneEvent)->Unit(benchmark::kMicrosecond)->Iterations(2000);

void BM_TokenizeCandidates(benchmark::State& state) {
  const auto history = LongHistory();
  const TokenizerConfig config = Config();
  const auto rows = JoinHistory(history.events, {}, config);
  const ItemLookup items = history.Lookup();
  const UserSummary summary = Summarise(rows, INT64_MAX, CandidateTokens::kNoTie, items);
  const ItemCounts counts{.exposures = 100, .cells = {{.action = 1, .value_bin = 0, .count = 9}}};
  CandidateColumns candidates;
  for (uint64_t i = 0; i < 1000; ++i) candidates.item_ids.push_back(1 + i % 20);
  CandidateInput input;
  input.user = "u";
  input.now_us = rows.back().time_us + 1;
  input.summary = &summary;
  input.candidates = &candidates;
  input.items = items;
  input.counts = [&counts](uint64_t) { return counts; };
  size_t bytes = 0;
  for (auto _ : state) {
    const CandidateTokens tokens = TokenizeCandidates(input, config, nullptr);
    bytes = 4 * tokens.item.dense.size();
    for (const SparseColumn& column : tokens.item.sparse) bytes += 4 * (column.ids.size() + column.offsets.size());
    benchmark::DoNotOptimize(tokens.item.dense.data());
  }
  ReportCopyBound(state, bytes);
}
BENCHMARK(BM_TokenizeCandidates)->Unit(benchmark::kMicrosecond);

void BM_Summarise(benchmark::State& state) {
  const auto history = LongHistory();
  auto rows = JoinHistory(history.events, {}, Config());
  rows.resize(4096);
  const ItemLookup items = history.Lookup();
  for (auto _ : state) benchmark::DoNotOptimize(Summarise(rows, INT64_MAX, CandidateTokens::kNoTie, items));
}
BENCHMARK(BM_Summarise)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace backstory

BENCHMARK_MAIN();
