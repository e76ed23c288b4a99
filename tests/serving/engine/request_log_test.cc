#include "serving/engine/request_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/serving/engine/harness.h"

namespace backstory::testing {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

RankQuery FullQuery() {
  RankQuery query = Query("user \"7\"\n", {1, UINT64_MAX, 3}, kNow);
  query.ns = "shop";
  query.scene = "home";
  query.units.device = "phone";
  query.units.session = "s1";
  query.request_id = UINT64_MAX - 1;
  query.as_of = {kNow - 5, kNow - 3};
  query.criticality = Criticality::kBatch;
  query.features["age"] = {"", 31.25, true};
  query.features["os"] = {"linux", 0, false};
  query.candidates.numbers["bid"] = {0.1f, -2.5e-8f, 3};
  query.candidates.texts["brand"] = {"a", "", "ü"};
  return query;
}

class RequestLogTest : public ::testing::Test {
 protected:
  RequestLogTest() : path_(::testing::TempDir() + "requests_" + std::to_string(::getpid()) + ".jsonl") {
    fs::remove(path_);
  }
  ~RequestLogTest() override { fs::remove(path_); }
  const std::string path_;
};

TEST_F(RequestLogTest, EveryFieldComesBack) {
  const RankQuery query = FullQuery();
  RankReply reply;
  reply.scores = {{"like", {0.5f}, {0}}};
  const auto back = QueryFromJsonLine(ToJsonLine(query, reply));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->ns, query.ns);
  EXPECT_EQ(back->scene, query.scene);
  EXPECT_EQ(back->units.user, query.units.user);
  EXPECT_EQ(back->units.device, query.units.device);
  EXPECT_EQ(back->units.session, query.units.session);
  EXPECT_EQ(back->request_id, query.request_id);
  EXPECT_EQ(back->now_us, query.now_us);
  EXPECT_EQ(back->as_of, query.as_of);
  EXPECT_EQ(back->criticality, query.criticality);
  EXPECT_EQ(back->candidates.item_ids, query.candidates.item_ids);
  EXPECT_EQ(back->candidates.numbers, query.candidates.numbers);
  EXPECT_EQ(back->candidates.texts, query.candidates.texts);
  EXPECT_EQ(back->features.at("age").number, 31.25);
  EXPECT_TRUE(back->features.at("age").is_number);
  EXPECT_EQ(back->features.at("os").text, "linux");
}

TEST_F(RequestLogTest, TheExampleOfTheReferencePageIsRead) {
  const char* source = std::getenv("BACKSTORY_SOURCE_DIR");
  std::ifstream page(std::string(source == nullptr ? "." : source) + "/docs/reference/request-log.md");
  int examples = 0;
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with("{")) continue;
    ++examples;
    const auto query = QueryFromJsonLine(line);
    ASSERT_TRUE(query.ok()) << query.status();
    EXPECT_TRUE(ValidateRankQuery(*query).ok());
    EXPECT_EQ(query->candidates.texts.at("brand"), (std::vector<std::string>{"a", ""}));
  }
  EXPECT_EQ(examples, 1);
}

TEST_F(RequestLogTest, RecordsUntilItsBound) {
  auto recorder = *JsonLinesRecorder::Open(path_, 2000);
  for (int i = 0; i < 100; ++i) recorder->Record(FullQuery(), {});
  EXPECT_GT(recorder->dropped(), 0u);
  EXPECT_LE(fs::file_size(path_), 2000u);
  const auto queries = ReadRequestLog(path_, 1000);
  ASSERT_TRUE(queries.ok()) << queries.status();
  EXPECT_EQ(queries->size(), 100 - recorder->dropped());
  EXPECT_EQ(ReadRequestLog(path_, 2)->size(), 2u);
}

// A server that died while it wrote leaves half a line: what comes after it must not be glued to it.
TEST_F(RequestLogTest, HalfALineOfAnEarlierProcessIsCutOff) {
  const std::string line = ToJsonLine(FullQuery(), {}) + "\n";
  for (const std::string& before : {line, std::string()}) {
    std::ofstream(path_) << before << std::string(100'000, '{');
    { (*JsonLinesRecorder::Open(path_, 1 << 20))->Record(FullQuery(), {}); }
    EXPECT_EQ(fs::file_size(path_), before.size() + line.size());
    const auto queries = ReadRequestLog(path_, 10);
    ASSERT_TRUE(queries.ok()) << queries.status();
    EXPECT_EQ(queries->size(), before.empty() ? 1u : 2u);
  }
}

TEST_F(RequestLogTest, BadLinesAreNamed) {
  EXPECT_EQ(ReadRequestLog(path_, 10).status().code(), absl::StatusCode::kNotFound);
  const char* const bad[] = {"{",
                             "[]",
                             "{\"items\":[\"1\"]}",
                             "{\"user\":\"a\",\"items\":[1]}",
                             "{\"user\":\"a\",\"items\":[\"x\"]}",
                             "{\"user\":\"a\",\"items\":[]}",
                             "{\"user\":\"a\",\"items\":[\"1\"],\"now_us\":-1}",
                             "{\"user\":\"a\",\"items\":[\"1\"],\"numbers\":{\"b\":[1,2]}}"};
  for (const char* line : bad) {
    std::ofstream(path_) << "{\"user\":\"a\",\"items\":[\"1\"]}\n" << line << "\n";
    const absl::Status status = ReadRequestLog(path_, 10).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_ + ":2: ")) << line;
  }
}

// A new version is warmed with what an old one was asked, and fails if that gives a score that is not finite.
TEST_F(RequestLogTest, WarmUpScoresRecordedRequests) {
  const std::string root = path_ + ".repository";
  fs::remove_all(root);
  fs::create_directories(root + "/fake/1");
  std::ofstream(root + "/fake/1/MANIFEST") << "x";
  std::ofstream(root + "/fake/warmup.jsonl") << ToJsonLine(Query("a", {1, 2}), {}) << "\n"
                                             << ToJsonLine(Query("b", {1}), {}) << "\n";
  auto model = std::make_shared<FakeModel>(FakeConfig());
  FakeHistoryStore store;
  FakeCatalog catalog;
  ManualClock clock(kNow, 1);
  MemoryMetrics metrics;
  EngineOptions options;
  options.repository.root = root;
  options.parameters["threads"] = "1";
  const ModelLoader loader = [&](const ModelSource&) -> absl::StatusOr<std::shared_ptr<const ServedModel>> {
    return Served(model);
  };
  ASSERT_TRUE(store.Append({"default", "a"}, std::vector{Shown(1, kNow - 9, 1)}, kNow, Durability::kSynced).ok());
  {
    auto engine = Engine::Create(options, &store, &catalog, loader, &clock, &metrics);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ(model->scores, 3);  // a made-up one and two recorded
    EXPECT_EQ((*engine)->Stats().cached_users, 1u);
  }
  {
    std::ofstream(root + "/fake/warmup.jsonl") << ToJsonLine(Query("a", {1, 2}), {}) << "\n{\"user\":\n"
                                               << ToJsonLine(Query("b", {1}), {}) << "\n";
    model->scores = 0;
    auto engine = Engine::Create(options, &store, &catalog, loader, &clock, &metrics);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ(model->scores, 3) << "what follows the broken line is scored too";
    EXPECT_EQ(metrics.Value("backstory_warmup_lines_unreadable_total"), 1);
    std::ofstream(root + "/fake/warmup.jsonl") << "{\n{\n";
    const absl::Status none = Engine::Create(options, &store, &catalog, loader, &clock, &metrics).status();
    EXPECT_THAT(std::string(none.message()), HasSubstr("warmup.jsonl:1: "));
    std::ofstream(root + "/fake/warmup.jsonl") << ToJsonLine(Query("a", {1, 2}), {}) << "\n";
  }
  model->nan_scores = true;
  const absl::Status status = Engine::Create(options, &store, &catalog, loader, &clock, &metrics).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("warm-up"));
  fs::remove_all(root);
}

TEST(EngineCreateTest, RefusesBadOptions) {
  FakeHistoryStore store;
  FakeCatalog catalog;
  ManualClock clock;
  MemoryMetrics metrics;
  struct {
    const char* expected;
    std::function<void(EngineOptions*)> spoil;
  } const cases[] = {
      {"threads", [](EngineOptions* o) { o->parameters["threads"] = "many"; }},
      {"unknown parameter", [](EngineOptions* o) { o->parameters["thread"] = "1"; }},
      {"concurrency_limit_min", [](EngineOptions* o) { o->parameters["concurrency_limit_max"] = "1"; }},
      {"requests_per_s",
       [](EngineOptions* o) {
         o->quotas = {{"default", 0, 0}};
       }},
      {"given twice",
       [](EngineOptions* o) {
         o->quotas = {{"default", 1, 0}, {"default", 1, 0}};
       }},
      {"namespace",
       [](EngineOptions* o) {
         o->quotas = {{"NO", 1, 0}};
       }},
  };
  for (const auto& c : cases) {
    EngineOptions options;
    c.spoil(&options);
    const absl::Status status = Engine::Create(options, &store, &catalog, nullptr, &clock, &metrics).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.expected));
  }
}

}  // namespace
}  // namespace backstory::testing
