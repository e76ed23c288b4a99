// Encoding and searching: nothing depends on company, and what a search yields exists.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "kernels/dispatch.h"
#include "models/glass/beam_search.h"
#include "models/glass/decoder.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {
namespace {

struct World {
  Config config;
  std::unique_ptr<const Catalogue> catalogue;
  std::unique_ptr<const Network> network;
  History history;

  explicit World(Config c, size_t items = 60, size_t events = 40)
      : config(c), catalogue(RandomCatalogue(c, items, 3)), history(catalogue.get()) {
    EXPECT_TRUE(Validate(c).ok()) << Validate(c);
    auto made = Network::Create(c, RandomTensors(c, 5));
    EXPECT_TRUE(made.ok()) << made.status();
    network = *std::move(made);
    for (size_t i = 0; i < events; ++i) history.Append(static_cast<uint32_t>(i * 7 % catalogue->size()));
  }
  Memory Encode(ThreadPool* pool = nullptr) const {
    std::vector<float> tier(static_cast<size_t>(config.levels[0]) * config.bins());
    history.TierFeatures(tier.data());
    return network->Encode(history.ShortTokens(), tier.data(), pool);
  }
  std::vector<Beam> Search(size_t beam, SearchMode mode = SearchMode::kValid) const {
    SearchOptions options;
    options.beam = beam;
    options.mode = mode;
    options.trie = &catalogue->trie();
    return glass::Search(*network, Encode(), BucketsOf(*catalogue, history), options);
  }
  Sid SidOf(const Beam& beam) const {
    Sid sid;
    for (size_t l = 0; l < kLevels; ++l) sid[l] = static_cast<uint16_t>(beam.tokens[l] - config.offset(l));
    return sid;
  }
};

Config PaperConfig() {
  Config c = SmallConfig();
  c.tokens = TokenLayout::kDense;
  c.vocabulary = static_cast<int>(c.bos()) + 1;
  c.tier_similarity = TierSimilarity::kCosine;
  c.tier_position = TierPosition::kLast;
  c.gate_input = GateInput::kMemory;
  c.first_step_epsilon = 0;
  c.neighbours = 2;
  c.neighbour_below = 3;
  return c;
}

Config PlainConfig() {  // no tiers, no search
  Config c = SmallConfig();
  c.tier_edges = {};
  c.retrieved_items = 0;
  return c;
}

class GlassSearch : public testing::TestWithParam<Config> {};

// The score of every SID by teacher forcing, one beam at a time.
std::vector<std::pair<float, Sid>> ScoreAll(const World& world) {
  const Memory memory = world.Encode();
  const BucketTokens buckets = BucketsOf(*world.catalogue, world.history);
  std::set<Sid> sids;
  for (uint32_t row = 0; row < world.catalogue->size(); ++row) sids.insert(world.catalogue->sid(row));
  std::vector<std::pair<float, Sid>> scored;
  std::vector<float> logits(static_cast<size_t>(world.config.vocabulary));
  for (const Sid& sid : sids) {
    Decoder decoder(world.network.get(), &memory, 1);
    RetrievedSet set;
    if (world.config.retrieved_items > 0) set = world.network->Retrieve(buckets(sid[0]));
    const RetrievedSet* sets[] = {&set};
    uint32_t input = world.config.bos();
    double score = 0;
    for (size_t l = 0; l < kLevels; ++l) {
      decoder.Step({&input, 1}, sets, logits.data());
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      input = world.config.offset(l) + sid[l];
      const double p = std::exp(static_cast<double>(logits[input])) / sum;
      score += std::log(l == 0 ? p + world.config.first_step_epsilon : p);
    }
    scored.emplace_back(static_cast<float>(score), sid);
  }
  std::sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  return scored;
}

TEST_P(GlassSearch, AWideBeamIsExhaustiveSearch) {
  const World world(GetParam());
  const auto want = ScoreAll(world);
  const std::vector<Beam> beams = world.Search(200);
  ASSERT_EQ(beams.size(), want.size()) << "every SID once";
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(beams[i].score, want[i].first, 1e-3) << "rank " << i;
  std::map<Sid, float> by_sid;
  for (const Beam& beam : beams) by_sid[world.SidOf(beam)] = beam.score;
  for (const auto& [score, sid] : want) ASSERT_NEAR(by_sid.at(sid), score, 1e-3);
}

TEST_P(GlassSearch, ScoresOfGivenBeamsAreTheSearchs) {
  const World world(GetParam());
  std::vector<Beam> beams = world.Search(20);
  std::reverse(beams.begin(), beams.end());
  const std::vector<float> scores =
      ScoresOf(*world.network, world.Encode(), BucketsOf(*world.catalogue, world.history), beams);
  ASSERT_EQ(scores.size(), beams.size());
  for (size_t i = 0; i < beams.size(); ++i) EXPECT_EQ(scores[i], beams[i].score) << i;
  EXPECT_TRUE(ScoresOf(*world.network, world.Encode(), BucketsOf(*world.catalogue, world.history), {}).empty());
}

TEST_P(GlassSearch, ThreadsChangeNothing) {
  const World world(GetParam());
  const Memory memory = world.Encode();
  const BucketTokens buckets = BucketsOf(*world.catalogue, world.history);
  ThreadPool pool(3);
  for (const size_t beam : {5, 13, 40}) {
    SearchOptions options;
    options.beam = beam;
    options.trie = &world.catalogue->trie();
    const std::vector<Beam> want = glass::Search(*world.network, memory, buckets, options);
    options.pool = &pool;
    const std::vector<Beam> found = glass::Search(*world.network, memory, buckets, options);
    ASSERT_EQ(found.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(found[i].tokens, want[i].tokens);
      EXPECT_EQ(std::memcmp(&found[i].score, &want[i].score, sizeof(float)), 0);
    }
  }
}

TEST_P(GlassSearch, ValidBeamsExistAndScoreAsFreeOnes) {
  const World world(GetParam());
  const std::vector<Beam> beams = world.Search(7);
  ASSERT_EQ(beams.size(), 7u);
  for (size_t i = 0; i < beams.size(); ++i) {
    const auto items = world.catalogue->Items(beams[i].node);
    ASSERT_FALSE(items.empty());
    for (const uint32_t row : items) EXPECT_EQ(world.catalogue->sid(row), world.SidOf(beams[i]));
    if (i > 0) {
      EXPECT_GE(beams[i - 1].score, beams[i].score);
    }
  }
}

TEST_P(GlassSearch, ThreadsAndCompanyChangeNoBit) {
  const World world(GetParam());
  for (const KernelTable* table : AllKernels()) {
    const ScopedKernels scope(*table);
    ThreadPool pool(3);
    const Memory alone = world.Encode(), shared = world.Encode(&pool);
    ASSERT_EQ(alone.rows, shared.rows);
    ASSERT_EQ(std::memcmp(alone.states.data(), shared.states.data(), alone.states.size() * sizeof(float)), 0);
    // A beam alone and the same beam among others.
    const size_t vocabulary = static_cast<size_t>(world.config.vocabulary);
    const BucketTokens buckets = BucketsOf(*world.catalogue, world.history);
    const std::vector<uint32_t> firsts{world.config.offset(0), world.config.offset(0) + 2, world.config.offset(0) + 4};
    std::vector<RetrievedSet> sets(firsts.size());
    std::vector<const RetrievedSet*> pointers;
    for (size_t w = 0; w < firsts.size(); ++w) {
      if (world.config.retrieved_items > 0) {
        sets[w] = world.network->Retrieve(buckets(static_cast<uint16_t>(firsts[w] - world.config.offset(0))));
      }
      pointers.push_back(&sets[w]);
    }
    std::vector<float> together(firsts.size() * vocabulary), single(vocabulary);
    Decoder all(world.network.get(), &alone, firsts.size());
    const std::vector<uint32_t> bos(firsts.size(), world.config.bos());
    all.Step(bos, pointers, together.data());
    all.Step(firsts, pointers, together.data());
    for (size_t w = 0; w < firsts.size(); ++w) {
      Decoder one(world.network.get(), &alone, 1);
      one.Step({bos.data(), 1}, {&pointers[w], 1}, single.data());
      one.Step({&firsts[w], 1}, {&pointers[w], 1}, single.data());
      ASSERT_EQ(std::memcmp(single.data(), together.data() + w * vocabulary, vocabulary * sizeof(float)), 0)
          << table->target << " beam " << w;
    }
  }
}

TEST_P(GlassSearch, AUserWithoutHistoryIsAnswered) {
  const World world(GetParam(), 60, 0);
  const std::vector<Beam> beams = world.Search(5);
  ASSERT_EQ(beams.size(), 5u);
  for (const Beam& beam : beams) EXPECT_TRUE(std::isfinite(beam.score));
}

std::string ProfileName(const testing::TestParamInfo<Config>& info) {
  const char* const names[] = {"Compat", "Paper", "Plain"};
  return names[info.index];
}
INSTANTIATE_TEST_SUITE_P(Profiles, GlassSearch, testing::Values(SmallConfig(), PaperConfig(), PlainConfig()),
                         ProfileName);

TEST(GlassRetrieve, GatheredRowsAnswerAsTokenPages) {
  Config config = SmallConfig();
  config.levels = {6, 300, 400};
  config.vocabulary = 1 + 3 * 400;
  const World world(config, 300, 250);
  const Memory memory = world.Encode();
  const std::vector<uint32_t> tokens{
      config.offset(0) + 2,   config.offset(1) + 5,   config.offset(1) + 290, config.offset(2) + 1,
      config.offset(2) + 390, config.offset(2) + 390, config.offset(0) + 2,   0};
  const RetrievedSet pages = world.network->Retrieve(tokens), gathered = world.network->Retrieve(tokens, 0);
  ASSERT_EQ(pages.pages.size(), 5u);
  ASSERT_TRUE(gathered.pages.empty());
  std::vector<float> a(static_cast<size_t>(config.vocabulary)), b(a.size());
  for (const auto& [set, logits] : {std::pair(&pages, a.data()), std::pair(&gathered, b.data())}) {
    Decoder decoder(world.network.get(), &memory, 1);
    const uint32_t bos = config.bos(), first = config.offset(0) + 2;
    decoder.Step({&bos, 1}, {&set, 1}, logits);
    decoder.Step({&first, 1}, {&set, 1}, logits);
  }
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-4) << "token " << i;
  EXPECT_TRUE(world.network->Retrieve({}).empty);
}

TEST(GlassItems, FiltersDiversityAndPrior) {
  const Config config = SmallConfig();
  const std::vector<uint64_t> ids{10, 11, 12, 13};
  const std::vector<Sid> sids{{1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {0, 0, 1}};
  const std::vector<float> prior{1, 3, 2, 9}, embeddings(4 * static_cast<size_t>(config.embedding_width), 0.1f);
  const auto made = Catalogue::Create(config, {ids, sids, embeddings, {}, prior});
  ASSERT_TRUE(made.ok()) << made.status();
  const Catalogue& catalogue = **made;
  std::vector<Beam> beams(2);  // SID (1, 2, 3) first; the trie's last level is in SID order
  beams[0].node = 1;
  beams[0].score = -1;
  beams[1].node = 0;
  beams[1].score = -2;
  const auto rows = [&](const RecommendOptions& options) {
    std::vector<uint64_t> out;
    for (const RecommendedItem& item : ItemsOf(catalogue, beams, options)) out.push_back(catalogue.item_id(item.row));
    return out;
  };
  EXPECT_THAT(rows({}), testing::ElementsAre(11, 12, 10, 13));
  EXPECT_THAT(rows({.count = 2}), testing::ElementsAre(11, 12));
  EXPECT_THAT(rows({.per_sid_max = 1}), testing::ElementsAre(11, 13));
  RecommendOptions seen;
  seen.keep = [&](uint32_t row) { return catalogue.item_id(row) != 11; };
  seen.per_sid_max = 1;
  EXPECT_THAT(rows(seen), testing::ElementsAre(12, 13));
  seen.keep = [](uint32_t) { return false; };
  EXPECT_THAT(rows(seen), testing::IsEmpty());
  EXPECT_EQ(catalogue.RowOf(12), 2u);
  EXPECT_EQ(catalogue.RowOf(99), std::nullopt);
}

TEST(GlassTrie, HoldsExactlyTheSids) {
  const std::vector<Sid> sids{{0, 1, 2}, {0, 1, 5}, {0, 3, 0}, {7, 0, 0}};
  const Trie trie(sids);
  EXPECT_EQ(trie.size(), sids.size());
  std::vector<Sid> walked;
  const Trie::Children top = trie.Next(0, 0);
  for (size_t a = 0; a < top.codes.size(); ++a) {
    const Trie::Children middle = trie.Next(1, top.first + static_cast<uint32_t>(a));
    for (size_t b = 0; b < middle.codes.size(); ++b) {
      const Trie::Children last = trie.Next(2, middle.first + static_cast<uint32_t>(b));
      for (size_t c = 0; c < last.codes.size(); ++c) {
        EXPECT_EQ(last.first + c, walked.size()) << "nodes of the last level number the SIDs";
        walked.push_back({top.codes[a], middle.codes[b], last.codes[c]});
      }
    }
  }
  EXPECT_EQ(walked, sids);
}

TEST(GlassNetwork, MissingTensorsAndWrongShapesAreNamed) {
  Config config = SmallConfig();
  TensorMap tensors = RandomTensors(config, 5);
  EXPECT_TRUE(Network::Create(config, tensors).ok());
  config.ffn += 1;
  EXPECT_THAT(std::string(Network::Create(config, tensors).status().message()), testing::HasSubstr("ffn.w1"));
  config.ffn -= 1;
  config.decoder_layers += 1;
  EXPECT_THAT(std::string(Network::Create(config, tensors).status().message()), testing::HasSubstr("dec.2"));
}

}  // namespace
}  // namespace backstory::glass
