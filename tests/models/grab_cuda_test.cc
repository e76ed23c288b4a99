// GRAB on a card against the CPU's fp32 model: every kind of architecture, batch and state; and what happens when the
// card fails. Skipped, with the reason, where there is no Hopper card.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

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

// Null where there is no card; the reason goes to `why`.
std::unique_ptr<Card> OpenCard(std::string* why, size_t kv_bytes = size_t{256} << 20, bool fall_back = false) {
  auto card = std::make_unique<Card>();
  auto runtime =
      CudaRuntime::Open({.kv_bytes = kv_bytes,
                         .lanes = 1,
                         .warm_rows = 64,
                         .fall_back = fall_back,
                         .log = [lines = &card->lines](const std::string& line) { lines->push_back(line); }});
  if (!runtime.ok()) {
    *why = std::string(runtime.status().message());
    return nullptr;
  }
  card->runtime = *std::move(runtime);
  return card;
}

#define CARD_OR_SKIP(...)                                        \
  std::string why;                                               \
  const std::unique_ptr<Card> card = OpenCard(&why __VA_ARGS__); \
  if (card == nullptr) GTEST_SKIP() << why

struct World {
  Config config;
  TensorMap tensors;
  std::vector<ChannelRows> history;
  std::unique_ptr<Model> cpu, gpu;
  std::unique_ptr<UserKv> cpu_kv, gpu_kv;
  int64_t now_us = 0;
};

World MakeWorld(const Config& config, const TensorMap& tensors, const std::vector<size_t>& lengths, uint64_t seed,
                const Card& card) {
  Random random(seed);
  World w{config, tensors, {}, {}, {}, {}, {}, 0};
  for (int c = 0; c < config.channels(); ++c) {
    w.history.push_back(RandomHistory(config, lengths[static_cast<size_t>(c) % lengths.size()], &random));
    if (!w.history.back().time_us.empty()) w.now_us = std::max(w.now_us, w.history.back().time_us.back());
  }
  w.now_us += 5'000'000;
  w.cpu = MakeModel(config, tensors, nullptr);
  auto gpu = CreateCudaModel(config, tensors, nullptr, Dtype::kF32, card.runtime);
  EXPECT_TRUE(gpu.ok()) << gpu.status();
  if (!gpu.ok()) return w;
  w.gpu = *std::move(gpu);
  w.cpu_kv = w.cpu->NewState(), w.gpu_kv = w.gpu->NewState();
  EXPECT_TRUE(w.cpu->Extend(w.history, w.cpu_kv.get()).ok());
  EXPECT_TRUE(w.gpu->Extend(w.history, w.gpu_kv.get()).ok());
  return w;
}

// LogitTolerance counts the rounded products of the CPU's bf16 model: eight a layer. The card rounds more of them: the
// latent's, the tokenizer's two and the head's first, which the CPU keeps in fp32.
double CardTolerance(const Config& config, size_t longest, double scale) {
  const double layers = config.layers, counted = 8 * layers * layers;
  const double rounded = (config.latent > 0 ? 9 : 8) * layers * layers + 3;
  return LogitTolerance(config, longest, scale, Dtype::kBf16) * std::sqrt(rounded / counted);
}

// The largest difference over what it may be; also prints what was seen.
double WorstShare(const World& w, const std::vector<float>& got, const std::vector<float>& want, size_t longest,
                  const std::string& what) {
  double scale = 0, worst = 0;
  for (float x : want) scale = std::max(scale, std::abs(static_cast<double>(x)));
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    worst = std::max(worst, std::isnan(difference) ? INFINITY : difference);
  }
  const double bound = CardTolerance(w.config, longest, scale);
  std::printf("  %s: %zu logits, scale %.3f, largest difference %.2e, bound %.2e\n", what.c_str(), want.size(), scale,
              worst, bound);
  return worst / bound;
}

TEST(GrabCuda, ScoresAreTheCpuModelsForEveryArchitecture) {
  CARD_OR_SKIP();
  const ConfigChoice choices[] = {
      {},
      {.channels = 1, .layers = 1},
      {.channels = 3, .layers = 3, .tasks = 2},
      {.norm = Norm::kPre},
      {.latent = 5},
      {.channels = 3, .norm = Norm::kPre, .latent = 7, .mixing = false},
      {.window_rows = 20},
      {.layers = 3, .window_sec = 3'000},
  };
  uint64_t seed = 300;
  for (const ConfigChoice& choice : choices) {
    const Config config = SmallConfig(choice);
    ++seed;
    const World w = MakeWorld(config, RandomTensors(config, seed), {400, 0, 130}, seed, *card);
    ASSERT_NE(w.gpu, nullptr);
    Random random(seed);
    for (const size_t count : {size_t{1}, size_t{7}, size_t{300}}) {
      const CandidateTokens candidates = RandomCandidates(config, count, w.now_us, &random);
      const Scored want = ScoreAll(*w.cpu, w.cpu_kv.get(), candidates),
                   got = ScoreAll(*w.gpu, w.gpu_kv.get(), candidates);
      EXPECT_LE(WorstShare(w, got.logits, want.logits, 400, "choice " + std::to_string(seed)), 1);
    }
    const CandidateTokens candidates = RandomCandidates(config, 3, w.now_us, &random);
    EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, nullptr, candidates).logits, ScoreAll(*w.cpu, nullptr, candidates).logits,
                         0, "no history"),
              1);
  }
  EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
  EXPECT_GT(card->runtime->counters.launches, 0u);
}

TEST(GrabCuda, ScoresOfThePresetsAreTheCpuModels) {
  CARD_OR_SKIP(, size_t{1} << 30);
  for (const char* preset : {"grab-256", "grab-512"}) {
    const Config config = *PresetConfig(preset);
    const World w = MakeWorld(config, RandomWeights(config, 5), {900, 500}, 5, *card);
    ASSERT_NE(w.gpu, nullptr);
    Random random(6);
    for (const size_t count : {size_t{5}, size_t{200}}) {
      const CandidateTokens candidates = RandomCandidates(config, count, w.now_us, &random);
      EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                           ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 900, preset),
                1);
    }
  }
}

// Launches of two passes share the card: none waits for the other forever, and neither changes a bit.
TEST(GrabCuda, TwoPassesAtATimeScoreAsOne) {
  const auto runtime = CudaRuntime::Open({.kv_bytes = size_t{1} << 30, .lanes = 2, .warm_rows = 64});
  if (!runtime.ok()) GTEST_SKIP() << runtime.status().message();
  const Config config = *PresetConfig("grab-512");
  const World w = MakeWorld(config, RandomWeights(config, 5), {2000, 900}, 5, {.runtime = *runtime});
  ASSERT_NE(w.gpu, nullptr);
  std::vector<std::thread> threads;
  std::atomic<int> different = 0;
  for (const size_t count : {size_t{200}, size_t{500}}) {
    threads.emplace_back([&w, &config, &different, count] {
      Random random(count);
      const CandidateTokens candidates = RandomCandidates(config, count, w.now_us, &random);
      const std::vector<float> first = ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits;
      for (int i = 0; i < 150; ++i) different += ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits != first;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
  EXPECT_EQ((*runtime)->counters.fallbacks, 0u);
}

TEST(GrabCuda, SegmentsOfOneCallSeeTheirOwnUsers) {
  CARD_OR_SKIP();
  const Config config = SmallConfig({.tasks = 2});
  const TensorMap tensors = RandomTensors(config, 3);
  const World a = MakeWorld(config, tensors, {300, 200}, 11, *card),
              b = MakeWorld(config, tensors, {5, 700}, 12, *card);
  Random random(13);
  const CandidateTokens for_a = RandomCandidates(config, 33, a.now_us, &random);
  const CandidateTokens for_b = RandomCandidates(config, 70, b.now_us, &random);
  const std::vector<float> want_a = ScoreAll(*a.cpu, a.cpu_kv.get(), for_a).logits;
  const std::vector<float> want_b = ScoreAll(*b.cpu, b.cpu_kv.get(), for_b).logits;
  std::vector<float> got_a(want_a.size(), NAN), got_b(want_b.size(), NAN), got_part(want_a.size(), NAN);
  const std::vector<size_t> all_a{300, 200}, all_b{5, 700}, part{150, 130}, first{140, 0};
  // History cut at both ends: rows [140, 150) and [0, 130).
  const ScoreSegment segments[] = {
      {.kv = a.gpu_kv.get(), .visible_rows = all_a, .candidates = &for_a, .logits = got_a.data()},
      {.kv = b.gpu_kv.get(), .visible_rows = all_b, .candidates = &for_b, .logits = got_b.data()},
      {.kv = a.gpu_kv.get(),
       .visible_rows = part,
       .first_row = first,
       .candidates = &for_a,
       .logits = got_part.data()}};
  ASSERT_TRUE(a.gpu->Score(segments).ok());
  std::vector<float> want_part(want_a.size(), NAN);
  const ScoreSegment cut{
      .kv = a.cpu_kv.get(), .visible_rows = part, .first_row = first, .candidates = &for_a, .logits = want_part.data()};
  ASSERT_TRUE(a.cpu->Score({&cut, 1}).ok());
  EXPECT_LE(WorstShare(a, got_a, want_a, 300, "user a"), 1);
  EXPECT_LE(WorstShare(b, got_b, want_b, 700, "user b"), 1);
  EXPECT_LE(WorstShare(a, got_part, want_part, 150, "part of a"), 1);
}

TEST(GrabCuda, AStateThatGrowsAndShrinksStaysTheCpus) {
  CARD_OR_SKIP();
  const Config config = SmallConfig({});
  const World w = MakeWorld(config, RandomTensors(config, 4), {0, 0}, 21, *card);
  Random random(22);
  std::vector<ChannelRows> full;
  for (int c = 0; c < 2; ++c) full.push_back(RandomHistory(config, 500, &random));
  const auto to = [&](size_t rows) {
    std::vector<ChannelRows> prefix;
    for (const ChannelRows& channel : full) prefix.push_back(Prefix(channel, rows));
    for (int c = 0; c < 2; ++c) w.cpu_kv->Truncate(c, rows), w.gpu_kv->Truncate(c, rows);
    ASSERT_TRUE(w.cpu->Extend(prefix, w.cpu_kv.get()).ok());
    ASSERT_TRUE(w.gpu->Extend(prefix, w.gpu_kv.get()).ok());
  };
  const int64_t now = std::max(full[0].time_us.back(), full[1].time_us.back()) + 1;
  const CandidateTokens candidates = RandomCandidates(config, 20, now, &random);
  for (const size_t rows : {100, 101, 128, 129, 400, 130, 131, 256, 500, 1, 300}) {
    to(rows);
    EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                         ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 500, std::to_string(rows) + " rows"),
              1);
  }
}

// Prefill in several chunks, with windows that end inside of them; the card computes K/V that the CPU's scores agree
// with.
TEST(GrabCuda, LongHistoriesAreComputedOnTheCardAsOnTheCpu) {
  CARD_OR_SKIP();
  for (const ConfigChoice& choice :
       {ConfigChoice{.layers = 3}, {.norm = Norm::kPre, .window_rows = 700}, {.latent = 5, .window_sec = 200'000}}) {
    const Config config = SmallConfig(choice);
    const World w = MakeWorld(config, RandomTensors(config, 9), {5000, 300}, 71, *card);
    ASSERT_NE(w.gpu, nullptr);
    Random random(72);
    const CandidateTokens candidates = RandomCandidates(config, 20, w.now_us, &random);
    EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                         ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 5000, "5000 rows"),
              1);
    EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
  }
  EXPECT_GE(card->runtime->PoolStats().rows_computed, 3 * 5300u);
}

// A prefilled state and one appended row by row differ by rounding alone.
TEST(GrabCuda, AppendedRowsScoreAsPrefilledOnes) {
  CARD_OR_SKIP();
  const Config config = SmallConfig({.layers = 3});
  const World w = MakeWorld(config, RandomTensors(config, 10), {140, 133}, 81, *card);
  const auto appended = w.gpu->NewState();
  for (size_t rows = 1; rows <= 140; ++rows) {
    std::vector<ChannelRows> prefix;
    for (const ChannelRows& channel : w.history)
      prefix.push_back(Prefix(channel, std::min(rows, channel.time_us.size())));
    ASSERT_TRUE(w.gpu->Extend(prefix, appended.get()).ok());
  }
  Random random(82);
  const CandidateTokens candidates = RandomCandidates(config, 20, w.now_us, &random);
  const std::vector<float> want = ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits;
  EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, appended.get(), candidates).logits, want, 140, "appended"), 1);
  EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits, want, 140, "prefilled"), 1);
}

TEST(GrabCuda, UsersBeyondTheBudgetLeaveAndComeBack) {
  // SmallConfig's block: 2 layers x 2 x 3 heads x 128 x 64 bf16 = 192 KiB; a user has 2 x 3, scratch takes as many.
  CARD_OR_SKIP(, size_t{20} * 192 * 1024);
  const Config config = SmallConfig({});
  const TensorMap tensors = RandomTensors(config, 5);
  const World w = MakeWorld(config, tensors, {300, 300}, 31, *card);
  std::vector<std::unique_ptr<UserKv>> users;
  for (int i = 0; i < 6; ++i) {
    users.push_back(w.gpu->NewState());
    ASSERT_TRUE(w.gpu->Extend(w.history, users.back().get()).ok());
  }
  Random random(32);
  const CandidateTokens candidates = RandomCandidates(config, 9, w.now_us, &random);
  const std::vector<float> want = ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits;
  for (int round = 0; round < 2; ++round) {
    for (const auto& user : users) {
      EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, user.get(), candidates).logits, want, 300, "evicted user"), 1);
    }
  }
  EXPECT_GT(card->runtime->PoolStats().evicted_users, 6u);
  users.clear();
  EXPECT_LE(card->runtime->PoolStats().users, 1u);
}

// R14: at every allocation of loading and scoring; the process lives, the CPU answers.
TEST(GrabCuda, OutOfMemoryAnywhereFallsBackToTheCpu) {
  const Config config = SmallConfig({});
  const TensorMap tensors = RandomTensors(config, 6);
  int failed = 0;
  for (int n = 1; n <= 16; ++n) {
    CARD_OR_SKIP(, size_t{64} << 20, true);
    card->runtime->device().FailAllocation(n);
    const World w = MakeWorld(config, tensors, {50, 40}, 41, *card);
    card->runtime->device().FailAllocation(0);
    ASSERT_NE(w.gpu, nullptr);
    Random random(42);
    const CandidateTokens candidates = RandomCandidates(config, 9, w.now_us, &random);
    EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                         ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 50, "allocation " + std::to_string(n)),
              1);
    if (card->lines.empty()) {
      EXPECT_EQ(card->runtime->counters.fallbacks, 0u);
      continue;
    }
    ++failed;
    EXPECT_EQ(card->lines.size(), 1u);
    EXPECT_NE(card->lines[0].find("no room for"), std::string::npos) << card->lines[0];
    const bool tables = card->lines[0].find("token rows") != std::string::npos;  // the card does the rest
    EXPECT_EQ(card->runtime->counters.fallbacks > 0, !tables);
    EXPECT_TRUE(card->runtime->device().health().ok());
  }
  EXPECT_GE(failed, 12);
}

// Who cannot fit even in an empty pool pushes nobody out.
TEST(GrabCuda, AUserLargerThanThePoolLeavesTheOthersThere) {
  CARD_OR_SKIP(, size_t{8} * 192 * 1024, true);
  const Config config = SmallConfig({});
  const World w = MakeWorld(config, RandomTensors(config, 7), {900, 900}, 51, *card);  // 2 x 8 pages of 8
  const auto small = w.gpu->NewState();
  const std::vector<ChannelRows> prefix{Prefix(w.history[0], 100), Prefix(w.history[1], 100)};
  ASSERT_TRUE(w.gpu->Extend(prefix, small.get()).ok());
  Random random(52);
  const CandidateTokens candidates = RandomCandidates(config, 9, w.now_us, &random);
  ScoreAll(*w.gpu, w.gpu_kv.get(), candidates);
  EXPECT_EQ(card->runtime->PoolStats().evicted_users, 0u);
  EXPECT_EQ(card->runtime->PoolStats().blocks_used, 2u);
}

TEST(GrabCuda, PressureInThePoolFallsBackAndReturns) {
  CARD_OR_SKIP(, size_t{8} * 192 * 1024, true);
  const Config config = SmallConfig({});
  const World w = MakeWorld(config, RandomTensors(config, 7), {900, 900}, 51, *card);  // 2 x 8 pages: does not fit
  Random random(52);
  const CandidateTokens candidates = RandomCandidates(config, 9, w.now_us, &random);
  EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                       ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 900, "no room"),
            1);
  EXPECT_EQ(card->runtime->counters.fallbacks, 1u);
  EXPECT_GT(w.gpu_kv->Bytes(), w.cpu_kv->Bytes()) << "the K/V that the CPU computed count";
  EXPECT_EQ(card->runtime->PoolStats().evicted_users, 0u);
  for (int c = 0; c < 2; ++c) w.cpu_kv->Truncate(c, 100), w.gpu_kv->Truncate(c, 100);
  EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits,
                       ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits, 900, "room again"),
            1);
  EXPECT_EQ(card->runtime->counters.fallbacks, 1u);
  EXPECT_EQ(card->runtime->counters.launches, 1u);
}

// R15: an error that the context does not survive.
TEST(GrabCuda, ALostCardIsGivenUpOnceAndTheCpuTakesOver) {
  for (const bool fall_back : {true, false}) {
    CARD_OR_SKIP(, size_t{64} << 20, fall_back);
    const Config config = SmallConfig({});
    const World w = MakeWorld(config, RandomTensors(config, 8), {50, 40}, 61, *card);
    ASSERT_NE(w.gpu, nullptr);
    Random random(62);
    const CandidateTokens candidates = RandomCandidates(config, 9, w.now_us, &random);
    const std::vector<float> want = ScoreAll(*w.cpu, w.cpu_kv.get(), candidates).logits;
    EXPECT_LE(WorstShare(w, ScoreAll(*w.gpu, w.gpu_kv.get(), candidates).logits, want, 50, "before"), 1);
    card->runtime->device().InjectError(700);  // cudaErrorIllegalAddress
    std::vector<float> got(want.size(), NAN);
    const std::vector<size_t> visible{50, 40};
    const ScoreSegment segment{
        .kv = w.gpu_kv.get(), .visible_rows = visible, .candidates = &candidates, .logits = got.data()};
    for (int i = 0; i < 3; ++i) {
      const absl::Status status = w.gpu->Score({&segment, 1});
      if (fall_back) {
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(got, want) << "the CPU's own bits";
      } else {
        EXPECT_TRUE(absl::IsUnavailable(status)) << status;
        EXPECT_NE(status.message().find("cudaErrorIllegalAddress"), absl::string_view::npos) << status;
      }
    }
    ASSERT_EQ(card->lines.size(), 1u);
    EXPECT_NE(card->lines[0].find("given up"), std::string::npos);
  }
}

TEST(GrabCuda, DevicesThatAreNotThereAreRefusedByName) {
  const auto runtime = CudaRuntime::Open({.ordinal = 77});
  ASSERT_FALSE(runtime.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(runtime.status()));
  EXPECT_NE(runtime.status().message().find("cuda:77"), absl::string_view::npos) << runtime.status();
}

}  // namespace
}  // namespace backstory::grab
