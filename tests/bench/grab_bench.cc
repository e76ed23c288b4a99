// GRAB in process: cached scoring, prefill and append, beside the bound of the threads used.
// Run: build/release/bin/grab_bench. Weights are random; time does not depend on them.
#include <cmath>
#include <memory>
#include <vector>

#include "features/tokenizer.h"
#include "models/grab/init_random.h"
#include "models/grab/model.h"
#include "models/grab/tensors.h"
#include "tests/bench/machine.h"
#include "tests/kernels/random.h"

namespace backstory::grab {
namespace {

// "small": the size of models that ship (d 64, 4 heads x 16, 2 layers, 2 channels); else a preset.
Config ConfigOf(int64_t which) {
  Config config = *PresetConfig("grab-256");
  if (which == 256) return config;
  config.d = 64;
  config.heads = 4;
  config.d_head = 16;
  config.layers = which == 3 ? 3 : 2;
  config.ffn = 128;
  config.head_hidden = 64;
  config.embedding = 16;
  config.gate_mlp_hidden = 128;
  return config;
}

TokenColumns RandomColumns(size_t rows, const std::vector<uint32_t>& vocab, size_t dense, Random* random) {
  TokenColumns t;
  t.rows = rows;
  for (uint32_t v : vocab) {
    SparseColumn column;
    for (size_t r = 0; r < rows; ++r) {
      column.ids.push_back(static_cast<uint32_t>(random->Below(v)));
      column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
    }
    t.sparse.push_back(column);
  }
  t.dense = random->Normals(rows * dense);
  return t;
}

ChannelRows RandomRows(const Config& config, size_t rows, Random* random) {
  ChannelRows r;
  std::vector<uint32_t> vocab;
  for (const auto& field : config.tokenizer.partial) vocab.push_back(field.vocab);
  r.tokens = RandomColumns(rows, vocab, 0, random);
  int64_t time = 1'700'000'000'000'000;
  for (size_t i = 0; i < rows; ++i) {
    time += static_cast<int64_t>(std::exp(random->Normal(2.5f) + 5) * 1e6);  // seconds to days
    r.time_us.push_back(time);
    r.action.push_back(static_cast<int32_t>(random->Below(static_cast<size_t>(config.n_act - 1))));
    r.tie.push_back(time);
    r.event_id.push_back(i);
  }
  r.closed = rows;
  return r;
}

struct Setup {
  Config config;
  std::unique_ptr<OwnProcessors> processors;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Model> model;
  std::vector<ChannelRows> rows;
  CandidateTokens candidates;
  std::unique_ptr<UserKv> kv;
  Dtype dtype = Dtype::kF32;
};

Setup Make(int64_t which, size_t history, size_t candidates, size_t threads, bool bf16) {
  Random random(3);
  Setup s;
  s.config = ConfigOf(which);
  s.processors = std::make_unique<OwnProcessors>(threads);
  s.pool = std::make_unique<ThreadPool>(threads);
  s.processors->Pin();
  s.dtype = bf16 ? Dtype::kBf16 : Dtype::kF32;
  s.model = std::move(*CreateModel(s.config, RandomWeights(s.config, 1), s.pool.get(), s.dtype));
  // The first channel sees everything; the second half of it in the small model, all of it in the reference shapes.
  for (int c = 0; c < s.config.channels(); ++c) {
    s.rows.push_back(RandomRows(s.config, c == 0 || which == 256 ? history : history / 2, &random));
  }
  std::vector<uint32_t> user, item;
  for (const auto& field : s.config.tokenizer.full) (IsUserSide(field) ? user : item).push_back(field.vocab);
  size_t user_dense = 0, item_dense = 0;
  for (const auto& field : s.config.tokenizer.full_dense) ++(IsUserSide(field) ? user_dense : item_dense);
  s.candidates.user = RandomColumns(1, user, user_dense, &random);
  s.candidates.item = RandomColumns(candidates, item, item_dense, &random);
  s.candidates.now_us = s.rows[0].time_us.empty() ? 0 : s.rows[0].time_us.back() + 3'600'000'000;
  s.kv = s.model->NewState();
  return s;
}

double ScoreFlops(const Setup& s) {
  const Costs costs = CostsOf(s.config);
  double macs = static_cast<double>(costs.macs_per_candidate);
  for (const ChannelRows& rows : s.rows) {
    macs += static_cast<double>(costs.macs_per_candidate_and_row) * static_cast<double>(rows.time_us.size());
  }
  return 2 * macs * static_cast<double>(s.candidates.item.rows);
}

// Users of the same history are scored in turn, as many as it takes to exceed any cache: their state comes from memory.
void BM_Score(benchmark::State& state) {
  constexpr size_t kBytes = 96 << 20;
  const size_t threads = static_cast<size_t>(state.range(3));
  Setup s = Make(state.range(0), static_cast<size_t>(state.range(1)), static_cast<size_t>(state.range(2)), threads,
                 state.range(5) == 1);
  std::vector<std::unique_ptr<UserKv>> users;
  for (size_t bytes = 0; bytes < kBytes && users.size() < 32; bytes += users.back()->Bytes()) {
    users.push_back(s.model->NewState());
    if (!s.model->Extend(s.rows, users.back().get()).ok()) return state.SkipWithError("extend failed");
  }
  std::vector<size_t> visible;
  for (const ChannelRows& rows : s.rows) visible.push_back(rows.time_us.size());
  std::vector<float> logits(s.candidates.item.rows * s.config.tasks.size());
  const ScoreSegment segment{.kv = nullptr,
                             .visible_rows = visible,
                             .candidates = &s.candidates,
                             .logits = logits.data(),
                             .explain_top = static_cast<int>(state.range(4))};
  std::vector<std::vector<Attribution>> attributions;
  ScoreSegment explained = segment;
  explained.attributions = &attributions;
  size_t turn = 0;
  for (auto _ : state) {
    explained.kv = users[turn++ % users.size()].get();
    if (!s.model->Score({&explained, 1}).ok()) return state.SkipWithError("score failed");
    benchmark::ClobberMemory();
  }
  ReportFlops(state, ScoreFlops(s), s.dtype, static_cast<double>(threads));
  state.counters["kv_bytes"] = static_cast<double>(users[0]->Bytes());
}
BENCHMARK(BM_Score)
    ->ArgNames({"model", "N", "M", "threads", "explain", "bf16"})
    ->ArgsProduct({{2}, {2500}, {200}, {1, 2}, {0}, {0, 1}})
    ->Args({3, 2500, 200, 2, 0, 0})
    ->Args({2, 2500, 200, 2, 3, 0})
    ->Args({2, 2500, 1, 1, 0, 0})
    ->Args({2, 0, 200, 2, 0, 0})
    ->ArgsProduct({{256}, {1024, 4096}, {256}, {1, 2}, {0}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// Model x rows x threads: the whole history at once.
void BM_Prefill(benchmark::State& state) {
  const Setup s = Make(state.range(0), static_cast<size_t>(state.range(1)), 1, static_cast<size_t>(state.range(2)),
                       state.range(3) == 1);
  for (auto _ : state) {
    auto kv = s.model->NewState();
    if (!s.model->Extend(s.rows, kv.get()).ok()) return state.SkipWithError("extend failed");
  }
}
BENCHMARK(BM_Prefill)
    ->ArgNames({"model", "N", "threads", "bf16"})
    ->ArgsProduct({{2}, {2500}, {1, 2}, {0, 1}})
    ->Args({3, 2500, 2, 0})
    ->ArgsProduct({{256}, {4096}, {2}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// One more event in every channel of a long history.
void BM_Append(benchmark::State& state) {
  const Setup s = Make(state.range(0), static_cast<size_t>(state.range(1)) + 1, 1, static_cast<size_t>(state.range(2)),
                       state.range(3) == 1);
  if (!s.model->Extend(s.rows, s.kv.get()).ok()) return state.SkipWithError("extend failed");
  for (auto _ : state) {
    for (int c = 0; c < s.config.channels(); ++c) s.kv->Truncate(c, s.kv->Rows(c) - 1);
    if (!s.model->Extend(s.rows, s.kv.get()).ok()) return state.SkipWithError("extend failed");
  }
}
BENCHMARK(BM_Append)
    ->ArgNames({"model", "N", "threads", "bf16"})
    ->ArgsProduct({{2}, {2500}, {2}, {0, 1}})
    ->ArgsProduct({{256}, {4096}, {2}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace backstory::grab

int main(int argc, char** argv) {
  backstory::PrintMachine();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
