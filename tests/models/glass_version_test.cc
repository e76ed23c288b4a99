// Generative version directories: what is whole loads and answers as written, and everything wrong is refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "models/glass/config_text.h"
#include "tests/models/fake_card.h"
#include "tests/models/glass_version_fixture.h"
#include "tests/models/temp_dir.h"

namespace backstory::glass {
namespace {

using ::testing::HasSubstr;

absl::Status Load(const VersionParts& parts) {
  const TempDir dir;
  const std::string path = dir.path() + "/1";
  MustWrite(parts, path);
  return LoadGlassVersion(path, {nullptr, "tiny"}).status();
}

TEST(GlassVersion, WhatIsWrittenIsWhatLoads) {
  const TempDir dir;
  const VersionParts parts = MakeParts();
  MustWrite(parts, dir.path() + "/1");
  EXPECT_TRUE(IsGlassVersion(dir.path() + "/1"));
  EXPECT_FALSE(IsGlassVersion(dir.path()));
  const auto loaded = LoadGlassVersion(dir.path() + "/1", {nullptr, "tiny"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->version, "1");
  EXPECT_EQ((*loaded)->hash.size(), 16u);
  EXPECT_EQ((*loaded)->goldens.cases, 3u);
  EXPECT_LT((*loaded)->goldens.worst, 1e-6);
  EXPECT_EQ((*loaded)->config.history.size(), 1u);
  EXPECT_EQ((*loaded)->config.history[0].min_value, 4.0f);
  const Catalogue& catalogue = *(*loaded)->catalogue;
  ASSERT_EQ(catalogue.size(), parts.item_ids.size());
  for (uint32_t row = 0; row < catalogue.size(); ++row) {
    ASSERT_EQ(catalogue.item_id(row), static_cast<uint64_t>(parts.item_ids[row]));
    ASSERT_EQ(catalogue.sid(row), parts.sids[row]);
    const auto encoded = (*loaded)->quantiser->Encode(std::span(parts.embeddings).subspan(row * 8, 8));
    ASSERT_TRUE(encoded.ok());
    ASSERT_EQ(encoded->sid, parts.sids[row]) << "frozen codebooks give every item its own SID again";
    ASSERT_EQ(encoded->tier_bins, std::vector<uint8_t>(catalogue.bins(row).begin(), catalogue.bins(row).end()));
  }
}

TEST(GlassVersion, WhatDoesNotSearchInFp32OnTheCpuMeetsTheGoldensToo) {
  const TempDir dir;
  MustWrite(MakeParts(), dir.path() + "/1");
  const auto load = [&](const LoadOptions& options) { return LoadGlassVersion(dir.path() + "/1", options); };
  const auto exact = load({});
  ASSERT_TRUE(exact.ok()) << exact.status();
  const auto rounded = load({.precision = Dtype::kBf16});
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  EXPECT_GT((*rounded)->goldens.worst, 1e-6) << "nothing was rounded";
  EXPECT_LE((*rounded)->goldens.worst, kGoldenToleranceBf16);
  History history((*exact)->catalogue.get());
  for (uint32_t i = 0; i < 30; ++i) history.Append(i);
  const auto bytes = [&](const LoadedGlass& loaded) {
    return static_cast<double>(loaded.searcher->Encode(*loaded.catalogue, history)->bytes());
  };
  EXPECT_LT(bytes(**rounded), 0.6 * bytes(**exact));

  const auto control = std::make_shared<FakeCardControl>();
  const auto on_card = load({.serve_with = ServeWithFakeCard(control)});
  ASSERT_TRUE(on_card.ok()) << on_card.status();
  EXPECT_EQ(control->launches().size(), 3u) << "the goldens";
  // A searcher that answers for somebody else, and one that cannot be made.
  const auto wrong = load({.serve_with = [&](const Config& config, const TensorMap&, auto, ThreadPool* pool) {
    return absl::StatusOr<std::unique_ptr<const Searcher>>(
        MakeCpuSearcher(*Network::Create(config, RandomTensors(config, 99)), pool));
  }});
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("golden case \"events_0\": "));
  const auto none = load({.serve_with = [](auto&&...) -> absl::StatusOr<std::unique_ptr<const Searcher>> {
    return absl::ResourceExhaustedError("no room");
  }});
  EXPECT_EQ(none.status(), absl::ResourceExhaustedError("no room"));
}

struct Fault {
  const char* name;
  absl::StatusCode code;
  const char* message;
  std::function<void(VersionParts*)> make;
};

class GlassVersionFault : public testing::TestWithParam<Fault> {};

TEST_P(GlassVersionFault, IsRefusedByName) {
  VersionParts parts = MakeParts();
  GetParam().make(&parts);
  const absl::Status status = Load(parts);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

void SetWeight(VersionParts* parts, const std::string& name,
               std::function<void(std::vector<float>*, std::vector<int64_t>*)> edit) {
  TensorMap edited;
  for (const std::string& each : parts->weights.Names()) {
    const TensorView* view = parts->weights.Find(each);
    std::vector<float> values(view->data, view->data + view->size);
    std::vector<int64_t> shape = view->shape;
    if (each == name) edit(&values, &shape);
    const bool added = values.empty() || edited.Add(each, shape, values).ok();
    EXPECT_TRUE(added) << each;
  }
  parts->weights = std::move(edited);
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kDamage = absl::StatusCode::kDataLoss;

INSTANTIATE_TEST_SUITE_P(
    All, GlassVersionFault,
    testing::Values(
        Fault{"AnItemWithoutSid", kInvalid, "tensor item.sid: expected shape [60, 3], found [59, 3]",
              [](VersionParts* p) { p->sids.pop_back(); }},
        Fault{"SidsOfTwoLevels", kInvalid, "tensor item.sid: expected shape [60, 3], found [90, 2]",
              [](VersionParts* p) { p->sid_columns = 2; }},
        Fault{"ACodeBeyondItsLevel", kInvalid, "item 1003, field sid: code 9 of level 1, must be below 9",
              [](VersionParts* p) { p->sids[1][1] = 9; }},
        Fault{"OtherSidsThanTheModels", kPrecondition, "sid_version is",
              [](VersionParts* p) { p->sids[0][2] = static_cast<uint16_t>((p->sids[0][2] + 1) % 11); }},
        Fault{"OtherCodebooks", kPrecondition, "sid_version is",
              [](VersionParts* p) { p->quantiser["codebook.1"][3] += 1; }},
        Fault{"NoSidVersion", kPrecondition, "sid_version is \"\"",
              [](VersionParts* p) { p->config.sid_version = ""; }},
        Fault{"ItemsOutOfOrder", kInvalid, "tensor item.id: 1000 after 1003, must ascend",
              [](VersionParts* p) { std::swap(p->item_ids[0], p->item_ids[1]); }},
        Fault{"NoItems", kInvalid, "items",
              [](VersionParts* p) { p->item_ids.clear(), p->sids.clear(), p->tier_bins.clear(), p->prior.clear(); }},
        Fault{"APriorThatIsNoNumber", kDamage, "item.prior: of item 1006 is not finite",
              [](VersionParts* p) { p->prior[2] = std::nanf(""); }},
        Fault{"PriorOfFewerItems", kInvalid, "tensor item.prior: expected shape [60], found [59]",
              [](VersionParts* p) { p->prior.pop_back(); }},
        Fault{"TiersMissing", kInvalid, "tensor item.tier_bin: missing", [](VersionParts* p) { p->tier_bins.clear(); }},
        Fault{"ATierBeyondTheEdges", kInvalid, "item 1003, field tier_bin[1] is 4, must be below 4 or 255",
              [](VersionParts* p) { p->tier_bins[7] = 4; }},
        Fault{"PrototypesOfAnotherWidth", kInvalid, "prototype",
              [](VersionParts* p) { p->quantiser["prototype"].resize(6 * 7); }},
        Fault{"ANanInACodebook", kDamage, "tensor codebook.0: element 3 is NaN",
              [](VersionParts* p) { p->quantiser["codebook.0"][3] = std::nanf(""); }},
        Fault{"ANanInTheWeights", kDamage, "tensor tier.b1: element 0 is NaN",
              [](VersionParts* p) {
                SetWeight(p, "tier.b1", [](auto* values, auto*) { (*values)[0] = std::nanf(""); });
              }},
        Fault{"AWeightMissing", kInvalid, "dec.1.gate.w",
              [](VersionParts* p) { SetWeight(p, "dec.1.gate.w", [](auto* values, auto*) { values->clear(); }); }},
        Fault{"AWeightOfAnotherShape", kInvalid, "enc.0.self.q",
              [](VersionParts* p) {
                SetWeight(p, "enc.0.self.q", [](auto*, auto* shape) {
                  std::swap((*shape)[0], (*shape)[1]);
                  (*shape)[0] = 8, (*shape)[1] = 72;
                });
              }},
        Fault{"AWeightTooMany", kInvalid, "tensor dec.9.odd: the configuration calls for no such tensor",
              [](VersionParts* p) { EXPECT_TRUE(p->weights.Add("dec.9.odd", {1}, {1.0f}).ok()); }},
        Fault{"OtherWeightsThanTheGoldens", kPrecondition, "golden case \"events_",
              [](VersionParts* p) {
                SetWeight(p, "dec.final_norm", [](auto* values, auto*) {
                  for (float& v : *values) v *= 1.5f;
                });
              }},
        Fault{"NoGoldens", kInvalid, "goldens.jsonl: no case", [](VersionParts* p) { p->goldens = "\n"; }},
        Fault{"AGoldenWithAnOddKey", kInvalid, "goldens.jsonl:1: odd: unknown key",
              [](VersionParts* p) { p->goldens.insert(1, "\"odd\":1,"); }},
        Fault{"AnotherName", kInvalid, "name: expected \"tiny\", found \"other\"",
              [](VersionParts* p) { p->config.name = "other"; }},
        Fault{"AnUnknownField", kInvalid, "model.textproto:", [](VersionParts* p) { p->extra_config = "nonesuch: 1"; }},
        Fault{"AFieldTwice", kInvalid, "model.textproto:", [](VersionParts* p) { p->extra_config = "d: 24"; }},
        Fault{"ABeamOutOfRange", kInvalid, "field beam is 1025, must be 1..1024",
              [](VersionParts* p) { p->config.beam = 1025; }},
        Fault{"ALatentThatIsNoWidth", kInvalid, "quantiser.latent",
              [](VersionParts* p) { p->config.quantiser_latent = 5; }}),
    [](const auto& fault) { return fault.param.name; });

TEST(GlassVersion, DamagedFilesAreDataLoss) {
  for (const char* name :
       {"items.safetensors", "weights-00001-of-00001.safetensors", "goldens.jsonl", "model.textproto"}) {
    const TempDir dir;
    const std::string path = dir.path() + "/1";
    MustWrite(MakeParts(), path);
    std::fstream file(path + "/" + name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(200);
    file.put('\x7f');
    file.close();
    const absl::Status status = LoadGlassVersion(path).status();
    EXPECT_EQ(status.code(), kDamage) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  }
  const TempDir dir;
  EXPECT_EQ(LoadGlassVersion(dir.path() + "/absent").status().code(), absl::StatusCode::kNotFound);
}

TEST(GlassVersion, ProfilesDecideWhatAFileLeavesOut) {
  const auto compat = ConfigFromText("name: \"m\"", "f");
  ASSERT_TRUE(compat.ok()) << compat.status();
  EXPECT_EQ(compat->tokens, TokenLayout::kStrided);
  EXPECT_EQ(compat->vocabulary, 1000);
  EXPECT_EQ(compat->bins(), 4u);
  EXPECT_EQ(compat->first_step_epsilon, 1e-9);
  const auto paper = ConfigFromText("name: \"m\" profile: PAPER gate_input: STATE", "f");
  ASSERT_TRUE(paper.ok()) << paper.status();
  EXPECT_EQ(paper->tokens, TokenLayout::kDense);
  EXPECT_EQ(paper->vocabulary, 328);  // 322 tokens, made a multiple of 8
  EXPECT_EQ(paper->bins(), 20u);
  EXPECT_EQ(paper->tier_edges[11], 0.1f);
  EXPECT_EQ(paper->tier_similarity, TierSimilarity::kCosine);
  EXPECT_EQ(paper->tier_position, TierPosition::kLast);
  EXPECT_EQ(paper->gate_input, GateInput::kState);
  EXPECT_EQ(paper->first_step_epsilon, 0);
  const auto bad = [](const char* text) { return std::string(ConfigFromText(text, "f").status().message()); };
  EXPECT_THAT(bad("name: \"M\""), HasSubstr("f: name: \"M\" must match"));
  EXPECT_THAT(bad("name: \"m\" levels: 3"), HasSubstr("levels: 1 given, exactly 3"));
  EXPECT_THAT(bad("name: \"m\" levels: [3, 70000, 3]"), HasSubstr("field levels is 70000"));
  EXPECT_THAT(bad("name: \"m\" vocabulary: 384"), HasSubstr("field vocabulary is 384"));
  EXPECT_THAT(bad("name: \"m\" without_tier: true tier_edges: [0, 1]"), HasSubstr("tier_edges"));
  EXPECT_THAT(bad("name: \"m\" history { min_value: 1 }"), HasSubstr("history.action: 0"));
  EXPECT_THAT(bad(("name: \"m\" embedding_space: \"" + std::string(65, 'x') + "\"").c_str()),
              HasSubstr("field embedding_space has 65 bytes, at most 64"));
  EXPECT_THAT(bad("name: \"m\" tokens: 7"), HasSubstr("tokens: 7 is not a known value"));
}

TEST(GlassQuantiser, RefusesWhatItCannotEncode) {
  const VersionParts parts = MakeParts();
  const auto quantiser = Quantiser::Create(parts.config, QuantiserTensors(parts));
  ASSERT_TRUE(quantiser.ok());
  std::vector<float> embedding(8);
  EXPECT_TRUE(quantiser->Encode(embedding).ok());
  embedding[5] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(std::string(quantiser->Encode(embedding).status().message()), HasSubstr("embedding[5] is not finite"));
  embedding.resize(7);
  EXPECT_THAT(std::string(quantiser->Encode(embedding).status().message()),
              HasSubstr("embedding has 7 numbers, model tiny takes 8"));
  Config none = parts.config;
  none.quantiser = QuantiserKind::kNone;
  const auto without = Quantiser::Create(none, QuantiserTensors(parts));
  ASSERT_TRUE(without.ok());
  EXPECT_EQ(without->Encode(std::vector<float>(8)).status().code(), kPrecondition);
}

TEST(GlassCatalogue, AdditionsComeBehindAndKeepRows) {
  const VersionParts parts = MakeParts();
  CatalogueInput input;
  const std::vector<uint64_t> ids(parts.item_ids.begin(), parts.item_ids.end());
  input.item_ids = ids, input.sids = parts.sids, input.tier_bins = parts.tier_bins, input.prior = parts.prior;
  const auto base = Catalogue::Create(parts.config, input);
  ASSERT_TRUE(base.ok()) << base.status();
  CatalogueAddition more;
  more.item_ids = {7, 5000};
  more.sids = {parts.sids[4], Sid{5, 8, 10}};
  more.tier_bins.assign(12, 1);
  const auto made = (*base)->With(more);
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_EQ((*made)->size(), 62u);
  EXPECT_EQ((*made)->RowOf(7), 60u);
  for (uint32_t row = 0; row < 60; ++row) EXPECT_EQ((*made)->item_id(row), (*base)->item_id(row));
  size_t node = 0;
  for (; (*made)->sid((*made)->Items(static_cast<uint32_t>(node))[0]) != parts.sids[4]; ++node) {
  }
  const auto items = (*made)->Items(static_cast<uint32_t>(node));
  EXPECT_EQ(items.back(), 60u) << "after those the version was trained with";
  more.item_ids = {1003, 5000};
  EXPECT_THAT(std::string((*base)->With(more).status().message()), HasSubstr("item 1003 is in the catalogue twice"));
  more.tier_bins.pop_back();
  EXPECT_FALSE((*base)->With(more).ok());
}

}  // namespace
}  // namespace backstory::glass
