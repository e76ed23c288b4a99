// GLASS on a card against the public implementation's outputs and the CPU: precisions, architectures, batches. Skipped,
// with the reason, where there is no Hopper card; what needs none is tested everywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/dtype.h"
#include "models/glass/cuda/model.h"
#include "tests/models/glass_conformance_fixture.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

std::shared_ptr<grab::CudaDevice> OpenCard(std::string* why) {
  auto device = grab::CudaDevice::Open(0);
  if (device.ok()) return *std::move(device);
  *why = std::string(device.status().message());
  return nullptr;
}
#define CARD_OR_SKIP()              \
  std::string why;                  \
  const auto card = OpenCard(&why); \
  if (card == nullptr) GTEST_SKIP() << why

CudaGlassOptions Options(CudaPrecision precision) {
  return {.precision = precision, .beam_max = 256, .users_max = 16, .rows_max = 512, .lanes = 1};
}

std::unique_ptr<const CudaGlass> MakeGlass(const Config& config, const TensorMap& tensors, CudaPrecision precision,
                                           const std::shared_ptr<grab::CudaDevice>& card) {
  auto glass = CudaGlass::Create(config, tensors, card, Options(precision));
  EXPECT_TRUE(glass.ok()) << glass.status();
  return glass.ok() ? *std::move(glass) : nullptr;
}

class GlassCudaConformance : public testing::TestWithParam<std::string> {};

TEST_P(GlassCudaConformance, BeamsInFp32) {
  CARD_OR_SKIP();
  const Case c = LoadCase(GetParam());
  const auto glass = MakeGlass(c.version.config, c.version.tensors, CudaPrecision::kFp32, card);
  ASSERT_NE(glass, nullptr);
  const CudaUser user =
      MakeCudaUser(c.version.config, c.short_tokens, c.tier, BucketsOf(*c.version.catalogue, c.history));
  double worst = 0;
  for (const SearchMode mode : {SearchMode::kFree, SearchMode::kLevel}) {
    std::array<std::vector<Beam>, kLevels> steps;
    CudaGlassRequest request{&user, static_cast<size_t>(c.version.config.beam), mode, nullptr};
    CudaGlassReply reply{{}, &steps};
    const absl::Status status = glass->Search({&request, 1}, {&reply, 1});
    ASSERT_TRUE(status.ok()) << status;
    for (size_t step = 0; step < kLevels; ++step) {
      const std::string at = (mode == SearchMode::kFree ? "step" : "level_step") + std::to_string(step + 1);
      const std::vector<int64_t> tokens = Read<int64_t>(c.file, "out." + at + "_tokens");
      const std::vector<double> scores = Read<double>(c.file, "out64." + at + "_scores");
      ASSERT_EQ(steps[step].size(), scores.size()) << at;
      for (size_t w = 0; w < scores.size(); ++w) {
        for (size_t p = 0; p <= step; ++p) {
          EXPECT_EQ(tokens[w * (step + 1) + p], steps[step][w].tokens[p]) << at << " beam " << w;
        }
        EXPECT_NEAR(scores[w], steps[step][w].score, kScoreBound) << at << " beam " << w;
        worst = std::max(worst, std::abs(scores[w] - static_cast<double>(steps[step][w].score)));
      }
    }
  }
  std::printf("  largest difference of a score %.2e, bound %.0e\n", worst, kScoreBound);
}

INSTANTIATE_TEST_SUITE_P(All, GlassCudaConformance, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name = info.param.substr(0, info.param.size() - std::string(".safetensors").size());
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

// RandomTensors is well conditioned at the fixture's widths; wider matrices sum more terms, and unscaled attention then
// saturates. Rounding would be all that scores of such a model show.
TensorMap Conditioned(const Config& config, uint32_t seed) {
  const TensorMap random = RandomTensors(config, seed);
  const Config small = SmallConfig();
  TensorMap tensors;
  for (const std::string& name : random.Names()) {
    const TensorView view = *random.Find(name);
    std::vector<float> values(view.data, view.data + view.size);
    double scale = 1;
    const auto ends = [&](const char* end) { return name.ends_with(end); };
    if (ends(".q") || ends(".k") || ends(".v") || ends("retrieved.w")) scale = static_cast<double>(small.d) / config.d;
    if (ends(".q")) scale *= static_cast<double>(small.d_kv) / config.d_kv;
    if (ends(".o")) scale = static_cast<double>(small.inner()) / static_cast<double>(config.inner());
    if (ends("w1") || ends("gate.w") || ends("token_embedding")) scale = static_cast<double>(small.d) / config.d;
    if (ends("w2")) scale = static_cast<double>(small.ffn) / config.ffn;
    for (float& value : values) value *= static_cast<float>(std::sqrt(scale));
    EXPECT_TRUE(tensors.Add(name, view.shape, std::move(values)).ok());
  }
  return tensors;
}

// A version with random weights, and users of different lengths.
struct World {
  Config config;
  TensorMap tensors;
  std::unique_ptr<const Catalogue> catalogue;
  std::unique_ptr<const Network> network;
  std::vector<History> histories;
  std::vector<CudaUser> users;
};

World MakeWorld(const Config& config, uint32_t seed, const std::vector<size_t>& lengths, size_t items = 200) {
  World w{config, Conditioned(config, seed), RandomCatalogue(config, items, seed), nullptr, {}, {}};
  w.network = *Network::Create(config, w.tensors);
  std::mt19937 random(seed);
  for (const size_t length : lengths) {
    History& history = w.histories.emplace_back(w.catalogue.get());
    for (size_t i = 0; i < length; ++i) history.Append(static_cast<uint32_t>(random() % items));
    w.users.push_back(MakeCudaUser(*w.catalogue, history));
  }
  return w;
}

std::vector<Beam> OnCpu(const World& w, size_t user, size_t beam, SearchMode mode) {
  SearchOptions options;
  options.beam = beam;
  options.mode = mode;
  options.trie = &w.catalogue->trie();
  return Search(*w.network, Encode(*w.network, w.histories[user], nullptr), BucketsOf(*w.catalogue, w.histories[user]),
                options);
}

// Both are within the conformance bound of exact arithmetic.
constexpr double kFp32Bound = 2 * kScoreBound;

// Both are fp32, summed in other orders: scores differ by rounding, and so may the order of beams that lie closer than
// that. Beam by beam the scores must agree, and every beam must be the other's where no neighbour is that close.
void ExpectBeams(const std::vector<Beam>& want, const std::vector<Beam>& got, double bound, const std::string& what) {
  ASSERT_EQ(want.size(), got.size()) << what;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(want[i].score, got[i].score, bound) << what << " beam " << i;
    const bool close = (i > 0 && want[i - 1].score - want[i].score < 2 * bound) || i + 1 == want.size() ||
                       want[i].score - want[i + 1].score < 2 * bound;
    if (close) continue;
    ASSERT_EQ(want[i].tokens, got[i].tokens) << what << " beam " << i;
    ASSERT_EQ(want[i].node, got[i].node) << what << " beam " << i;
  }
}

std::vector<CudaGlassReply> OnCard(const CudaGlass& glass, const World& w, const std::vector<size_t>& users,
                                   size_t beam, SearchMode mode, const CudaTrie* trie) {
  std::vector<CudaGlassRequest> requests;
  for (const size_t user : users) requests.push_back({&w.users[user], beam, mode, trie});
  std::vector<CudaGlassReply> replies(requests.size());
  const absl::Status status = glass.Search(requests, replies);
  EXPECT_TRUE(status.ok()) << status;
  return replies;
}

std::vector<std::pair<std::string, Config>> Architectures() {
  std::vector<std::pair<std::string, Config>> all;
  const auto add = [&](const std::string& name, const auto& change) {
    Config config = SmallConfig();
    change(&config);
    all.emplace_back(name, config);
  };
  add("small", [](Config*) {});
  add("no_tier", [](Config* c) { c->tier_edges = {}; });
  add("no_search", [](Config* c) { c->retrieved_items = 0; });
  add("paper", [](Config* c) {
    c->tier_position = TierPosition::kLast, c->gate_input = GateInput::kMemory, c->tokens = TokenLayout::kDense;
    c->tier_similarity = TierSimilarity::kCosine, c->neighbours = 2, c->neighbour_below = 3, c->first_step_epsilon = 0;
  });
  add("wide", [](Config* c) { c->d = 72, c->heads = 5, c->d_kv = 20, c->ffn = 100, c->short_items = 40; });
  add("eight_heads",
      [](Config* c) { c->d = 96, c->heads = 8, c->d_kv = 32, c->decoder_layers = 3, c->short_items = 80; });
  add("one_layer", [](Config* c) { c->encoder_layers = 1, c->decoder_layers = 1, c->heads = 1; });
  add("many_places", [](Config* c) {
    c->levels = {40, 300, 700}, c->tokens = TokenLayout::kDense, c->vocabulary = 1043, c->retrieved_items = 60;
  });
  return all;
}

TEST(GlassCuda, BeamsOfEveryArchitectureAreTheCpusInFp32) {
  CARD_OR_SKIP();
  uint32_t seed = 40;
  for (const auto& [name, config] : Architectures()) {
    const World w = MakeWorld(config, ++seed, {0, 1, 5, 30, 300});
    const auto glass = MakeGlass(config, w.tensors, CudaPrecision::kFp32, card);
    ASSERT_NE(glass, nullptr);
    const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
    for (const SearchMode mode : {SearchMode::kFree, SearchMode::kLevel, SearchMode::kValid}) {
      for (const size_t beam : {size_t{1}, size_t{20}, size_t{70}}) {
        const auto replies = OnCard(*glass, w, {0, 1, 2, 3, 4}, beam, mode, trie.get());
        for (size_t user = 0; user < w.users.size(); ++user) {
          ExpectBeams(OnCpu(w, user, beam, mode), replies[user].beams, kFp32Bound,
                      name + " mode " + std::to_string(static_cast<int>(mode)) + " beam " + std::to_string(beam) +
                          " user " + std::to_string(user));
        }
      }
    }
  }
}

void ExpectSame(const CudaGlassReply& want, const CudaGlassReply& got, const std::string& what) {
  ASSERT_EQ(want.beams.size(), got.beams.size()) << what;
  for (size_t b = 0; b < want.beams.size(); ++b) {
    ASSERT_EQ(want.beams[b].tokens, got.beams[b].tokens) << what << " beam " << b;
    ASSERT_EQ(want.beams[b].score, got.beams[b].score) << what << " beam " << b;
  }
}

// What a user gets does not depend on who shares the launch, in which place, after which other launches: bit for bit in
// a launch of few users and in one of many; between the two by rounding.
TEST(GlassCuda, AUserAloneIsTheUserInABatchBitForBit) {
  CARD_OR_SKIP();
  const World w = MakeWorld(SmallConfig(), 7, {3, 50, 0, 200, 17});
  const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
  for (const CudaPrecision precision : {CudaPrecision::kBf16, CudaPrecision::kFp32}) {
    const auto glass = MakeGlass(w.config, w.tensors, precision, card);
    ASSERT_NE(glass, nullptr);
    std::vector<std::vector<CudaGlassReply>> alone;
    for (size_t user = 0; user < w.users.size(); ++user) {
      alone.push_back(OnCard(*glass, w, {user}, 20, SearchMode::kValid, trie.get()));
    }
    const std::vector<size_t> few{4, 1, 0, 1, 3, 2, 4};
    const auto of_few = OnCard(*glass, w, few, 20, SearchMode::kValid, trie.get());
    for (size_t i = 0; i < few.size(); ++i) ExpectSame(alone[few[i]][0], of_few[i], "few, " + std::to_string(i));
    std::vector<size_t> many, other;
    for (size_t i = 0; i < 16; ++i) many.push_back(i * 3 % w.users.size()), other.push_back(i * 2 % w.users.size());
    const auto of_many = OnCard(*glass, w, many, 20, SearchMode::kValid, trie.get());
    const auto of_other = OnCard(*glass, w, other, 20, SearchMode::kValid, trie.get());
    for (size_t i = 0; i < many.size(); ++i) {
      for (size_t j = 0; j < other.size(); ++j) {
        if (many[i] == other[j]) ExpectSame(of_many[i], of_other[j], "many, " + std::to_string(i));
      }
      if (precision == CudaPrecision::kFp32) {
        ExpectBeams(alone[many[i]][0].beams, of_many[i].beams, kFp32Bound, "few and many, " + std::to_string(i));
      }
    }
    // More than one launch.
    std::vector<size_t> all = many;
    all.insert(all.end(), other.begin(), other.end());
    const auto of_all = OnCard(*glass, w, all, 20, SearchMode::kValid, trie.get());
    for (size_t i = 0; i < many.size(); ++i) ExpectSame(of_many[i], of_all[i], "launch 1, " + std::to_string(i));
    for (size_t i = 0; i < other.size(); ++i) ExpectSame(of_other[i], of_all[16 + i], "launch 2, " + std::to_string(i));
  }
}

TEST(GlassCuda, ThreadsShareLanesAndEachGetsItsOwnBeams) {
  CARD_OR_SKIP();
  const World w = MakeWorld(SmallConfig(), 8, {3, 50, 0, 200, 17});
  const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
  CudaGlassOptions options = Options(CudaPrecision::kFp32);
  options.lanes = 2;
  const auto glass = *CudaGlass::Create(w.config, w.tensors, card, options);
  std::vector<std::vector<CudaGlassReply>> alone;
  for (size_t user = 0; user < w.users.size(); ++user) {
    alone.push_back(OnCard(*glass, w, {user}, 20, SearchMode::kValid, trie.get()));
  }
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 50; ++i) {
        const size_t user = (t + i) % w.users.size();
        const auto replies = OnCard(*glass, w, {user, (user + 1) % w.users.size()}, 20, SearchMode::kValid, trie.get());
        ExpectSame(alone[user][0], replies[0], "thread " + std::to_string(t) + ", call " + std::to_string(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// How far scores move is measured by what rounding the weights alone to bf16 does to them on the CPU. The card rounds
// the other operand of every product as well, and keys, values and shares of softmaxes: of the same size, so that the
// whole is about twice that; four times is refused.
TEST(GlassCuda, Bf16MovesScoresAsFarAsRoundingDoes) {
  CARD_OR_SKIP();
  for (const auto& [name, config] : Architectures()) {
    const World w = MakeWorld(config, 90, {0, 5, 30, 300});
    TensorMap rounded;
    for (const std::string& tensor : w.tensors.Names()) {
      const TensorView view = *w.tensors.Find(tensor);
      std::vector<float> values(view.data, view.data + view.size);
      for (float& value : values) value = RoundToBf16(value);
      ASSERT_TRUE(rounded.Add(tensor, view.shape, std::move(values)).ok());
    }
    const auto coarse = *Network::Create(config, rounded);
    const auto glass = MakeGlass(config, w.tensors, CudaPrecision::kBf16, card);
    ASSERT_NE(glass, nullptr);
    const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
    const auto replies = OnCard(*glass, w, {0, 1, 2, 3}, 40, SearchMode::kValid, trie.get());
    double moved = 0, allowed = 0, found = 0, asked = 0;
    for (size_t user = 0; user < w.users.size(); ++user) {
      SearchOptions options{.beam = 40, .trie = &w.catalogue->trie()};
      std::map<std::array<uint32_t, kLevels>, double> by_rounding;
      const BucketTokens buckets = BucketsOf(*w.catalogue, w.histories[user]);
      for (const Beam& beam : Search(*coarse, Encode(*coarse, w.histories[user], nullptr), buckets, options)) {
        by_rounding[beam.tokens] = beam.score;
      }
      std::map<std::array<uint32_t, kLevels>, double> on_card;
      for (const Beam& beam : replies[user].beams) on_card[beam.tokens] = beam.score;
      for (const Beam& beam : OnCpu(w, user, 40, SearchMode::kValid)) {
        ++asked;
        if (!by_rounding.contains(beam.tokens) || !on_card.contains(beam.tokens)) continue;
        ++found;
        allowed += std::pow(by_rounding[beam.tokens] - beam.score, 2);
        moved += std::pow(on_card[beam.tokens] - beam.score, 2);
      }
    }
    std::printf("  %s: scores move by %.1e, by %.1e where weights alone are rounded; %.0f of %.0f beams\n",
                name.c_str(), std::sqrt(moved / found), std::sqrt(allowed / found), found, asked);
    EXPECT_LE(std::sqrt(moved), 4 * std::sqrt(allowed)) << name;
    EXPECT_GE(found, 0.8 * asked) << name;
  }
}

// More candidates than are sorted at once, or kept between the passes of the selection.
TEST(GlassCuda, WideSearchesSelectTheSameBeams) {
  CARD_OR_SKIP();
  Config config = SmallConfig();
  config.levels = {60, 200, 200}, config.tokens = TokenLayout::kDense, config.vocabulary = 463;
  const World w = MakeWorld(config, 12, {40}, 5'000);
  const auto glass = MakeGlass(config, w.tensors, CudaPrecision::kFp32, card);
  ASSERT_NE(glass, nullptr);
  const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
  for (const SearchMode mode : {SearchMode::kFree, SearchMode::kLevel, SearchMode::kValid}) {
    for (const size_t beam : {size_t{33}, size_t{256}}) {
      ExpectBeams(OnCpu(w, 0, beam, mode), OnCard(*glass, w, {0}, beam, mode, trie.get())[0].beams, kFp32Bound,
                  "mode " + std::to_string(static_cast<int>(mode)) + " beam " + std::to_string(beam));
    }
  }
}

TEST(GlassCuda, BadRequestsAreRefusedByField) {
  CARD_OR_SKIP();
  const World w = MakeWorld(SmallConfig(), 9, {10});
  const auto glass = MakeGlass(w.config, w.tensors, CudaPrecision::kBf16, card);
  ASSERT_NE(glass, nullptr);
  const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
  const auto message = [&](const CudaUser* user, size_t beam, const CudaTrie* with) {
    CudaGlassRequest request{user, beam, SearchMode::kValid, with};
    CudaGlassReply reply;
    const absl::Status status = glass->Search({&request, 1}, {&reply, 1});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(message(&w.users[0], 257, trie.get()), "request 0: field beam is 257, must be 1..256");
  EXPECT_EQ(message(&w.users[0], 0, trie.get()), "request 0: field beam is 0, must be 1..256");
  EXPECT_EQ(message(&w.users[0], 20, nullptr), "request 0: field trie is missing");
  EXPECT_EQ(message(nullptr, 20, trie.get()), "request 0: field user is missing");
  CudaUser user = w.users[0];
  user.short_tokens[2] = 40;
  EXPECT_EQ(message(&user, 20, trie.get()), "request 0: field short_tokens holds 40, must be below 40");
  user = w.users[0];
  user.tier.pop_back();
  EXPECT_EQ(message(&user, 20, trie.get()), "request 0: field tier has 23 numbers, must be 24");
  Config config = w.config;
  config.d_kv = 40;
  const auto refused = CudaGlass::Create(config, RandomTensors(config, 1), card, Options(CudaPrecision::kBf16));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(refused.status().message(), "field d_kv is 40, the card's kernels take at most 32");
}

TEST(GlassCuda, WithoutRoomOnTheCardNothingIsKept) {
  CARD_OR_SKIP();
  const World w = MakeWorld(SmallConfig(), 9, {10});
  for (int n = 1; n <= 5; ++n) {
    card->FailAllocation(n);
    const auto refused = CudaGlass::Create(w.config, w.tensors, card, Options(CudaPrecision::kBf16));
    ASSERT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << n << " " << refused.status();
  }
  card->FailAllocation(0);
  EXPECT_NE(MakeGlass(w.config, w.tensors, CudaPrecision::kBf16, card), nullptr);
}

TEST(GlassCuda, AFailedCardGivesNoReply) {
  CARD_OR_SKIP();
  const World w = MakeWorld(SmallConfig(), 9, {10});
  const auto glass = MakeGlass(w.config, w.tensors, CudaPrecision::kBf16, card);
  ASSERT_NE(glass, nullptr);
  const auto trie = *CudaTrie::Create(w.catalogue->trie(), card);
  card->InjectError(719);  // cudaErrorLaunchFailure
  CudaGlassRequest request{&w.users[0], 5, SearchMode::kValid, trie.get()};
  CudaGlassReply reply;
  EXPECT_EQ(glass->Search({&request, 1}, {&reply, 1}).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(glass->Search({&request, 1}, {&reply, 1}).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(reply.beams.empty());
}

}  // namespace
}  // namespace backstory::glass
