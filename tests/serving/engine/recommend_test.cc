// Recommend through the engine: however a user's state came about, the answer is that of the whole history; filters,
// ranking, experiments and new items do what they say; what is wrong is refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "serving/engine/recommend/generative_model.h"
#include "tests/models/fake_card.h"
#include "tests/models/glass_version_fixture.h"
#include "tests/models/temp_dir.h"
#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::shared_ptr<const glass::LoadedGlass> LoadTiny(uint32_t seed, const glass::LoadOptions& options = {},
                                                   const std::string& embedding_space = "") {
  const TempDir dir;
  const auto set_space = [&](glass::Config* config) { config->embedding_space = embedding_space; };
  glass::MustWrite(glass::MakeParts("tiny", 60, seed, set_space), dir.path("1"));
  auto loaded = glass::LoadGlassVersion(dir.path("1"), options);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return *std::move(loaded);
}

std::shared_ptr<const ServedModel> ServedTiny(std::shared_ptr<const glass::LoadedGlass> loaded,
                                              const std::string& version) {
  auto served = std::make_shared<ServedModel>();
  served->name = "tiny";
  served->version = version;
  served->content_hash = loaded->hash;
  auto generative = std::make_shared<const GenerativeModel>(std::move(loaded));
  served->generative_state_id = generative->state_id();
  served->generative = std::move(generative);
  return served;
}

class OneArm : public Assigner {
 public:
  Assignment Assign(const std::string&, const std::string&, const Units&, const FeatureMap&) const override {
    return Assignment{{layer}, "e1", nullptr};
  }
  LayerAssignment layer;
};

class KeptExposures : public ExposureSink {
 public:
  void Write(const ExposureRecord& record) override { written.push_back(record); }
  void Finish(const ExposureFinal& record) override { finished.push_back(record); }
  std::vector<ExposureRecord> written;
  std::vector<ExposureFinal> finished;
};

class RecommendTest : public ::testing::Test {
 protected:
  RecommendTest() : clock_(kNow, 5 * kSecond) { Start({}, {}); }

  void Start(std::map<std::string, std::string> parameters, EngineOptions options) {
    ParameterSet set;
    ASSERT_TRUE(set.SetAll(parameters, ParameterSource::kServer).ok());
    ModelLoader loader = [this](const ModelSource& source) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
      if (source.model == "fake") return Served(ranking_, source.version);
      return ServedTiny(source.version == "2" ? second_ : first_, source.version);
    };
    engine_ = std::make_unique<EngineImpl>(std::move(options), std::move(set), 0, &store_, &catalog_, std::move(loader),
                                           &clock_, &metrics_);
    for (const char* version : {"1", "2"}) ASSERT_TRUE(engine_->models().Load("tiny", version).ok());
    ASSERT_TRUE(engine_->models().SetLabel("tiny", "stable", "1").ok());
    ASSERT_TRUE(engine_->models().Load("fake", "1").ok());
    ASSERT_TRUE(engine_->models().SetLabel("fake", "stable", "1").ok());
  }

  static RecommendQuery For(const std::string& user, size_t count = 5) {
    RecommendQuery query;
    query.request.units.user = user;
    query.spec.count = count;
    return query;
  }
  absl::StatusOr<RecommendReply> Recommend(RecommendQuery query) {
    std::optional<absl::StatusOr<RecommendReply>> answer;
    engine_->Recommend(std::move(query), [&](absl::StatusOr<RecommendReply> reply) { answer = std::move(reply); });
    while (!answer.has_value() && engine_->RunOne()) {
    }
    return answer.has_value() ? *std::move(answer) : absl::InternalError("never answered");
  }
  std::string Refusal(RecommendQuery query, absl::StatusCode code) {
    const auto reply = Recommend(std::move(query));
    EXPECT_EQ(reply.status().code(), code) << reply.status();
    return std::string(reply.status().message());
  }
  void Append(const std::string& user, const std::vector<Event>& events) {
    const auto result = engine_->Append({"default", user}, events, Durability::kSynced);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  std::vector<Event> Ratings(size_t count, uint64_t first_id, int64_t first_us, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Event> events;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t item = random() % 10 == 0 ? 77 : 1000 + 3 * (random() % 60);  // some are unknown
      events.push_back(glass::RatingOf(first_id + i, item, first_us + static_cast<int64_t>(i) * 500'000, random() % 6));
    }
    return events;
  }
  // The whole history, read anew and run through the golden path.
  void ExpectAsFromScratch(const RecommendReply& reply, const std::string& user, int64_t view_us,
                           const glass::LoadedGlass& loaded) {
    const auto snapshot = store_.Read({"default", user}, {});
    ASSERT_TRUE(snapshot.ok());
    glass::GoldenCase golden{"", snapshot->events, view_us, reply.beam, reply.items.size(), true, {}};
    const auto ran = glass::RunGolden(*loaded.searcher, *loaded.catalogue, golden);
    ASSERT_TRUE(ran.ok()) << ran.status();
    const glass::GoldenExpectation& want = *ran;
    ASSERT_EQ(reply.items.size(), want.items.size());
    for (size_t i = 0; i < want.items.size(); ++i) {
      EXPECT_EQ(reply.items[i].item_id, want.items[i]) << i;
      EXPECT_EQ(reply.items[i].sid, std::vector<uint32_t>(want.item_sids[i].begin(), want.item_sids[i].end()));
    }
    EXPECT_EQ(static_cast<double>(reply.items[0].log_probability), [&] {
      for (size_t b = 0; b < want.sids.size(); ++b) {
        if (want.sids[b] == want.item_sids[0]) return want.log_probability[b];
      }
      return 1.0;
    }());
    EXPECT_EQ(reply.common.rows_visible[1], want.long_items);
  }

  std::shared_ptr<const glass::LoadedGlass> first_ = LoadTiny(5), second_ = LoadTiny(6);
  std::shared_ptr<FakeModel> ranking_ = std::make_shared<FakeModel>(FakeConfig());
  ManualClock clock_;
  FakeHistoryStore store_;
  FakeCatalog catalog_;
  MemoryMetrics metrics_;
  std::unique_ptr<EngineImpl> engine_;
};

TEST_F(RecommendTest, EveryWayToAStateGivesTheAnswerOfTheWholeHistory) {
  const int64_t start_us = kNow - 3'600 * kSecond;
  uint64_t id = 1;
  const auto expect = [&](const char* source) {
    const auto reply = Recommend(For("ann"));
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->common.cache.source, source);
    ExpectAsFromScratch(*reply, "ann", clock_.WallMicros(), *first_);
  };
  expect("empty");
  EXPECT_EQ(engine_->Stats().cached_states, 0u) << "nobody's state takes nobody's place";
  Append("ann", Ratings(3, id, start_us, 1)), id += 3;
  expect("rebuild");
  expect("hit");
  for (uint32_t round = 0; round < 6; ++round) {  // beyond the short window of 6, bucket by bucket
    Append("ann", Ratings(9, id, start_us + 100 * kSecond * (round + 1), round)), id += 9;
    expect("extend");
  }
  Append("ann", Ratings(2, id, start_us + 10 * kSecond, 50)), id += 2;  // late ones
  expect("rebuild");
  Append("ann", Ratings(2, id, kNow + 10 * kSecond, 51)), id += 2;  // not yet
  expect("hit");
  clock_.Advance(20 * kSecond);
  expect("extend");
  Event corrected = glass::RatingOf(1, 1003, start_us, 5);
  corrected.revision = 1;
  Append("ann", {corrected});
  expect("rebuild");
  ASSERT_TRUE(engine_->Delete({"default", "ann"}, {.event_ids = {4, 5}}).ok());
  expect("rebuild");
}

TEST_F(RecommendTest, ThePastIsAnsweredFromThePast) {
  const int64_t start_us = kNow - 3'600 * kSecond;
  Append("bob", Ratings(40, 1, start_us, 3));
  ASSERT_TRUE(Recommend(For("bob")).ok());
  RecommendQuery past = For("bob");
  past.request.as_of.event_time_us = start_us + 10 * kSecond;
  const auto reply = Recommend(past);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->common.cache.source, "uncached");
  ExpectAsFromScratch(*reply, "bob", past.request.as_of.event_time_us, *first_);
  EXPECT_EQ(Recommend(For("bob"))->common.cache.source, "hit") << "the present kept its state";
}

TEST_F(RecommendTest, AnAppendBringsTheStateUpToDateBeforeAnybodyAsks) {
  Append("cid", Ratings(9, 1, kNow - 100 * kSecond, 3));
  ASSERT_TRUE(Recommend(For("cid")).ok());
  Append("cid", Ratings(1, 100, kNow - 10 * kSecond, 4));
  while (engine_->RunOne()) {
  }
  EXPECT_EQ(Recommend(For("cid"))->common.cache.source, "hit");
  std::optional<absl::StatusOr<std::vector<CacheReport>>> reports;
  engine_->Prefetch({"default", "dan"}, {{"tiny", "", ""}}, INT64_MAX,
                    [&](auto answer) { reports = std::move(answer); });
  while (engine_->RunOne()) {
  }
  ASSERT_TRUE(reports.has_value() && reports->ok()) << reports->status();
  EXPECT_EQ((**reports)[0].source, "empty");
}

TEST_F(RecommendTest, VersionsAnswerBesideEachOtherAndUnloadFreesStates) {
  Append("eve", Ratings(30, 1, kNow - 100 * kSecond, 9));
  RecommendQuery query = For("eve");
  query.request.model = {"tiny", "2", ""};
  const auto reply = Recommend(query);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->common.version, "2");
  ExpectAsFromScratch(*reply, "eve", kNow, *second_);
  ASSERT_TRUE(Recommend(For("eve")).ok());
  EXPECT_EQ(engine_->Stats().cached_states, 2u);
  ASSERT_TRUE(engine_->models().Unload("tiny", "2").ok());
  EXPECT_EQ(engine_->Stats().cached_states, 1u);
  EXPECT_THAT(Refusal(query, absl::StatusCode::kFailedPrecondition), HasSubstr("model tiny version 2 is UNLOADED"));
}

TEST_F(RecommendTest, FiltersLeaveOutWhatTheySayAndSaySo) {
  Append("fay", Ratings(30, 1, kNow - 100 * kSecond, 9));
  RecommendQuery all = For("fay", 60);
  all.spec.beam = 200;
  all.spec.exclude_seen = false;
  const auto everything = Recommend(all);
  ASSERT_TRUE(everything.ok()) << everything.status();
  ASSERT_EQ(everything->items.size(), 60u);
  EXPECT_FALSE(everything->partial);
  for (size_t i = 1; i < 60; ++i)
    EXPECT_LE(everything->items[i].log_probability, everything->items[i - 1].log_probability);

  RecommendQuery filtered = all;
  filtered.spec.exclude_items = {everything->items[0].item_id, everything->items[1].item_id};
  filtered.spec.exclude_seen = true;
  const auto rest = Recommend(filtered);
  ASSERT_TRUE(rest.ok());
  EXPECT_TRUE(rest->partial);
  EXPECT_EQ(rest->filtered.excluded, 2u);
  EXPECT_EQ(rest->items.size() + 2 + rest->filtered.seen, 60u);
  EXPECT_GT(rest->filtered.seen, 5u);
  EXPECT_THAT(rest->partial_reason, HasSubstr("of 60 items: beam 200 found"));
  EXPECT_THAT(rest->partial_reason, HasSubstr("exclude_item_ids 2, exclude_seen "));

  RecommendQuery diverse = all;
  diverse.spec.per_sid_max = 1;
  const auto one_each = Recommend(diverse);
  ASSERT_TRUE(one_each.ok());
  std::set<std::vector<uint32_t>> sids;
  for (const auto& item : one_each->items) EXPECT_TRUE(sids.insert(item.sid).second);
  EXPECT_EQ(one_each->items.size(), one_each->sids_found);

  const Item film{.item_id = everything->items[7].item_id, .categories = {"Comedy"}};
  ASSERT_TRUE(catalog_.Upsert("default", {&film, 1}, false).ok());
  RecommendQuery comedies = all;
  comedies.spec.include_categories = {"Comedy", "Drama"};
  const auto comedy = Recommend(comedies);
  ASSERT_TRUE(comedy.ok());
  ASSERT_EQ(comedy->items.size(), 1u);
  EXPECT_EQ(comedy->items[0].item_id, film.item_id);
  comedies.spec.include_categories = {"Drama"};
  EXPECT_THAT(Refusal(comedies, absl::StatusCode::kFailedPrecondition),
              HasSubstr("the filters took all: include_categories 60; loosen them or raise beam"));
}

TEST_F(RecommendTest, RankedRecommendationsCarryBothScores) {
  Append("gus", Ratings(30, 1, kNow - 100 * kSecond, 9));
  RecommendQuery query = For("gus", 4);
  const auto plain = Recommend(query);
  query.spec.rank = RankThem{{}, 7};
  const auto ranked = Recommend(query);
  ASSERT_TRUE(plain.ok() && ranked.ok()) << ranked.status();
  EXPECT_EQ(ranked->rank_model, "fake");
  EXPECT_EQ(ranked->rank_version, "1");
  ASSERT_EQ(ranked->items.size(), 4u);
  EXPECT_EQ(ranking_->segments_scored, 2u) << "one probe, one request";
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_EQ(ranked->items[i].ranked.size(), FakeConfig().tasks.size());
    EXPECT_NEAR(ranked->items[i].score, std::log(1 / (1 + std::exp(-ranked->items[i].ranked[0].raw_logit))), 1e-5);
    EXPECT_LE(ranked->items[i].score, ranked->items[i == 0 ? 0 : i - 1].score);
  }
  // The same scores as a Rank of these items.
  RankQuery rank;
  rank.units.user = "gus";
  for (const auto& item : ranked->items) rank.candidates.item_ids.push_back(item.item_id);
  std::optional<absl::StatusOr<RankReply>> direct;
  engine_->Rank(rank, [&](auto reply) { direct = std::move(reply); });
  while (engine_->RunOne()) {
  }
  ASSERT_TRUE(direct.has_value() && direct->ok());
  EXPECT_EQ((*direct)->scores[0].raw_logit[0], ranked->items[0].ranked[0].raw_logit);
  query.request.parameters["recommend_blend"] = "0";
  const auto unblended = Recommend(query);
  ASSERT_TRUE(unblended.ok());
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(unblended->items[i].item_id, plain->items[i].item_id);
}

TEST_F(RecommendTest, ExplanationsNameBehavioursOfTheItemsOwnBucket) {
  Append("hal", Ratings(60, 1, kNow - 100 * kSecond, 9));
  RecommendQuery query = For("hal", 8);
  query.request.explain_top = 32;
  const auto reply = Recommend(query);
  ASSERT_TRUE(reply.ok());
  const auto plain = Recommend(For("hal", 8));
  size_t explained = 0;
  for (size_t i = 0; i < reply->items.size(); ++i) {
    const Recommended& item = reply->items[i];
    EXPECT_EQ(item.item_id, plain->items[i].item_id) << "asking why changes nothing";
    EXPECT_EQ(item.log_probability, plain->items[i].log_probability);
    EXPECT_TRUE(item.search_gate > 0 && item.search_gate < 1);
    float mass = 0;
    for (const ExplainedEvent& event : item.explanation) {
      const auto row = first_->catalogue->RowOf(event.item_id);
      ASSERT_TRUE(row.has_value());
      EXPECT_EQ(first_->catalogue->sid(*row)[0], item.sid[0]);
      EXPECT_TRUE(event.event_id >= 1 && event.event_id <= 60 && event.time_us < kNow);
      mass += event.mass;
    }
    if (item.explanation.empty()) continue;
    ++explained;
    EXPECT_NEAR(mass, 1, 1e-4);
  }
  EXPECT_GT(explained, 0u);
}

TEST_F(RecommendTest, ExperimentsSetParametersAndAreExposed) {
  auto assigner = std::make_shared<OneArm>();
  auto sink = std::make_shared<KeptExposures>();
  assigner->layer = {{{"recommend_beam", "3"}, {"recommend_model_version", "2"}}, {{"beams", "narrow", "b", "user"}}};
  EngineOptions options;
  options.assigner = assigner;
  options.exposure_sink = sink;
  Start({}, std::move(options));
  const auto reply = Recommend(For("ida"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->beam, 3u);
  EXPECT_EQ(reply->common.version, "2");
  EXPECT_EQ(reply->common.exposures.size(), 1u);
  ASSERT_EQ(sink->written.size(), 1u);
  EXPECT_EQ(sink->written[0].version, "2");
  ASSERT_EQ(sink->finished.size(), 1u);
  EXPECT_EQ(sink->finished[0].status, "OK");
  EXPECT_EQ(sink->finished[0].model, "tiny");
  RecommendQuery own = For("ida");
  own.spec.beam = 5;
  EXPECT_EQ(Recommend(own)->beam, 5u) << "a request is stronger";
  own.request.suppress_exposure = true;
  ASSERT_TRUE(Recommend(own).ok());
  EXPECT_EQ(sink->written.size(), 2u);
}

TEST_F(RecommendTest, ItemsWithAnEmbeddingCanBeRecommended) {
  ASSERT_TRUE(Recommend(For("joe")).ok());
  const glass::VersionParts parts = glass::MakeParts("tiny", 60, 5);
  Item item{.item_id = 4711};
  item.embedding.assign(parts.embeddings.begin(), parts.embeddings.begin() + 8);  // of item 1000: the same SID
  const auto encoded = engine_->UpsertItems("default", {&item, 1});
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  ASSERT_EQ(encoded->size(), 2u) << "one per ready generative version";
  EXPECT_EQ((*encoded)[0].sid, std::vector<uint32_t>(parts.sids[0].begin(), parts.sids[0].end()));
  RecommendQuery all = For("joe", 61);
  all.spec.beam = 200;
  const auto found = [&] {
    const auto reply = Recommend(all);
    EXPECT_TRUE(reply.ok()) << reply.status();
    bool there = false;
    for (const auto& each : reply->items) there |= each.item_id == 4711;
    return there;
  };
  EXPECT_TRUE(found());
  all.request.ns = "elsewhere";
  EXPECT_FALSE(found()) << "catalogs are apart";
  all.request.ns = "default";
  Start({}, {});  // a restart reads it back from the catalog
  EXPECT_TRUE(found());
  // Behaviours on an item count from the moment it is known.
  Append("kim", {glass::RatingOf(1, 4712, kNow - 10 * kSecond), glass::RatingOf(2, 1003, kNow - 9 * kSecond)});
  EXPECT_EQ(Recommend(For("kim"))->common.rows_visible[0], 1u);
  item.item_id = 4712;
  ASSERT_TRUE(engine_->UpsertItems("default", {&item, 1}).ok());
  EXPECT_EQ(Recommend(For("kim"))->common.rows_visible[0], 2u);

  item.item_id = 1003;  // trained with: its semantic ID is its own
  const auto known = engine_->UpsertItems("default", {&item, 1});
  ASSERT_TRUE(known.ok());
  EXPECT_EQ((*known)[0].sid, std::vector<uint32_t>(parts.sids[1].begin(), parts.sids[1].end()));
  item.item_id = 4713;
  item.embedding.pop_back();
  auto refused = engine_->UpsertItems("default", {&item, 1});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("items[0].embedding has 7 numbers, model tiny takes 8"));
  item.embedding.push_back(std::nanf(""));
  refused = engine_->UpsertItems("default", {&item, 1});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("items[0].embedding[7] is not finite"));
}

TEST_F(RecommendTest, EmbeddingsOfAnotherSpaceAreNobodysItems) {
  first_ = LoadTiny(5, {}, "minilm"), second_ = LoadTiny(6, {}, "clip");
  Start({}, {});
  Item item{.item_id = 4711, .embedding = std::vector<float>(8, 0.1f), .embedding_space = "clip"};
  auto encoded = engine_->UpsertItems("default", {&item, 1});
  ASSERT_TRUE(encoded.ok()) << encoded.status();
  ASSERT_EQ(encoded->size(), 1u);
  EXPECT_EQ((*encoded)[0].version, "2");
  const auto knows = [&](const char* version) {
    RecommendQuery all = For("joe", 61);
    all.request.model = {"tiny", version, ""};
    all.spec.beam = 200;
    const auto reply = Recommend(all);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return std::any_of(reply->items.begin(), reply->items.end(), [](const auto& one) { return one.item_id == 4711; });
  };
  EXPECT_FALSE(knows("1"));
  EXPECT_TRUE(knows("2"));
  item.item_id = 4712, item.embedding_space = "unheard";
  const auto refused = engine_->UpsertItems("default", {&item, 1});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("items[0].embedding_space: the embedding is of \"unheard\", model tiny version 1 takes "
                        "embeddings of \"minilm\""));
  item.embedding_space = "";  // who does not say is believed
  EXPECT_EQ(engine_->UpsertItems("default", {&item, 1})->size(), 2u);
}

TEST_F(RecommendTest, ACardAnswersAndTheCpuTakesOverWhenItIsLost) {
  const auto control = std::make_shared<glass::FakeCardControl>();
  const std::shared_ptr<const glass::LoadedGlass> on_cpu = first_;
  first_ = LoadTiny(5, {.serve_with = glass::ServeWithFakeCard(control)});
  Start({}, {});
  Append("ann", Ratings(30, 1, kNow - 100 * kSecond, 9));
  const auto expect = [&](const char* source, size_t launches) {
    const size_t before = control->launches().size();
    const auto reply = Recommend(For("ann"));
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->common.cache.source, source);
    EXPECT_EQ(control->launches().size(), before + launches);
    ExpectAsFromScratch(*reply, "ann", clock_.WallMicros(), *on_cpu);
  };
  expect("rebuild", 1);
  expect("hit", 1);
  const uint64_t small = engine_->Stats().cached_bytes;
  RecommendQuery explained = For("ann");
  explained.request.explain_top = 2;
  EXPECT_TRUE(Recommend(explained).ok());
  control->Fail(absl::ResourceExhaustedError("no room"));
  expect("hit", 1);  // was tried
  control->Lose(absl::UnavailableError("fell off the bus"));
  expect("hit", 0);
  EXPECT_GT(engine_->Stats().cached_bytes, small) << "what the CPU keeps of a user is accounted";
  Append("ann", Ratings(1, 100, kNow - 10 * kSecond, 10));
  expect("extend", 0);
}

TEST_F(RecommendTest, EveryWrongRequestIsRefusedByName) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto with = [](auto edit) {
    RecommendQuery query = For("lea");
    edit(&query);
    return query;
  };
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.count = 0; }), kInvalid),
              HasSubstr("count is 0, must be within 1..1000"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.count = 1001; }), kInvalid), HasSubstr("count is 1001"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.beam = 1025; }), kInvalid),
              HasSubstr("beam is 1025, must be within 0..1024"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.per_sid_max = 1001; }), kInvalid), HasSubstr("per_sid_max is 1001"));
  EXPECT_THAT(Refusal(with([](auto* q) {
                        q->spec.rank = RankThem{{}, 10'001};
                      }),
                      kInvalid),
              HasSubstr("rank.candidates is 10001"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.exclude_items.resize(10'001); }), kInvalid),
              HasSubstr("exclude_item_ids"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->spec.include_categories = {""}; }), kInvalid),
              HasSubstr("include_categories"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.units.user = ""; }), kInvalid), HasSubstr("units.user"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.parameters["recommend_blend"] = "2"; }), kInvalid),
              HasSubstr("recommend_blend"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.parameters["beam"] = "2"; }), kInvalid),
              HasSubstr("unknown parameter"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.model.model = "none"; }), absl::StatusCode::kNotFound),
              HasSubstr("unknown model \"none\""));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.model.model = "fake"; }), absl::StatusCode::kFailedPrecondition),
              HasSubstr("model fake version 1 ranks and does not recommend: ask Ranking.Rank"));
  EXPECT_THAT(Refusal(with([](auto* q) {
                        q->spec.rank = RankThem{{"tiny", "", ""}, 0};
                      }),
                      absl::StatusCode::kFailedPrecondition),
              HasSubstr("rank: model tiny version 1 recommends and does not rank"));
  EXPECT_THAT(Refusal(with([](auto* q) { q->request.deadline_us = 1; }), absl::StatusCode::kDeadlineExceeded),
              HasSubstr("deadline"));
  RankQuery rank = Query("lea");
  rank.model.model = "tiny";
  std::optional<absl::StatusOr<RankReply>> answer;
  engine_->Rank(rank, [&](auto reply) { answer = std::move(reply); });
  ASSERT_TRUE(answer.has_value());
  EXPECT_THAT(std::string(answer->status().message()), HasSubstr("ask Retrieval.Recommend"));
  store_.read_status = absl::DataLossError("block 3 is damaged");
  EXPECT_THAT(Refusal(For("lea"), absl::StatusCode::kDataLoss), HasSubstr("block 3"));
}

// Where a state begins (a multiple of 4,096 events) follows from all events, however the history is read.
TEST_F(RecommendTest, ALookBackOfALongUserSeesTheHistoryThatWasSeenThen) {
  Start({{"state_events_max", "4096"}}, {});
  Append("zoe", Ratings(9000, 1, kNow - 9000 * kSecond, 5));
  RecommendQuery now = For("zoe");
  now.spec.exclude_seen = false;  // it has seen everything
  const auto online = Recommend(now);
  ASSERT_TRUE(online.ok()) << online.status();
  RecommendQuery past = now;
  past.request.as_of.known_by_us = kNow + kSecond;
  const auto again = Recommend(past);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->common.cache.source, "uncached");
  EXPECT_EQ(again->common.cache.rows_computed, online->common.cache.rows_computed);
  EXPECT_EQ(again->common.rows_visible, online->common.rows_visible);
  ASSERT_EQ(again->items.size(), online->items.size());
  for (size_t i = 0; i < online->items.size(); ++i) {
    EXPECT_EQ(again->items[i].item_id, online->items[i].item_id);
    EXPECT_EQ(again->items[i].log_probability, online->items[i].log_probability);
  }
}

// Nor do the events that came later move it: with and without a state of the present, the answer is that of then.
TEST_F(RecommendTest, WhatCameLaterDoesNotMoveWhereTheHistoryBegan) {
  Start({{"state_events_max", "4096"}}, {});
  Append("zoe", Ratings(5000, 1, kNow - 5000 * kSecond, 5));
  RecommendQuery past = For("zoe");
  past.spec.exclude_seen = false;
  past.request.now_us = kNow + kSecond;
  const auto online = Recommend(past);
  ASSERT_TRUE(online.ok()) << online.status();
  clock_.Advance(5000 * kSecond);
  Append("zoe", Ratings(4000, 5001, kNow + 2 * kSecond, 5));
  RecommendQuery present = For("zoe");
  present.spec.exclude_seen = false;
  for (int round = 0; round < 2; ++round) {
    const auto again = Recommend(past);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->common.rows_visible, online->common.rows_visible);
    ASSERT_EQ(again->items.size(), online->items.size());
    for (size_t i = 0; i < online->items.size(); ++i) {
      EXPECT_EQ(again->items[i].item_id, online->items[i].item_id);
      EXPECT_EQ(again->items[i].log_probability, online->items[i].log_probability);
    }
    ASSERT_TRUE(Recommend(present).ok());
  }
}

TEST_F(RecommendTest, UnderPressureBeamsGetFewer) {
  Start({{"queue_requests", "4"}, {"degrade_queue_fill", "0.1"}, {"degrade_beam", "2"}}, {});
  std::vector<RecommendReply> replies;
  for (int i = 0; i < 3; ++i) {
    engine_->Recommend(For("max"), [&](auto reply) {
      ASSERT_TRUE(reply.ok());
      replies.push_back(*std::move(reply));
    });
  }
  while (engine_->RunOne()) {
  }
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(replies[0].beam, 2u);
  EXPECT_EQ(replies[0].common.degrade_step, 1);
  EXPECT_THAT(replies[0].common.parameters, ::testing::Contains(EffectiveParameter{"recommend_beam", "2", "degrade"}));
}

TEST_F(RecommendTest, AStateThatMemoryCorruptedIsRebuilt) {
  Append("ned", Ratings(30, 1, kNow - 100 * kSecond, 9));
  const auto before = Recommend(For("ned"));
  ASSERT_TRUE(before.ok());
  const auto entry = engine_->cache_for_test().Get(
      {"default", "ned"},
      GenerativeStateProvider::StateKey(GenerativeModel(first_), engine_->parameters().StateHash()));
  {
    StateLease lease = StateLease::Acquire(entry);
    ASSERT_NE(lease.generative(), nullptr);
    lease.generative()->mutable_history_for_test()->Append(3);
  }
  Append("ned", {glass::RatingOf(90, 1003, kNow - 1 * kSecond)});
  while (engine_->RunOne()) {
  }
  const auto reply = Recommend(For("ned"));
  ASSERT_TRUE(reply.ok());
  ExpectAsFromScratch(*reply, "ned", kNow, *first_);
  EXPECT_EQ(metrics_.Value("backstory_state_hash_mismatch_total"), 1);
}

}  // namespace
}  // namespace backstory::testing
