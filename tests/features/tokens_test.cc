// Ids and numbers of tokens: golden hashes, each source, sides, precedence, strictness.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "features/candidate_slices.h"
#include "features/hash.h"
#include "features/tokenizer.h"
#include "tests/features/random_history.h"

namespace backstory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

nlohmann::json Golden(const std::string& name) {
  const char* source = std::getenv("BACKSTORY_SOURCE_DIR");
  std::ifstream file(std::filesystem::path(source == nullptr ? "." : source) / "tests/conformance/hash" / name);
  return nlohmann::json::parse(file);
}

TEST(Hash, GoldenBytes) {
  const nlohmann::json cases = Golden("xxh3.json");
  ASSERT_GE(cases.size(), 10u);
  for (const auto& c : cases) {
    EXPECT_EQ(HashBytes(c["text"].get<std::string>(), c["seed"].get<uint64_t>()), c["hash"].get<uint64_t>()) << c;
  }
}

TEST(Hash, GoldenTableRows) {
  const nlohmann::json cases = Golden("table_rows.json");
  ASSERT_GE(cases.size(), 6u);
  for (const auto& c : cases) {
    const uint64_t salt = TableSalt(c["table"].get<std::string>(), c["salt"].get<uint64_t>());
    const uint64_t hash = c.contains("number") ? HashU64(c["number"].get<uint64_t>(), salt)
                                               : HashBytes(c["text"].get<std::string>(), salt);
    EXPECT_EQ(TableRow(hash, c["vocab"].get<uint32_t>()), c["row"].get<uint32_t>()) << c;
  }
}

TEST(Hash, NumbersHashAsLittleEndianBytes) {
  EXPECT_EQ(HashU64(0x0807060504030201, 9), HashBytes(std::string("\x01\x02\x03\x04\x05\x06\x07\x08", 8), 9));
}

TokenizerConfig Config() {
  TokenizerConfig config = testing::ClickConfig();
  config.full = {
      {.name = "item", .source = SparseSource::kItemId, .table = "item", .vocab = 1000},
      {.name = "user", .source = SparseSource::kUserId, .table = "user", .vocab = 100},
      {.name = "genres", .source = SparseSource::kItemCategories, .table = "genre", .vocab = 50},
      {.name = "year", .source = SparseSource::kItemYear, .table = "year", .vocab = 32},
      {.name = "hour", .source = SparseSource::kHourOfDay, .table = "hour", .vocab = 26},
      {.name = "day", .source = SparseSource::kDayOfWeek, .table = "day", .vocab = 9},
      {.name = "brand", .source = SparseSource::kItemString, .attribute = "brand", .table = "b", .vocab = 99},
      {.name = "app", .source = SparseSource::kRequestFeature, .attribute = "app", .table = "a", .vocab = 99},
      {.name = "why", .source = SparseSource::kRequestFeature, .attribute = "cand.why", .table = "w", .vocab = 9}};
  config.full_dense = {{.name = "rate", .source = DenseSource::kItemRate, .prior = 0.5f, .prior_weight = 2},
                       {.name = "user_rate", .source = DenseSource::kUserRate, .prior_weight = 4},
                       {.name = "count", .source = DenseSource::kItemLogCount, .scale = 0.5f},
                       {.name = "price", .source = DenseSource::kItemNumber, .attribute = "price"},
                       {.name = "bid", .source = DenseSource::kRequestNumber, .attribute = "cand.bid"},
                       {.name = "gap", .source = DenseSource::kUserLogGap},
                       {.name = "genre_rate", .source = DenseSource::kUserCategoryRate, .prior_weight = 4},
                       {.name = "age", .source = DenseSource::kItemAge}};
  return config;
}

struct Request {
  Item known;
  UserSummary summary;
  FeatureMap features;
  CandidateColumns candidates;
  CandidateInput input;
  FeatureReport report;

  Request() {
    known.item_id = 7;
    known.categories = {"jazz", "live"};
    known.year = 1995;
    known.numbers["price"] = 2.5;
    known.strings["brand"] = "acme";
    summary.rows = 6;
    summary.positives = 5;
    summary.newest_us = 1'000'000'000'000;
    summary.categories["jazz"] = {3, 1};
    candidates.item_ids = {7, 8};
    input.user = "u1";
    input.now_us = 1'000'009'000'000;  // 1970-01-12 13:46:49, a Monday
    input.summary = &summary;
    input.request = &features;
    input.candidates = &candidates;
    input.items = [this](uint64_t id) { return id == 7 ? &known : nullptr; };
    input.counts = [](uint64_t id) {
      return id == 7 ? ItemCounts{.exposures = 10, .cells = {{.action = 1, .value_bin = 0, .count = 4}}} : ItemCounts{};
    };
  }
  CandidateTokens Tokens() { return TokenizeCandidates(input, Config(), &report); }
};

double Logit(double p) { return std::log(p / (1 - p)); }

TEST(Candidates, SidesAndOrder) {
  Request request;
  const CandidateTokens tokens = request.Tokens();
  EXPECT_EQ(tokens.user.rows, 1u);
  EXPECT_EQ(tokens.item.rows, 2u);
  ASSERT_EQ(tokens.user.sparse.size(), 4u);  // user, hour, day, app
  ASSERT_EQ(tokens.item.sparse.size(), 5u);  // item, genres, year, brand, why
  EXPECT_THAT(tokens.user.sparse[1].ids, ElementsAre(13 + 1));
  EXPECT_THAT(tokens.user.sparse[2].ids, ElementsAre(1 + 1));
  EXPECT_THAT(tokens.user.sparse[3].ids, ElementsAre(0));
  EXPECT_THAT(tokens.item.sparse[1].offsets, ElementsAre(0, 2, 3));  // two genres; missing is one id 0
  EXPECT_EQ(tokens.item.sparse[1].ids[2], 0u);
  EXPECT_THAT(tokens.item.sparse[2].ids, ElementsAre((1995 - 1900) / 5 + 1 + 1, 0));
  ASSERT_EQ(tokens.user.dense.size(), 2u);   // user_rate, gap
  ASSERT_EQ(tokens.item.dense.size(), 12u);  // rate, count, price, bid, genre_rate, age of two candidates
}

TEST(Candidates, SlicesJoinToTheWhole) {
  Request request;
  request.candidates.item_ids = {7, 8, 7, 9, 8};
  request.candidates.numbers["bid"] = {1, 2, 3, 4, 5};
  request.candidates.numbers["year"] = {1990, std::nanf(""), 2000, std::nanf(""), 2010};
  request.candidates.texts["categories"] = {"", "a|b", "", "", "c"};
  request.candidates.texts["why"] = {"x", "", "y", "z", ""};
  const CandidateTokens whole = request.Tokens();
  const FeatureReport report = request.report;
  for (const std::vector<size_t>& cuts : {std::vector<size_t>{0, 5}, {0, 1, 2, 5}, {0, 3, 4, 5}}) {
    std::vector<CandidateSlice> slices;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      slices.push_back(TokenizeSlice(request.input, Config(), cuts[i], cuts[i + 1] - cuts[i]));
    }
    FeatureReport joined_report;
    const CandidateTokens joined = JoinSlices(request.input, slices, &joined_report);
    EXPECT_EQ(joined.user.dense, whole.user.dense);
    EXPECT_EQ(joined.item.dense, whole.item.dense);
    EXPECT_EQ(joined.item.rows, whole.item.rows);
    ASSERT_EQ(joined.item.sparse.size(), whole.item.sparse.size());
    for (size_t f = 0; f < whole.item.sparse.size(); ++f) {
      EXPECT_EQ(joined.item.sparse[f].ids, whole.item.sparse[f].ids);
      EXPECT_EQ(joined.item.sparse[f].offsets, whole.item.sparse[f].offsets);
    }
    for (size_t f = 0; f < whole.user.sparse.size(); ++f) {
      EXPECT_EQ(joined.user.sparse[f].ids, whole.user.sparse[f].ids);
    }
    EXPECT_EQ(joined_report.unknown_items, report.unknown_items);
    EXPECT_EQ(joined_report.from_request, report.from_request);
    EXPECT_EQ(joined_report.from_catalog, report.from_catalog);
    EXPECT_EQ(joined_report.defaulted, report.defaulted);
  }
}

TEST(Candidates, PartialAndFullTokensShareATable) {
  Request request;
  HistoryRow row;
  row.item_id = 7;
  const auto channels = TokenizeHistory({&row, 1}, INT64_MAX, request.input.items, Config());
  EXPECT_EQ(channels[0].tokens.sparse[0].ids[0], request.Tokens().item.sparse[0].ids[0]);
  EXPECT_EQ(channels[0].tokens.sparse[1].ids[1], request.Tokens().item.sparse[1].ids[1]);
}

TEST(Candidates, Numbers) {
  Request request;
  const CandidateTokens tokens = request.Tokens();
  const double user_rate = (5 + 0.5 * 4) / (6 + 4);
  EXPECT_NEAR(tokens.user.dense[0], Logit(user_rate), 1e-6);
  EXPECT_NEAR(tokens.user.dense[1], std::log1p(9.0), 1e-6);
  EXPECT_NEAR(tokens.item.dense[0], Logit((4 + 1.0) / (10 + 2)), 1e-6);
  EXPECT_NEAR(tokens.item.dense[1], 0.5 * std::log1p(10.0), 1e-6);
  EXPECT_EQ(tokens.item.dense[2], 2.5f);
  EXPECT_EQ(tokens.item.dense[3], 0.0f);
  EXPECT_NEAR(tokens.item.dense[4], Logit((1 + user_rate * 4) / (3 + 4)) - Logit(user_rate), 1e-6);
  EXPECT_NEAR(tokens.item.dense[5], -2.5, 1e-6);
  EXPECT_EQ(tokens.item.dense[6], 0.0f);  // the unknown item: no outcomes, the prior
  EXPECT_EQ(request.report.unknown_items, 1u);
}

TEST(Candidates, TheRequestWinsOverTheCatalog) {
  Request request;
  request.candidates.numbers["price"] = {9.0f, NAN};
  request.candidates.numbers["bid"] = {0.25f, -100.0f};
  request.candidates.numbers["year"] = {1950, 1960};
  request.candidates.texts["brand"] = {"", "other"};
  request.candidates.texts["categories"] = {"", "jazz||live"};
  request.candidates.texts["why"] = {"similar", ""};
  request.features["app"] = {.text = "ios"};
  const CandidateTokens tokens = request.Tokens();
  EXPECT_EQ(tokens.item.dense[2], 9.0f);
  EXPECT_EQ(tokens.item.dense[8], 0.0f);  // NaN is absent, and the item is unknown
  EXPECT_EQ(tokens.item.dense[3], 0.25f);
  EXPECT_EQ(tokens.item.dense[9], -10.0f);  // clamped
  EXPECT_NEAR(tokens.item.dense[5], 2.0, 1e-6);
  EXPECT_THAT(tokens.item.sparse[1].offsets, ElementsAre(0, 2, 4));
  EXPECT_EQ(tokens.item.sparse[1].ids[0], tokens.item.sparse[1].ids[2]);
  EXPECT_NE(tokens.item.sparse[3].ids[0], tokens.item.sparse[3].ids[1]);
  EXPECT_NE(tokens.item.sparse[3].ids[0], 0u);  // the catalog's brand, as the column is empty for it
  EXPECT_NE(tokens.item.sparse[4].ids[0], 0u);
  EXPECT_EQ(tokens.item.sparse[4].ids[1], 0u);
  EXPECT_NE(tokens.user.sparse[3].ids[0], 0u);
  EXPECT_GT(request.report.from_request, 0u);
  EXPECT_GT(request.report.from_catalog, 0u);
  EXPECT_GT(request.report.defaulted, 0u);
}

TEST(Candidates, AreIndependentOfEachOther) {
  Request request;
  const CandidateTokens both = request.Tokens();
  request.candidates.item_ids = {8, 7};
  const CandidateTokens swapped = request.Tokens();
  request.candidates.item_ids = {7};
  const CandidateTokens alone = request.Tokens();
  for (size_t d = 0; d < 6; ++d) {
    EXPECT_EQ(both.item.dense[d], swapped.item.dense[6 + d]);
    EXPECT_EQ(both.item.dense[d], alone.item.dense[d]);
  }
  EXPECT_EQ(both.item.sparse[0].ids[0], swapped.item.sparse[0].ids[1]);
}

TEST(Counts, ByRule) {
  ItemCounts counts{.exposures = 100,
                    .cells = {{.action = 1, .value_bin = 0, .count = 9},
                              {.action = 4, .value_bin = 7, .count = 2},
                              {.action = 4, .value_bin = 8, .count = 3},
                              {.action = 4, .value_bin = 15, .count = 1}}};
  const RateCounts rating = CountsByRule(counts, {.action = ActionType::kRating, .min_value = 4});
  EXPECT_EQ(rating.n, 100);
  EXPECT_EQ(rating.positives, 4);
  EXPECT_EQ(rating.value_count, 6);
  EXPECT_EQ(rating.value_sum, 2 * 3.5 + 3 * 4 + 7.5);
  counts.exposures = 0;
  EXPECT_EQ(CountsByRule(counts, {.action = ActionType::kRating, .min_value = 4}).n, 6);
  counts.exposures = 100;
  const RateCounts explicit_only =
      CountsByRule(counts, {.action = ActionType::kClick, .unlabelled_is_negative = false});
  EXPECT_EQ(explicit_only.n, 9);
  EXPECT_EQ(explicit_only.positives, 9);
}

TEST(Partial, SmallNumbersAreNotHashed) {
  HistoryRow row;
  row.position = 7;
  row.action = ActionType::kDwell;
  row.action_class = 3;
  row.value = 100;
  row.context = {{"device", "tv"}};
  const auto tokens = TokenizeHistory({&row, 1}, INT64_MAX, nullptr, Config())[0].tokens;
  EXPECT_THAT(tokens.sparse[1].ids, ElementsAre(0));       // no catalog: genres missing
  EXPECT_THAT(tokens.sparse[2].ids, ElementsAre(3 + 1));   // class
  EXPECT_THAT(tokens.sparse[3].ids, ElementsAre(15 + 1));  // top value bin
  EXPECT_THAT(tokens.sparse[4].ids, ElementsAre(3 + 1));   // log2(8)
  EXPECT_THAT(tokens.sparse[5].ids, ElementsAre(0));       // no scene
  EXPECT_NE(tokens.sparse[6].ids[0], 0u);
  row.position = 1'000'000;
  EXPECT_THAT(TokenizeHistory({&row, 1}, INT64_MAX, nullptr, Config())[0].tokens.sparse[4].ids, ElementsAre(7));
}

TEST(ValidateConfig, AcceptsTheConfigsOfTheseTests) {
  EXPECT_TRUE(ValidateTokenizerConfig(Config()).ok()) << ValidateTokenizerConfig(Config());
  EXPECT_TRUE(ValidateTokenizerConfig(testing::ClickConfig()).ok());
}

TEST(ValidateConfig, NamesWhatItRefuses) {
  const auto refused = [](const std::function<void(TokenizerConfig*)>& spoil) {
    TokenizerConfig config = Config();
    spoil(&config);
    const absl::Status status = ValidateTokenizerConfig(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](auto* c) { c->feature_version = 2; }), HasSubstr("feature_version"));
  EXPECT_THAT(refused([](auto* c) { c->partial[0].vocab = 1; }), HasSubstr("partial[0].vocab"));
  EXPECT_THAT(refused([](auto* c) { c->full[0].vocab = 999; }), HasSubstr("full[0].vocab"));  // another size, one table
  EXPECT_THAT(refused([](auto* c) { c->partial[1].name = c->partial[0].name; }), HasSubstr("partial[1].name"));
  EXPECT_THAT(refused([](auto* c) { c->partial[0].source = SparseSource::kUserId; }), HasSubstr("partial[0].source"));
  EXPECT_THAT(refused([](auto* c) { c->full[0].source = SparseSource::kActionClass; }), HasSubstr("full[0].source"));
  EXPECT_THAT(refused([](auto* c) { c->full[6].attribute.clear(); }), HasSubstr("full[6].attribute"));
  EXPECT_THAT(refused([](auto* c) { c->full[0].attribute.push_back('x'); }), HasSubstr("full[0].attribute"));
  EXPECT_THAT(refused([](auto* c) { c->full_dense[0].prior = 1; }), HasSubstr("full_dense[0].prior"));
  EXPECT_THAT(refused([](auto* c) { c->full_dense[0].prior_weight = -1; }), HasSubstr("prior_weight"));
  EXPECT_THAT(refused([](auto* c) { c->full_dense[0].scale = NAN; }), HasSubstr("full_dense[0].scale"));
  EXPECT_THAT(refused([](auto* c) { c->actions[0].action_class = -1; }), HasSubstr("actions[0].action_class"));
  EXPECT_THAT(refused([](auto* c) { c->actions[0].max_value = 1; }), HasSubstr("actions[0].min_value"));
  EXPECT_THAT(refused([](auto* c) { c->channels.clear(); }), HasSubstr("channels"));
  EXPECT_THAT(refused([](auto* c) { c->channels[1].action_classes = {255}; }), HasSubstr("channels[1]"));
  EXPECT_THAT(refused([](auto* c) { c->label.action = ActionType::kNone; }), HasSubstr("label.action"));
  EXPECT_THAT(refused([](auto* c) { c->label.min_value = 4.2f; }), HasSubstr("label.min_value"));
  EXPECT_THAT(refused([](auto* c) { c->label_window_us = -1; }), HasSubstr("label_window_us"));
  EXPECT_THAT(refused([](auto* c) { c->stats_granularity_us = 1; }), HasSubstr("stats_granularity_us"));
}

}  // namespace
}  // namespace backstory
