#include "serving/cli/bench_model.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "features/tokenizer.h"
#include "fmt/format.h"
#include "kernels/own_processors.h"
#include "kernels/peak.h"
#include "models/grab/init_random.h"
#include "models/grab/model.h"
#include "models/grab/tensors.h"
#include "serving/cli/exit_codes.h"
#include "serving/cli/local_bench.h"

namespace backstory {
namespace {

struct Options {
  std::string model = "grab-256";
  std::vector<size_t> histories = {1024, 4096};
  size_t candidates = 256;
  size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::string precision = "both";
  std::vector<std::string> what = {"score", "prefill", "append"};
  int explain = 0;
  double seconds = 2;
  bool json = false;
};

constexpr char kExamples[] = R"(Examples:
  backstory bench model
  backstory bench model --model grab-64 --history 2500 --candidates 200 --threads 1
  backstory bench model --what score --precision bf16 --history 1024 --json
Random weights (time does not depend on them), the same number of rows in every channel. score: one request's candidates
against cached K/V, candidate tokens, bias, gates and head included; users are rotated so that K/V comes from memory.
prefill: the whole history at once. append: one more row in every channel. "floor" is the algorithm's arithmetic at the
rate of this build's own GEMM on the same threads in the same run (embedding sums and element-wise work left out; of a
prefill with each row's own share of the triangle; append has none, it reads the weights). No server is needed.)";

// grab-64 has the size of the model that ships.
grab::Config ConfigOf(const std::string& name) {
  auto preset = grab::PresetConfig(name == "grab-64" ? "grab-256" : name);
  if (!preset.ok()) FailCommand(kExitUsage, "--model: " + std::string(preset.status().message()) + ", grab-64");
  grab::Config config = std::move(*preset);
  if (name != "grab-64") return config;
  config.d = 64;
  config.heads = 4;
  config.d_head = 16;
  config.layers = 2;
  config.ffn = 128;
  config.head_hidden = 64;
  config.embedding = 16;
  config.gate_mlp_hidden = 128;
  return config;
}

class Inputs {
 public:
  explicit Inputs(const grab::Config& config) : config_(config) {}

  TokenColumns Columns(size_t rows, const std::vector<uint32_t>& vocab, size_t dense) {
    TokenColumns t;
    t.rows = rows;
    for (uint32_t v : vocab) {
      SparseColumn column;
      for (size_t r = 0; r < rows; ++r) {
        column.ids.push_back(static_cast<uint32_t>(random_() % v));
        column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
      }
      t.sparse.push_back(column);
    }
    for (size_t i = 0; i < rows * dense; ++i) t.dense.push_back(normal_(random_));
    return t;
  }

  // Seconds to days apart.
  ChannelRows History(size_t rows) {
    ChannelRows r;
    std::vector<uint32_t> vocab;
    for (const auto& field : config_.tokenizer.partial) vocab.push_back(field.vocab);
    r.tokens = Columns(rows, vocab, 0);
    int64_t time = kFirstTimeUs;
    for (size_t i = 0; i < rows; ++i) {
      time += static_cast<int64_t>(std::exp(2.5f * normal_(random_) + 5) * 1e6);
      r.time_us.push_back(time);
      r.action.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(config_.n_act - 1)));
      r.tie.push_back(time);
      r.event_id.push_back(i);
    }
    r.closed = rows;
    return r;
  }

  CandidateTokens Candidates(size_t count, int64_t now_us) {
    std::vector<uint32_t> user, item;
    for (const auto& field : config_.tokenizer.full) (IsUserSide(field) ? user : item).push_back(field.vocab);
    size_t user_dense = 0, item_dense = 0;
    for (const auto& field : config_.tokenizer.full_dense) ++(IsUserSide(field) ? user_dense : item_dense);
    CandidateTokens tokens;
    tokens.user = Columns(1, user, user_dense);
    tokens.item = Columns(count, item, item_dense);
    tokens.now_us = now_us;
    return tokens;
  }

  static constexpr int64_t kFirstTimeUs = 1'700'000'000'000'000;

 private:
  const grab::Config& config_;
  std::mt19937_64 random_{3};
  std::normal_distribution<float> normal_;
};

struct Result {
  std::string what;
  size_t history = 0;
  Dtype dtype = Dtype::kF32;
  Timing timing;
  double flops = 0;  // 0: not counted
  double floor = 0;  // seconds
  size_t kv_bytes = 0;
};

class ModelBench {
 public:
  ModelBench(const Options& options, const grab::Config& config, const TensorMap& weights, Dtype dtype,
             ThreadPool* pool)
      : options_(options), config_(config), dtype_(dtype), gemm_flops_(GemmFlops(dtype, pool)) {
    auto model = grab::CreateModel(config, weights, pool, dtype);
    CheckOk(model.status(), "create the model");
    model_ = std::move(*model);
  }
  double gemm_flops() const { return gemm_flops_; }

  void Load(size_t history) {
    history_ = history;
    Inputs inputs(config_);
    rows_.clear();
    for (int c = 0; c < config_.channels(); ++c) rows_.push_back(inputs.History(history));
    const int64_t last_us = history == 0 ? Inputs::kFirstTimeUs : rows_[0].time_us.back();
    candidates_ = inputs.Candidates(options_.candidates, last_us + 3'600'000'000);
  }
  Result Score() const;
  Result Prefill() const;
  Result Append() const;

 private:
  std::unique_ptr<grab::UserKv> Filled() const {
    auto kv = model_->NewState();
    CheckOk(model_->Extend(rows_, kv.get()), "prefill");
    return kv;
  }
  Result ResultOf(const char* what, const Timing& timing, double macs, size_t kv_bytes) const {
    return {what, history_, dtype_, timing, 2 * macs, 2 * macs / gemm_flops_, kv_bytes};
  }
  double channels() const { return static_cast<double>(config_.channels()); }

  const Options& options_;
  const grab::Config& config_;
  Dtype dtype_;
  double gemm_flops_;
  std::unique_ptr<grab::Model> model_;
  size_t history_ = 0;
  std::vector<ChannelRows> rows_;
  CandidateTokens candidates_;
};

Result ModelBench::Score() const {
  constexpr size_t kBytes = 96 << 20, kUsersMost = 32;  // more than any cache
  std::vector<std::unique_ptr<grab::UserKv>> users;
  for (size_t bytes = 0; bytes < kBytes && users.size() < kUsersMost; bytes += users.back()->Bytes()) {
    users.push_back(Filled());
  }
  const std::vector<size_t> visible(rows_.size(), history_);
  std::vector<float> logits(candidates_.item.rows * config_.tasks.size());
  std::vector<std::vector<grab::Attribution>> attributions;
  grab::ScoreSegment segment{.visible_rows = visible,
                             .candidates = &candidates_,
                             .logits = logits.data(),
                             .explain_top = options_.explain,
                             .attributions = &attributions};
  size_t turn = 0;
  const Timing timing = TimeCalls(options_.seconds, [&] {
    segment.kv = users[turn++ % users.size()].get();
    CheckOk(model_->Score({&segment, 1}), "score");
  });
  const grab::Costs costs = grab::CostsOf(config_);
  const double macs =
      static_cast<double>(costs.macs_per_candidate) +
      channels() * static_cast<double>(history_) * static_cast<double>(costs.macs_per_candidate_and_row);
  return ResultOf("score", timing, macs * static_cast<double>(options_.candidates), users[0]->Bytes());
}

Result ModelBench::Prefill() const {
  size_t bytes = 0;
  const Timing timing = TimeCalls(options_.seconds, [&] { bytes = Filled()->Bytes(); });
  // A row attends to those before it, in all layers but the last.
  const grab::Costs costs = grab::CostsOf(config_);
  const double rows = static_cast<double>(history_), layers = static_cast<double>(config_.layers);
  const double attend = rows * rows / 2 * static_cast<double>(costs.macs_per_candidate_and_row) * (layers - 1) / layers;
  return ResultOf("prefill", timing, channels() * (rows * static_cast<double>(costs.macs_per_appended_row) + attend),
                  bytes);
}

Result ModelBench::Append() const {
  const auto kv = Filled();
  const Timing timing = TimeCalls(options_.seconds, [&] {
    for (int c = 0; c < config_.channels(); ++c) kv->Truncate(c, kv->Rows(c) - 1);
    CheckOk(model_->Extend(rows_, kv.get()), "append");
  });
  return ResultOf("append", timing, 0, kv->Bytes());
}

void PrintResult(const Options& options, const Result& r) {
  const std::string shape =
      r.what == "score" ? fmt::format("1 x {} x {}", r.history, options.candidates) : fmt::format("1 x {}", r.history);
  fmt::print("{:<8} {:<18} {:<5} {:>10.2f} {:>10.2f}", r.what, shape, PrecisionName(r.dtype), r.timing.median * 1e3,
             r.timing.least * 1e3);
  if (r.flops == 0) {
    fmt::print(" {:>10} {:>10} {:>9}", "", "", "");
  } else {
    fmt::print(" {:>10.2f} {:>10.2f} {:>9.2f}", r.flops * 1e-9, r.floor * 1e3, r.timing.median / r.floor);
  }
  fmt::print(" {:>9.1f}\n", static_cast<double>(r.kv_bytes) * 1e-6);
}

nlohmann::ordered_json ToJson(const Result& r) {
  nlohmann::ordered_json out;
  out["what"] = r.what;
  out["history"] = r.history;
  out["precision"] = PrecisionName(r.dtype);
  out["median_ms"] = r.timing.median * 1e3;
  out["least_ms"] = r.timing.least * 1e3;
  out["samples"] = r.timing.samples;
  if (r.flops > 0) {
    out["gflop"] = r.flops * 1e-9;
    out["floor_ms"] = r.floor * 1e3;
  }
  out["kv_bytes"] = r.kv_bytes;
  return out;
}

std::vector<Result> RunWhat(const Options& options, ModelBench* bench) {
  std::vector<Result> results;
  for (const std::string& what : options.what) {
    if (what == "score") {
      results.push_back(bench->Score());
    } else if (what == "prefill") {
      results.push_back(bench->Prefill());
    } else {
      results.push_back(bench->Append());
    }
    if (!options.json) PrintResult(options, results.back());
  }
  return results;
}

void BenchModel(const Options& options) {
  const grab::Config config = ConfigOf(options.model);
  OwnProcessors processors(options.threads);
  ThreadPool pool(options.threads);
  processors.Pin();
  nlohmann::ordered_json out = MachineReport();
  out["model"] = options.model;
  out["threads"] = options.threads;
  out["candidates"] = options.candidates;
  out["explain"] = options.explain;
  if (!options.json) {
    PrintMachineReport();
    fmt::print("{}: {} layers, {} channels, {} heads x {}, d {}, ffn {}; {} threads\n", options.model, config.layers,
               config.channels(), config.heads, config.d_head, config.d, config.ffn, options.threads);
    fmt::print("{:<8} {:<18} {:<5} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}\n", "", "users x N x M", "", "median ms",
               "least ms", "GFLOP", "floor ms", "x floor", "K/V MB");
  }
  const TensorMap weights = grab::RandomWeights(config, 1);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    if (options.precision != "both" && options.precision != PrecisionName(dtype)) continue;
    ModelBench bench(options, config, weights, dtype, &pool);
    out[std::string("gemm_gflops_") + PrecisionName(dtype)] = bench.gemm_flops() * 1e-9;
    if (!options.json) {
      fmt::print("own GEMM on {} threads, {}: {:.0f} GFLOP/s\n", options.threads, PrecisionName(dtype),
                 bench.gemm_flops() * 1e-9);
    }
    for (const size_t history : options.histories) {
      bench.Load(history);
      for (const Result& result : RunWhat(options, &bench)) out["results"].push_back(ToJson(result));
    }
  }
  if (options.json) std::cout << out.dump() << "\n";
}

}  // namespace

void AddBenchModel(CLI::App* bench) {
  auto options = std::make_shared<Options>();
  CLI::App* command = bench->add_subcommand("model", "GRAB in process: cached scoring, prefill and append");
  command->footer(kExamples);
  command->add_option("--model", options->model, "A preset of `model init-random`, or grab-64")->capture_default_str();
  command->add_option("--history", options->histories, "Rows in every channel, one or several")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  command->add_option("--candidates", options->candidates, "Candidates a request")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads, each on a processor of its own")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--precision", options->precision, "f32, bf16 or both")
      ->check(CLI::IsMember({"f32", "bf16", "both"}))
      ->capture_default_str();
  command->add_option("--what", options->what, "score, prefill, append: one or several")
      ->check(CLI::IsMember({"score", "prefill", "append"}))
      ->capture_default_str();
  command->add_option("--explain", options->explain, "Explained rows a candidate and channel")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "Duration of each measurement")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print as JSON");
  command->callback([options] { BenchModel(*options); });
}

}  // namespace backstory
