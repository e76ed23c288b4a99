// The commands ingest and tokenize as a user runs them: exit codes, reports, and that a store and the files it was
// loaded from give the same tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "CLI/CLI.hpp"
#include "features/io/import_file.h"
#include "features/item_counts.h"
#include "models/safetensors.h"
#include "serving/cli/ingest_command.h"
#include "serving/cli/synth_command.h"
#include "serving/cli/tokenize_command.h"
#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

constexpr const char* kModel = R"(
name: "test"
tokenizer {
  partial { name: "item" source: ITEM_ID table: "item" vocab: 1000 }
  partial { name: "device" source: EVENT_CONTEXT attribute: "device" table: "device" vocab: 8 }
  full { name: "item" source: ITEM_ID table: "item" vocab: 1000 }
  full { name: "user" source: USER_ID table: "user" vocab: 100 }
  full { name: "device" source: REQUEST_FEATURE attribute: "device" table: "device" vocab: 8 }
  full_dense { name: "rate" source: ITEM_RATE }
  full_dense { name: "user_rate" source: USER_RATE }
  full_dense { name: "category_rate" source: USER_CATEGORY_RATE }
  actions { action: CLICK action_class: 1 }
  label { action: CLICK }
  channels { name: "all" }
  channels { name: "clicked" action_classes: 1 }
  label_window_us: 1800000000
  open_rows: HIDE
}
)";

struct Outcome {
  int code = 0;
  std::string out, err;
};

class Commands : public ::testing::Test {
 protected:
  Commands() : home_(fs::temp_directory_path() / ("backstory_commands_" + std::to_string(::getpid()))) {
    fs::create_directories(home_);
    std::ofstream(home_ / "model.textproto") << kModel;
  }
  ~Commands() override { fs::remove_all(home_); }

  std::string Path(const std::string& name) const { return home_ / name; }
  std::string Write(const std::string& name, const std::string& text) {
    std::ofstream(home_ / name) << text;
    return Path(name);
  }
  static std::string Content(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  Outcome Run(std::vector<std::string> arguments) {
    CLI::App app("test");
    AddIngestCommand(app);
    AddSynthCommand(app);
    AddTokenizeCommand(app);
    app.require_subcommand(1);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    Outcome outcome;
    std::reverse(arguments.begin(), arguments.end());
    try {
      app.parse(arguments);
    } catch (const CLI::ParseError& error) {
      outcome.code = error.get_exit_code();
    }
    outcome.out = ::testing::internal::GetCapturedStdout();
    outcome.err = ::testing::internal::GetCapturedStderr();
    return outcome;
  }
  fs::path home_;
};

TEST_F(Commands, StoreAndFilesGiveTheSameTokens) {
  ASSERT_EQ(Run({"synth", "--users", "12", "--events-per-user", "50-400", "--out", Path("syn")}).code, 0);
  const std::string events = Path("syn/events.csv"), items = Path("syn/items.csv");
  const Outcome loaded = Run({"ingest", "--store", Path("store"), "--events", events, "--items", items, "--json"});
  ASSERT_EQ(loaded.code, 0) << loaded.err;
  EXPECT_THAT(loaded.out, HasSubstr("\"unreadable\": 0"));
  EXPECT_THAT(loaded.err, Not(HasSubstr("\r")));  // no bar when not a terminal
  const Outcome again = Run({"ingest", "--store", Path("store"), "--events", events});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr(" 0 new"));

  const std::string model = Path("model.textproto");
  const Outcome files = Run({"tokenize", "--events", events, "--items", items, "--model-config", model, "--out",
                             Path("a"), "--shard-users", "5"});
  ASSERT_EQ(files.code, 0) << files.err;
  const Outcome store = Run({"tokenize", "--store", Path("store"), "--model-config", model, "--out", Path("b"),
                             "--shard-users", "5", "--threads", "1"});
  ASSERT_EQ(store.code, 0) << store.err;
  EXPECT_EQ(files.out, store.out);
  for (const char* shard : {"/tokens-00000-of-00003.safetensors", "/tokens-00002-of-00003.safetensors"}) {
    ASSERT_FALSE(Content(Path("a") + shard).empty());
    EXPECT_EQ(Content(Path("a") + shard), Content(Path("b") + shard));
  }
}

// The same numbers from CountsBefore of the store and from the files' index: one definition, two computations.
TEST_F(Commands, StoreCountsEqualIndexCounts) {
  ASSERT_EQ(Run({"synth", "--users", "6", "--events-per-user", "300", "--items", "100", "--out", Path("syn")}).code, 0);
  ASSERT_EQ(Run({"ingest", "--store", Path("store"), "--events", Path("syn/events.csv")}).code, 0);
  std::vector<BadRow> bad;
  const auto rows = ReadEventFile(Path("syn/events.csv"), {}, &bad);
  ASSERT_TRUE(rows.ok());
  ItemCountIndex index;
  for (const ImportedEvent& row : *rows) index.Add(row.event);
  index.Seal();
  StoreOptions options;
  options.directory = Path("store");
  const absl::StatusOr<Store> store = OpenStore(options);
  ASSERT_TRUE(store.ok()) << store.status();
  for (size_t i = 0; i < rows->size(); i += 17) {
    const Event& event = (*rows)[i].event;
    const int64_t hour_us = 3'600'000'000 * (1 + static_cast<int64_t>(i % 3));
    const ItemCounts wanted = index.CountsBefore(event.item_id, event.time_us, hour_us);
    const auto found = store->history->CountsBefore("default", event.item_id, event.time_us, hour_us);
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->exposures, wanted.exposures);
    ASSERT_EQ(found->cells.size(), wanted.cells.size());
    for (size_t c = 0; c < wanted.cells.size(); ++c) ASSERT_EQ(found->cells[c].count, wanted.cells[c].count);
  }
}

TEST_F(Commands, BadRowsAreShownKeptAndCounted) {
  std::string text = "user,time_us,item_id\nu,1,2\n";
  for (int i = 0; i < 30; ++i) text += "u,never,2\n";
  text += "u,99999999999999999,2\nu,5,2\n";  // the first of these lies in the year 5138
  const std::string events = Write("events.csv", text);
  const Outcome refused = Run({"ingest", "--store", Path("store"), "--events", events, "--bad-rows", Path("bad.csv")});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("events.csv:3: time_us: 'never'"));
  EXPECT_THAT(refused.err, HasSubstr("events.csv:22:"));
  EXPECT_THAT(refused.err, Not(HasSubstr("events.csv:23:")));
  EXPECT_THAT(refused.err, HasSubstr("11 more bad rows not shown"));
  EXPECT_THAT(refused.out, HasSubstr("2 new"));
  const std::string kept = Content(Path("bad.csv"));
  EXPECT_EQ(std::count(kept.begin(), kept.end(), '\n'), 32);
  EXPECT_THAT(kept, HasSubstr(",33,"));
  EXPECT_THAT(kept, HasSubstr("rejected"));
  EXPECT_EQ(Run({"ingest", "--store", Path("store"), "--events", events, "--allow-bad", "31"}).code, 0);
  EXPECT_EQ(Run({"ingest", "--store", Path("store"), "--events", events, "--allow-bad", "30"}).code, 1);
}

TEST_F(Commands, ConflictsAreReportedAndTheFirstIsKept) {
  const std::string events = Write("events.csv", "user,event_id,time_us,item_id\nu,1,5,2\nu,1,5,3\n");
  const Outcome outcome = Run({"ingest", "--store", Path("store"), "--events", events});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("events.csv:3: conflict"));
  EXPECT_THAT(outcome.out, HasSubstr("1 new, 0 known, 1 conflicts"));
}

TEST_F(Commands, ExitCodesNameTheKindOfFailure) {
  const std::string events = Write("events.csv", "user,time_us,item_id\nu,1,2\n");
  const std::string model = Path("model.textproto");
  EXPECT_EQ(Run({"ingest", "--store", Path("store")}).code, 2);
  EXPECT_EQ(Run({"ingest", "--store", Path("store"), "--events", events, "--map", "nonsense"}).code, 2);
  EXPECT_EQ(Run({"ingest", "--store", Path("store"), "--events", Path("absent.csv")}).code, 1);
  EXPECT_FALSE(fs::exists(Path("store")));  // nothing was made before the files were found
  EXPECT_EQ(Run({"tokenize", "--model-config", model, "--out", Path("o")}).code, 2);
  EXPECT_EQ(
      Run({"tokenize", "--events", events, "--store", Path("s"), "--model-config", model, "--out", Path("o")}).code, 2);
  EXPECT_EQ(Run({"tokenize", "--store", Path("s"), "--model-config", model, "--out", Path("o")}).code, 1);
  const std::string broken = Write("broken.textproto", "name: \"x\" tokenizer { nonsense: 1 }");
  const Outcome config = Run({"tokenize", "--events", events, "--model-config", broken, "--out", Path("o")});
  EXPECT_EQ(config.code, 3);
  EXPECT_THAT(config.err, HasSubstr("nonsense"));
  EXPECT_EQ(Run({"synth", "--events-per-user", "0", "--out", Path("o")}).code, 2);
}

TEST_F(Commands, ShardsHoldWhatTheFormatPromises) {
  const std::string events = Write("events.csv",
                                   "user,kind,event_id,time_us,item_id,action,exposure_id,context.device\n"
                                   "b,exposure,1,1000000,7,,,phone\n"
                                   "b,action,2,2000000,7,click,1,\n"
                                   "b,exposure,3,4000000000,8,,,tv\n"
                                   "a,exposure,4,1000000,7,,,\n");
  const std::string model = Path("model.textproto");
  const Outcome outcome = Run({"tokenize", "--events", events, "--model-config", model, "--out", Path("o")});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto file = SafetensorsFile::Open(Path("o/tokens-00000-of-00001.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto i64 = [&](const char* name) { return *file->Read<int64_t>(name); };
  const auto i32 = [&](const char* name) { return *file->Read<int32_t>(name); };
  EXPECT_THAT(*file->Read<uint8_t>("users.id"), ElementsAre('a', 'b'));
  EXPECT_THAT(i64("f.offsets"), ElementsAre(0, 1, 3));
  EXPECT_THAT(i64("f.time_us"), ElementsAre(1'000'000, 1'000'000, 4'000'000'000));
  EXPECT_THAT(*file->Read<float>("f.label"), ElementsAre(0, 1, 0));
  EXPECT_THAT(i64("p0.offsets"), ElementsAre(0, 1, 3));
  EXPECT_THAT(i64("p1.offsets"), ElementsAre(0, 0, 1));
  EXPECT_THAT(i64("p1.event_id"), ElementsAre(1));
  EXPECT_THAT(i64("p1.closed_us"), ElementsAre(1'801'000'000));
  EXPECT_THAT(i32("p0.device.offsets"), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(i32("p0.device.ids")[1], i32("f.device.ids")[1]);  // one table, one id
  EXPECT_EQ(file->Find("f.dense")->shape, (std::vector<int64_t>{3, 3}));
  EXPECT_EQ(file->metadata().at("config"), kModel);
  // Point in time: as of 3,000 s the second exposure of b does not exist.
  ASSERT_EQ(
      Run({"tokenize", "--events", events, "--model-config", model, "--out", Path("o"), "--as-of", "3000000000"}).code,
      0);
  const auto earlier = SafetensorsFile::Open(Path("o/tokens-00000-of-00001.safetensors"));
  EXPECT_THAT(*earlier->Read<int64_t>("f.offsets"), ElementsAre(0, 1, 2));
  // As of 2,000 s the label window of the first is still open: no target, and hidden from history.
  ASSERT_EQ(
      Run({"tokenize", "--events", events, "--model-config", model, "--out", Path("o"), "--as-of", "1800000000"}).code,
      0);
  const auto open = SafetensorsFile::Open(Path("o/tokens-00000-of-00001.safetensors"));
  EXPECT_THAT(*open->Read<int64_t>("f.offsets"), ElementsAre(0, 0, 0));
  EXPECT_THAT(*open->Read<int64_t>("p0.offsets"), ElementsAre(0, 0, 0));
}

TEST_F(Commands, CasesBecomeTokens) {
  const std::string cases =
      Write("cases.jsonl", R"({"name":"one","user":"u","scene":"","now_us":5000000000,"events":[)"
                           R"({"kind":"exposure","event_id":1,"time_us":1000000,"item_id":7}],"items":[],)"
                           R"("counts":{},"features":{},"candidates":{"item_ids":[7,8,9]}})"
                           "\n");
  const Outcome outcome = Run(
      {"tokenize", "--cases", cases, "--model-config", Path("model.textproto"), "--out", Path("cases.safetensors")});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto file = SafetensorsFile::Open(Path("cases.safetensors"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->Find("case0.f.dense")->shape, (std::vector<int64_t>{3, 3}));
  EXPECT_THAT(*file->Read<int64_t>("case0.p0.time_us"), ElementsAre(1'000'000));
  EXPECT_EQ(file->Read<int32_t>("case0.f.item.ids")->at(0), file->Read<int32_t>("case0.p0.item.ids")->at(0));
}

}  // namespace
}  // namespace backstory
