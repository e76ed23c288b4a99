// Histories whose token rows the card makes: rows against float64, users against the CPU's model, and who makes them
// when the card cannot. Skipped, with the reason, where there is no Hopper card.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "models/grab/cuda/history_tokens.h"
#include "models/grab/cuda/model.h"
#include "models/grab/cuda/network.h"
#include "models/grab/init_random.h"
#include "tests/models/grab_fixture.h"

namespace backstory::grab {
namespace {

struct Card {
  std::shared_ptr<CudaRuntime> runtime;
  std::vector<std::string> lines;
};

std::unique_ptr<Card> OpenCard(std::string* why, bool fall_back = false, int lanes = 1) {
  auto card = std::make_unique<Card>();
  auto runtime =
      CudaRuntime::Open({.kv_bytes = size_t{512} << 20,
                         .lanes = lanes,
                         .warm_rows = 64,
                         .fall_back = fall_back,
                         .log = [lines = &card->lines](const std::string& line) { lines->push_back(line); }});
  if (!runtime.ok()) *why = std::string(runtime.status().message());
  card->runtime = runtime.ok() ? *runtime : nullptr;
  return runtime.ok() ? std::move(card) : nullptr;
}

#define CARD_OR_SKIP(...)                                                       \
  std::string why;                                                              \
  const std::unique_ptr<Card> card = OpenCard(&why __VA_OPT__(, ) __VA_ARGS__); \
  if (card == nullptr) GTEST_SKIP() << why

// A token row of the partial view in float64 (models/grab/token_net.h), and what the card's may be off by.
struct Reference {
  std::vector<double> e, bound;
};

Reference TokenRow(const Config& config, const TensorMap& tensors, const TokenColumns& tokens, size_t row) {
  const auto get = [&](const std::string& name, std::vector<int64_t> shape) {
    const auto view = tensors.Get(name, shape);
    EXPECT_TRUE(view.ok()) << view.status();
    return view->data;
  };
  const auto e = static_cast<size_t>(config.embedding), hidden = static_cast<size_t>(config.gate_mlp_hidden);
  const auto d = static_cast<size_t>(config.d);
  std::vector<double> v;
  for (size_t f = 0; f < tokens.sparse.size(); ++f) {
    const auto& field = config.tokenizer.partial[f];
    const float* table = get("tok.table." + field.table, {int64_t{field.vocab}, config.embedding});
    std::vector<double> sum(e);
    for (uint32_t at = tokens.sparse[f].offsets[row]; at < tokens.sparse[f].offsets[row + 1]; ++at) {
      for (size_t i = 0; i < e; ++i) sum[i] += table[tokens.sparse[f].ids[at] * e + i];
    }
    v.insert(v.end(), sum.begin(), sum.end());
  }
  const auto width = static_cast<int64_t>(v.size());
  double mean = 0, m2 = 0;
  for (double x : v) mean += x / static_cast<double>(width);
  for (double x : v) m2 += (x - mean) * (x - mean) / static_cast<double>(width);
  const float *g = get("tok.p.ln.g", {width}), *b = get("tok.p.ln.b", {width});
  // A product's operands are two parts of bf16 each, of which lo x lo is left out: three errors of 2^-18; its sums are
  // fp32, as the norm's are.
  const double slack = 3 * std::ldexp(1, -18) + 3 * static_cast<double>(width + config.gate_mlp_hidden) * 0x1p-24;
  const auto product = [&](const std::vector<double>& x, const std::vector<double>& off, const float* w,
                           const float* bias, size_t n, std::vector<double>* out_off) {
    std::vector<double> y(n);
    out_off->assign(n, 0);
    for (size_t j = 0; j < n; ++j) {
      double size = std::abs(bias[j]);
      y[j] = bias[j];
      for (size_t i = 0; i < x.size(); ++i) {
        const double term = x[i] * w[i * n + j];
        y[j] += term, size += std::abs(term), (*out_off)[j] += std::abs(off[i] * w[i * n + j]);
      }
      (*out_off)[j] += slack * size;
    }
    return y;
  };
  std::vector<double> normed, none(v.size()), h_off, g_off, e_off;
  for (size_t i = 0; i < v.size(); ++i) normed.push_back((v[i] - mean) / std::sqrt(m2 + 1e-5) * g[i] + b[i]);
  for (size_t i = 0; i < v.size(); ++i) none[i] = slack * (std::abs(normed[i] - b[i]) + std::abs(b[i]));
  std::vector<double> h = product(normed, none, get("tok.p.w1", {width, config.gate_mlp_hidden}),
                                  get("tok.p.b1", {config.gate_mlp_hidden}), hidden, &h_off);
  for (double& x : h) x = std::max(x, 0.0);
  const std::vector<double> gate =
      product(normed, none, get("tok.p.wg", {width, config.d}), get("tok.p.bg", {config.d}), d, &g_off);
  Reference made{
      product(h, h_off, get("tok.p.w2", {config.gate_mlp_hidden, config.d}), get("tok.p.b2", {config.d}), d, &e_off),
      std::vector<double>(d)};
  for (size_t j = 0; j < d; ++j) {
    const double open = 1 / (1 + std::exp(-gate[j]));
    made.bound[j] = e_off[j] * open + std::abs(made.e[j]) * (g_off[j] / 4 + 0x1p-20);  // 2^-20: __expf, division
    made.e[j] *= open;
  }
  return made;
}

TEST(GrabCudaTokens, RowsAreTheFloat64NetworksToFp32) {
  CARD_OR_SKIP();
  for (const bool preset : {false, true}) {
    const Config config = preset ? *PresetConfig("grab-512") : SmallConfig({});
    const TensorMap tensors = preset ? RandomWeights(config, 3) : RandomTensors(config, 3);
    const size_t d = static_cast<size_t>(config.d), stride = (d + 7) / 8 * 8;
    auto& runtime = *card->runtime;
    auto tables = std::make_shared<CudaTokenTables>(runtime.shared_device(), size_t{4} << 30);
    auto tokens = CudaHistoryTokens::Load(config, tensors, static_cast<int>(stride), tables, runtime.shared_device(),
                                          runtime.gemms());
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    auto lane = (*tokens)->NewLane();
    ASSERT_TRUE(lane.ok()) << lane.status();
    auto out = runtime.device().Allocate(CudaHistoryTokens::kRowsMax * stride * sizeof(float), "rows");
    auto workspace = runtime.device().Allocate(CudaGemmLibrary::kWorkspaceBytes, "workspace");
    ASSERT_TRUE(out.ok() && workspace.ok());
    Random random(4);
    const ChannelRows history = RandomHistory(config, 5100, &random);
    double worst = 0;
    for (const size_t count : {1, 2, 63, 64, 65, 1000, 5000}) {
      const size_t first = count % 97;
      ASSERT_EQ(cudaMemset(out->data(), 0xff, out->bytes()), cudaSuccess);  // not a number
      const absl::Status status =
          (*tokens)->Run(history.tokens, first, count, lane->get(), out->as<float>(), workspace->data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      std::vector<float> got(count * stride);
      ASSERT_EQ(cudaMemcpy(got.data(), out->data(), got.size() * sizeof(float), cudaMemcpyDeviceToHost), cudaSuccess);
      for (size_t r = 0; r < count; r += std::max<size_t>(1, count / 50)) {
        const Reference want = TokenRow(config, tensors, history.tokens, first + r);
        for (size_t j = 0; j < d; ++j) {
          const double share = std::abs(got[r * stride + j] - want.e[j]) / want.bound[j];
          worst = std::max(worst, std::isnan(share) ? INFINITY : share);
          ASSERT_LE(worst, 1) << config.name << ": row " << r << " of " << count << ", element " << j << ": "
                              << got[r * stride + j] << ", is " << want.e[j];
        }
        for (size_t j = d; j < stride; ++j) ASSERT_EQ(got[r * stride + j], 0) << "padding of row " << r;
      }
    }
    std::printf("  %s: largest difference %.3f of the bound\n", config.name.c_str(), worst);
  }
}

struct World {
  std::vector<ChannelRows> history;
  std::unique_ptr<Model> cpu, gpu;
  std::unique_ptr<UserKv> cpu_kv;
  CandidateTokens candidates;
  std::vector<float> want;
};

World MakeWorld(const Config& config, const std::vector<size_t>& lengths, uint64_t seed, const Card& card) {
  Random random(seed);
  const TensorMap tensors = RandomTensors(config, seed);
  World w;
  int64_t now_us = 0;
  for (int c = 0; c < config.channels(); ++c) {
    w.history.push_back(RandomHistory(config, lengths[static_cast<size_t>(c) % lengths.size()], &random));
    if (!w.history.back().time_us.empty()) now_us = std::max(now_us, w.history.back().time_us.back());
  }
  w.cpu = MakeModel(config, tensors, nullptr);
  auto gpu = CreateCudaModel(config, tensors, nullptr, Dtype::kF32, card.runtime);
  EXPECT_TRUE(gpu.ok()) << gpu.status();
  if (gpu.ok()) w.gpu = *std::move(gpu);
  w.cpu_kv = w.cpu->NewState();
  EXPECT_TRUE(w.cpu->Extend(w.history, w.cpu_kv.get()).ok());
  w.candidates = RandomCandidates(config, 9, now_us + 5'000'000, &random);
  w.want = ScoreAll(*w.cpu, w.cpu_kv.get(), w.candidates).logits;
  return w;
}

// A new state's scores over what they may be off by: as in grab_cuda_test.
double Share(const Config& config, const World& w, size_t longest) {
  const auto kv = w.gpu->NewState();
  EXPECT_TRUE(w.gpu->Extend(w.history, kv.get()).ok());
  const std::vector<float> got = ScoreAll(*w.gpu, kv.get(), w.candidates).logits;
  double scale = 0, worst = 0;
  for (float x : w.want) scale = std::max(scale, std::abs(static_cast<double>(x)));
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - w.want[i]);
    worst = std::max(worst, std::isnan(difference) ? INFINITY : difference);
  }
  const double layers = config.layers, rounded = (config.latent > 0 ? 9 : 8) * layers * layers + 3;
  return worst / (LogitTolerance(config, longest, scale, Dtype::kBf16) * std::sqrt(rounded / (8 * layers * layers)));
}

TEST(GrabCudaTokens, UsersOfAllLengthsScoreAsTheCpus) {
  CARD_OR_SKIP();
  uint64_t seed = 900;
  for (const ConfigChoice& choice : {ConfigChoice{.channels = 2}, {.channels = 1, .norm = Norm::kPre, .latent = 5}}) {
    const Config config = SmallConfig(choice);
    for (const size_t rows : {1, 4, 5, 6, 64, 65, 128, 129, 1000, 5000, 8192, 8193, 16500}) {
      const World w = MakeWorld(config, {rows, rows / 3}, ++seed, *card);
      ASSERT_NE(w.gpu, nullptr);
      EXPECT_LE(Share(config, w, rows), 1) << rows << " rows";
    }
  }
  EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
  EXPECT_TRUE(card->lines.empty()) << card->lines[0];
}

// Sets of ids that no launch takes are pooled by the CPU, and one after the other on the same lane by the card again.
TEST(GrabCudaTokens, MoreIdsThanALaunchTakesAreTheCpusToPool) {
  CARD_OR_SKIP();
  const Config config = SmallConfig({.channels = 1});
  World w = MakeWorld(config, {300}, 7, *card);
  const World plain = MakeWorld(config, {300}, 7, *card);
  ASSERT_NE(w.gpu, nullptr);
  SparseColumn& column = w.history[0].tokens.sparse[1];
  column = {};
  for (size_t r = 0; r < 300; ++r) {
    for (size_t i = 0; i < 700; ++i) column.ids.push_back(static_cast<uint32_t>((r + i * i) % 9));
    column.offsets.push_back(static_cast<uint32_t>(column.ids.size()));
  }
  w.cpu_kv = w.cpu->NewState();
  ASSERT_TRUE(w.cpu->Extend(w.history, w.cpu_kv.get()).ok());
  w.want = ScoreAll(*w.cpu, w.cpu_kv.get(), w.candidates).logits;
  for (int i = 0; i < 3; ++i) {
    EXPECT_LE(Share(config, w, 300), 1);
    EXPECT_LE(Share(config, plain, 300), 1);
  }
  EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
}

TEST(GrabCudaTokens, OutOfMemoryAnywhereLeavesScoresRight) {
  const Config config = SmallConfig({.channels = 1});
  int by_cpu = 0, quiet = 0;
  for (int n = 1; n <= 40; ++n) {
    CARD_OR_SKIP(true);
    card->runtime->device().FailAllocation(n);
    const World w = MakeWorld(config, {200}, 41, *card);
    card->runtime->device().FailAllocation(0);
    ASSERT_NE(w.gpu, nullptr);
    EXPECT_LE(Share(config, w, 200), 1) << "allocation " << n;
    EXPECT_TRUE(card->runtime->device().health().ok());
    quiet += card->lines.empty();
    for (const std::string& line : card->lines) {
      by_cpu += line.find("its histories' token rows: ") != std::string::npos;
      EXPECT_NE(line.find("no room for"), std::string::npos) << line;
    }
  }
  EXPECT_GE(by_cpu, 3) << "two matrices, a lane's memory";
  EXPECT_GE(quiet, 2) << "a second prefill is not missed, nor what is not asked for";
}

TEST(GrabCudaTokens, ThreadsRecomputeSideBySide) {
  CARD_OR_SKIP(false, 3);
  const Config config = SmallConfig({.channels = 2, .layers = 3});
  std::vector<World> worlds;
  for (uint64_t u = 0; u < 4; ++u) worlds.push_back(MakeWorld(config, {900 + 700 * u, 300}, 50 + u, *card));
  std::vector<double> worst(worlds.size());
  std::vector<std::thread> threads;
  for (size_t u = 0; u < worlds.size(); ++u) {
    threads.emplace_back([&, u] {
      for (int i = 0; i < 20; ++i) worst[u] = std::max(worst[u], Share(config, worlds[u], 3000));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (double share : worst) EXPECT_LE(share, 1);
  EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
}

}  // namespace
}  // namespace backstory::grab
