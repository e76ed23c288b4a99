// grab::Config: its ranges, and its text form.
#include "models/grab/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "models/grab/config_text.h"
#include "models/grab/init_random.h"
#include "models/grab/tensors.h"

namespace backstory::grab {
namespace {

using ::testing::HasSubstr;

Config Tiny() { return *PresetConfig("grab-tiny"); }

std::string ErrorOf(const Config& config) {
  const absl::Status status = Validate(config);
  EXPECT_EQ(status.code() == absl::StatusCode::kInvalidArgument, !status.ok()) << status;
  return std::string(status.message());
}

std::string TextError(const std::string& text) {
  const auto config = ConfigFromText(text, "m.textproto");
  return config.ok() ? "accepted" : std::string(config.status().message());
}

// A minimal text that is accepted, for tests that add one line to it.
const char kSmall[] = R"(name: "x"
tokenizer {
  partial { name: "item" source: ITEM_ID table: "t" vocab: 8 }
  full { name: "f_item" source: ITEM_ID table: "t" vocab: 8 }
  channels { name: "all" }
}
)";

TEST(GrabConfig, PresetsAreValidAndHaveTheSizesOfTheirNames) {
  for (const std::string& name : PresetNames()) EXPECT_EQ(ErrorOf(*PresetConfig(name)), "") << name;
  const Config big = *PresetConfig("grab-512");
  EXPECT_EQ(big.d, 512);
  EXPECT_EQ(big.heads * big.d_head, 512);
  EXPECT_EQ(big.ffn, 1024);
  EXPECT_EQ(big.layers, 4);
  EXPECT_EQ(big.channels(), 2);
  const Config cpu = *PresetConfig("grab-256");
  EXPECT_EQ(cpu.d, 256);
  EXPECT_EQ(cpu.heads * cpu.d_head, 256);
  EXPECT_EQ(cpu.ffn, 512);
  EXPECT_EQ(PresetConfig("grab-1").status().code(), absl::StatusCode::kNotFound);
}

TEST(GrabConfig, EveryWidthHasTwoEdges) {
  struct Edge {
    const char* field;
    std::function<void(Config*, int64_t)> set;
    int64_t min, max;
  };
  const std::vector<Edge> edges = {
      {"d", [](Config* c, int64_t v) { c->d = v; }, 1, 4096},
      {"heads", [](Config* c, int64_t v) { c->heads = v; }, 1, 64},
      {"d_head", [](Config* c, int64_t v) { c->d_head = v; }, 1, 512},
      {"layers", [](Config* c, int64_t v) { c->layers = v; }, 1, 64},
      {"latent", [](Config* c, int64_t v) { c->latent = v; }, 0, 16},
      {"ffn", [](Config* c, int64_t v) { c->ffn = v; }, 1, 16384},
      {"n_pos", [](Config* c, int64_t v) { c->n_pos = v; }, 2, 65536},
      {"n_time", [](Config* c, int64_t v) { c->n_time = v; }, 2, 4096},
      {"window_rows", [](Config* c, int64_t v) { c->window_rows = v; }, 1, INT64_MAX},
      {"window_sec", [](Config* c, int64_t v) { c->window_sec = v; }, 1, INT64_MAX / 1'000'000},
      {"embedding", [](Config* c, int64_t v) { c->embedding = v; }, 1, 4096},
      {"gate_mlp_hidden", [](Config* c, int64_t v) { c->gate_mlp_hidden = v; }, 1, 16384},
      {"head_hidden", [](Config* c, int64_t v) { c->head_hidden = v; }, 1, 16384},
  };
  for (const Edge& edge : edges) {
    for (const int64_t value : {edge.min, edge.max}) {
      Config c = Tiny();
      edge.set(&c, value);
      EXPECT_EQ(ErrorOf(c), "") << edge.field << " " << value;
    }
    for (const int64_t value : {edge.min - 1, edge.max == INT64_MAX ? int64_t{-7} : edge.max + 1}) {
      Config c = Tiny();
      edge.set(&c, value);
      EXPECT_THAT(ErrorOf(c), HasSubstr(std::string(edge.field) + ": ")) << value;
    }
  }
}

TEST(GrabConfig, NamesTasksAndClassesAreChecked) {
  for (const std::string& name :
       {std::string(), std::string("A"), std::string("a/b"), std::string(".."), std::string(65, 'a')}) {
    Config c = Tiny();
    c.name = name;
    EXPECT_THAT(ErrorOf(c), HasSubstr("name: ")) << name;
    c = Tiny();
    c.tasks = {name};
    EXPECT_THAT(ErrorOf(c), HasSubstr("tasks: ")) << name;
  }
  Config c = Tiny();
  c.name = std::string(64, 'a');
  EXPECT_EQ(ErrorOf(c), "");
  c.tasks = {};
  EXPECT_THAT(ErrorOf(c), HasSubstr("tasks: 0 is outside [1, 16]"));
  c.tasks = {"a", "a"};
  EXPECT_THAT(ErrorOf(c), HasSubstr("\"a\" twice"));
  c = Tiny();
  c.n_act = 4;
  EXPECT_EQ(ErrorOf(c), "") << "classes 0 to 2, and the candidate";
  c.n_act = 3;
  EXPECT_THAT(ErrorOf(c), HasSubstr("action_class: 2 is outside [0, 1]"));
  c = Tiny();
  c.tokenizer.partial.clear();
  EXPECT_THAT(ErrorOf(c), HasSubstr("tokenizer.partial"));
  c = Tiny();
  c.tokenizer.channels.clear();
  EXPECT_NE(ErrorOf(c), "");
  c = Tiny();
  c.embedding = 4096;
  c.tokenizer.partial[0].vocab = c.tokenizer.full[0].vocab = 1u << 22;
  EXPECT_THAT(ErrorOf(c), HasSubstr("tokenizer field item: vocab 4194304 x embedding 4096 exceeds"));
}

TEST(GrabConfigText, EveryFieldSurvivesARoundTrip) {
  Config c = Tiny();
  c.name = "all_fields";
  c.latent = 5;
  c.norm = Norm::kPre;
  c.target_mixing = false;
  c.n_pos = 77;
  c.n_time = 33;
  c.n_act = 40;
  c.window_rows = 123456789012;
  c.window_sec = 98765432;
  c.tasks = {"click", "like", "buy"};
  c.tokenizer.hash_salt = UINT64_MAX;
  c.tokenizer.default_action_class = 3;
  c.tokenizer.actions = {{ActionType::kRating, 4.0f, 4.5f, 1},
                         {static_cast<ActionType>(1000), -1.25f, 3.4e38f, 2},
                         {ActionType::kNone, -3.4e38f, 3.4e38f, 0}};
  c.tokenizer.label = {ActionType::kRating, 4.0f, false};
  c.tokenizer.label_window_us = 0;
  c.tokenizer.open_rows = OpenRows::kHide;
  c.tokenizer.stats_granularity_us = 24 * 3'600'000'000;
  c.tokenizer.full_dense[0].prior = 0.1f;
  c.tokenizer.full_dense[0].prior_weight = 3.0f;
  c.tokenizer.full_dense[0].prior_value = -2.5f;
  c.tokenizer.full_dense[0].scale = 0.7f;
  c.tokenizer.partial.push_back({"device", SparseSource::kEventContext, "device", "device", 99});
  const std::string text = ConfigToText(c);
  const auto back = ConfigFromText(text, "m.textproto");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(ConfigToText(*back), text);
  // The text of the result would also agree if both directions lost the same field.
  EXPECT_EQ(back->name, c.name);
  EXPECT_EQ(back->latent, 5);
  EXPECT_EQ(back->norm, Norm::kPre);
  EXPECT_FALSE(back->target_mixing);
  EXPECT_EQ(back->n_pos, 77);
  EXPECT_EQ(back->n_time, 33);
  EXPECT_EQ(back->n_act, 40);
  EXPECT_EQ(back->window_rows, c.window_rows);
  EXPECT_EQ(back->window_sec, c.window_sec);
  EXPECT_EQ(back->d, 16);
  EXPECT_EQ(back->heads, 2);
  EXPECT_EQ(back->d_head, 8);
  EXPECT_EQ(back->layers, 2);
  EXPECT_EQ(back->ffn, 24);
  EXPECT_EQ(back->embedding, 8);
  EXPECT_EQ(back->gate_mlp_hidden, 16);
  EXPECT_EQ(back->head_hidden, 16);
  EXPECT_EQ(back->tasks, c.tasks);
  const TokenizerConfig& t = back->tokenizer;
  EXPECT_EQ(t.hash_salt, UINT64_MAX);
  EXPECT_EQ(t.default_action_class, 3);
  ASSERT_EQ(t.actions.size(), 3u);
  EXPECT_EQ(t.actions[0].max_value, 4.5f);
  EXPECT_EQ(static_cast<int>(t.actions[1].action), 1000);
  EXPECT_EQ(t.actions[1].min_value, -1.25f);
  EXPECT_EQ(t.actions[1].action_class, 2);
  EXPECT_EQ(t.label.action, ActionType::kRating);
  EXPECT_EQ(t.label.min_value, 4.0f);
  EXPECT_FALSE(t.label.unlabelled_is_negative);
  EXPECT_EQ(t.open_rows, OpenRows::kHide);
  EXPECT_EQ(t.stats_granularity_us, 24 * 3'600'000'000);
  EXPECT_EQ(t.channels[1].action_classes, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(t.full_dense[0].prior, 0.1f);
  EXPECT_EQ(t.full_dense[0].prior_weight, 3.0f);
  EXPECT_EQ(t.full_dense[0].prior_value, -2.5f);
  EXPECT_EQ(t.full_dense[0].scale, 0.7f);
  EXPECT_EQ(t.partial.back().attribute, "device");
  EXPECT_EQ(t.partial.back().vocab, 99u);
}

TEST(GrabConfigText, EverySourceAndActionSurvives) {
  // Values are persisted, so the numbers are pinned here as well as their order.
  Config c = Tiny();
  c.tokenizer.partial.clear();
  c.tokenizer.full.clear();
  c.tokenizer.full_dense.clear();
  for (int s = 0; s <= static_cast<int>(SparseSource::kDayOfWeek); ++s) {
    SparseFieldConfig field{"f" + std::to_string(s), static_cast<SparseSource>(s), "", "t", 64};
    const bool named = field.source == SparseSource::kEventContext || field.source == SparseSource::kRequestFeature ||
                       field.source == SparseSource::kItemString;
    if (named) field.attribute = "a";
    const bool full = field.source == SparseSource::kUserId || field.source == SparseSource::kRequestFeature ||
                      field.source == SparseSource::kItemString;
    (full ? c.tokenizer.full : c.tokenizer.partial).push_back(field);
  }
  for (int s = 0; s <= static_cast<int>(DenseSource::kUserCategoryRate); ++s) {
    DenseFieldConfig field{"d" + std::to_string(s), static_cast<DenseSource>(s)};
    if (field.source == DenseSource::kItemNumber || field.source == DenseSource::kRequestNumber) field.attribute = "a";
    c.tokenizer.full_dense.push_back(field);
  }
  const auto back = ConfigFromText(ConfigToText(c), "m");
  ASSERT_TRUE(back.ok()) << back.status();
  for (size_t i = 0; i < c.tokenizer.partial.size(); ++i) {
    EXPECT_EQ(back->tokenizer.partial[i].source, c.tokenizer.partial[i].source);
  }
  for (size_t i = 0; i < c.tokenizer.full.size(); ++i) {
    EXPECT_EQ(back->tokenizer.full[i].source, c.tokenizer.full[i].source);
  }
  for (size_t i = 0; i < c.tokenizer.full_dense.size(); ++i) {
    EXPECT_EQ(back->tokenizer.full_dense[i].source, c.tokenizer.full_dense[i].source);
  }
  EXPECT_THAT(ConfigToText(c), HasSubstr("source: DAY_OF_WEEK"));
  EXPECT_THAT(ConfigToText(c), HasSubstr("source: USER_CATEGORY_RATE"));
}

TEST(GrabConfigText, AbsentFieldsHaveTheDefaultsOfTheHeader) {
  const auto parsed = ConfigFromText(kSmall, "m");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  Config c;
  c.name = "x";
  c.tokenizer.partial = {{"item", SparseSource::kItemId, "", "t", 8}};
  c.tokenizer.full = {{"f_item", SparseSource::kItemId, "", "t", 8}};
  c.tokenizer.channels = {{"all", {}}};
  EXPECT_EQ(ConfigToText(*parsed), ConfigToText(c));
}

TEST(GrabConfigText, RefusesWithLineAndReason) {
  const std::string small = kSmall;
  EXPECT_EQ(TextError(small), "accepted");
  EXPECT_THAT(TextError(small + "layerz: 2\n"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError(small + "layerz: 2\n"), HasSubstr("layerz"));
  EXPECT_THAT(TextError(small + "layers: 2\nlayers: 3\n"), HasSubstr("m.textproto:8:"));
  EXPECT_THAT(TextError(small + "name: 'y'\n"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError(small + "layers: 2147483648\n"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError(small + "layers: 1.5\n"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError(small + "layers: -1\n"), HasSubstr("m.textproto: layers: -1 is outside"));
  EXPECT_THAT(TextError(small + "norm: SIDEWAYS"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError(small + "norm: 9\n"), HasSubstr("norm: 9 is not POST or PRE"));
  EXPECT_THAT(TextError(small + "tokenizer { }\n"), HasSubstr("m.textproto:7:"));
  EXPECT_THAT(TextError("tokenizer { open_rows: 5 }"), HasSubstr("open_rows: 5"));
  EXPECT_THAT(TextError("tokenizer { partial { name: 'a' } }"), HasSubstr("field a: source 0 is not a sparse source"));
  EXPECT_THAT(TextError("tokenizer { partial { name: 'a' source: 99 } }"), HasSubstr("source 99"));
  EXPECT_THAT(TextError("tokenizer { full_dense { name: 'a' source: 99 } }"), HasSubstr("source 99"));
  EXPECT_THAT(TextError("tokenizer { actions { action: 999 } }"), HasSubstr("actions.action: 999"));
  EXPECT_THAT(TextError("tokenizer { actions { action: 65536 } }"), HasSubstr("actions.action: 65536"));
  EXPECT_THAT(TextError("tokenizer { label { action: -1 } }"), HasSubstr("label.action: -1"));
  EXPECT_THAT(TextError("name: 'a"), HasSubstr("m.textproto:1:"));
  EXPECT_THAT(TextError(""), HasSubstr("name: "));
  EXPECT_THAT(TextError(std::string(100, '{')), HasSubstr("m.textproto:1:"));
  EXPECT_THAT(TextError(std::string("name: 'x'\0", 10)), HasSubstr("m.textproto:1:"));
  EXPECT_THAT(TextError(std::string(kConfigTextBytesMax + 1, ' ')), HasSubstr("exceed the limit"));
}

TEST(GrabTensors, ListFollowsTheConfiguration) {
  Config c = Tiny();
  const auto names = [](const Config& config) {
    std::vector<std::string> out;
    for (const TensorSpec& spec : ExpectedTensors(config)) out.push_back(spec.name);
    return out;
  };
  const size_t plain = names(c).size();
  EXPECT_EQ(plain, 6u + 16u + 2 * (2 + 2 * 15) + 4u) << "tables, tokenizer networks, layers, head";
  c.target_mixing = false;
  EXPECT_EQ(names(c).size(), plain - 4);
  c.latent = 4;
  EXPECT_EQ(names(c).size(), plain - 4 + 4);
  for (const TensorSpec& spec : ExpectedTensors(c)) {
    if (spec.name == "w.l1.c1.wd") {
      EXPECT_EQ(spec.shape, (std::vector<int64_t>{16, 4}));
    }
    if (spec.name == "w.l0.c0.wq") {
      EXPECT_EQ(spec.shape, (std::vector<int64_t>{4, 16}));
    }
    if (spec.name == "tok.f.w1") {
      EXPECT_EQ(spec.shape, (std::vector<int64_t>{4 * 8 + 5, 16}));
    }
  }
}

TEST(GrabTensors, CheckNamesMissingExtraAndMisshapen) {
  const Config c = Tiny();
  TensorMap whole = RandomWeights(c, 1);
  EXPECT_TRUE(CheckTensors(c, whole).ok());
  EXPECT_EQ(CostsOf(c).parameters, whole.ParameterCount());
  ASSERT_TRUE(whole.Add("w.l9.c0.wq", {1}, {0.0f}).ok());
  EXPECT_THAT(std::string(CheckTensors(c, whole).message()), HasSubstr("tensor w.l9.c0.wq: not called for"));
  TensorMap partial;
  for (const TensorSpec& spec : ExpectedTensors(c)) {
    if (spec.name == "w.head.b1") continue;
    const auto shape = spec.name == "w.l1.c0.wo" ? std::vector<int64_t>{8, 32} : spec.shape;
    const auto values = whole.Find(spec.name)->values();
    ASSERT_TRUE(partial.Add(spec.name, shape, {values.begin(), values.end()}).ok());
  }
  EXPECT_THAT(std::string(CheckTensors(c, partial).message()),
              HasSubstr("tensor w.l1.c0.wo: expected shape [16, 16], found [8, 32]"));
  Config other = c;
  other.heads = 4;
  other.d_head = 4;
  EXPECT_FALSE(CheckTensors(other, RandomWeights(c, 1)).ok()) << "codebooks are as wide as a head";
}

TEST(RandomWeights, DependOnTheSeedAloneAndAreSmall) {
  const Config c = Tiny();
  const TensorMap a = RandomWeights(c, 5), b = RandomWeights(c, 5), other = RandomWeights(c, 6);
  bool differs = false;
  for (const std::string& name : a.Names()) {
    const auto x = a.Find(name)->values(), y = b.Find(name)->values(), z = other.Find(name)->values();
    EXPECT_TRUE(std::equal(x.begin(), x.end(), y.begin())) << name;
    differs |= !std::equal(x.begin(), x.end(), z.begin());
    for (float v : x) ASSERT_LE(std::abs(v), 2.0f) << name;
  }
  EXPECT_TRUE(differs);
  // Frozen: a change here changes every version that init-random has ever made.
  EXPECT_FLOAT_EQ(RandomWeights(c, 1).Find("w.l0.c0.wq")->data[0], -0.27766207f);
}

}  // namespace
}  // namespace backstory::grab
