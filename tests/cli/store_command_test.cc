// `backstory store ...` from arguments to exit code and output.
#include "serving/cli/store_command.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "CLI/CLI.hpp"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

using testing::HasSubstr;

class StoreCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    StoreOptions options;
    options.directory = store_;
    auto store = OpenStore(options);
    ASSERT_TRUE(store.ok()) << store.status();
    for (const char* user : {"ann", "bob"}) {
      MustAppend(*store->history, {"shop", user}, {Rating(1, 5, 7, 4.5f), Exposure(2, 9)});
    }
    Item item;
    item.item_id = 7;
    item.title = "Seven";
    ASSERT_TRUE(store->catalog->Upsert("shop", {&item, 1}).ok());
  }

  // Exit code; what it printed on stdout is in out_.
  int Run(std::vector<std::string> args) {
    CLI::App app;
    AddStoreCommand(app);
    std::reverse(args.begin(), args.end());
    args.push_back("store");
    testing::internal::CaptureStdout();
    int code = kExitOk;
    try {
      app.parse(args);
    } catch (const CLI::RuntimeError& error) {
      code = error.get_exit_code();
    } catch (const CLI::ParseError&) {
      code = kExitUsage;
    }
    std::fflush(stdout);
    out_ = testing::internal::GetCapturedStdout();
    return code;
  }
  std::vector<std::string> Lines(const std::string& path) {
    std::ifstream in(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }

  TempDir dir_;
  const std::string store_ = dir_ / "store";
  std::string out_;
};

TEST_F(StoreCommandTest, VerifyAndStats) {
  EXPECT_EQ(Run({"verify", "--store", store_}), kExitOk);
  EXPECT_THAT(out_, HasSubstr("2 users, 4 events, 1 items"));
  EXPECT_EQ(Run({"stats", "--store", store_, "--json"}), kExitOk);
  EXPECT_EQ(nlohmann::json::parse(out_)["events"], 4);
  EXPECT_EQ(Run({"verify", "--store", dir_ / "nowhere"}), kExitFailed);
  EXPECT_EQ(Run({"verify"}), kExitUsage);
}

TEST_F(StoreCommandTest, DamageIsExitCode4AndABackupRepairsIt) {
  EXPECT_EQ(Run({"checkpoint", "--store", store_, "--out", dir_ / "backup"}), kExitOk);
  std::filesystem::remove(store_ + "/CURRENT");
  EXPECT_EQ(Run({"verify", "--store", store_, "--json"}), kExitDamaged);
  EXPECT_THAT(out_, HasSubstr("CURRENT"));
  EXPECT_EQ(Run({"stats", "--store", store_}), kExitDamaged);
  EXPECT_EQ(Run({"repair", "--store", store_, "--from-backup", dir_ / "backup", "--json"}), kExitOk);
  EXPECT_EQ(nlohmann::json::parse(out_)["events"], 4);
  EXPECT_EQ(Run({"verify", "--store", store_}), kExitOk);
}

TEST_F(StoreCommandTest, ExportWritesTheImportFormat) {
  const std::string events = dir_ / "events.jsonl", items = dir_ / "items.jsonl";
  EXPECT_EQ(Run({"export", "--store", store_, "--namespace", "shop", "--events", events, "--items", items}), kExitOk);
  ASSERT_EQ(Lines(events).size(), 4u);
  EXPECT_THAT(Lines(events)[0], HasSubstr("\"user\""));
  EXPECT_THAT(Lines(items), testing::ElementsAre(HasSubstr("Seven")));
  EXPECT_EQ(Run({"export", "--store", store_}), kExitUsage);
}

TEST_F(StoreCommandTest, SlotsMove) {
  const std::string slot = std::to_string(SlotOf("ann")), file = dir_ / "slot";
  EXPECT_EQ(Run({"export", "--store", store_, "--slot", slot, "--out", file}), kExitOk);
  MustOpen(dir_ / "other").reset();
  EXPECT_EQ(Run({"import", "--store", dir_ / "other", "--slot", slot, "--in", file}), kExitOk);
  EXPECT_EQ(ReadEvents(*MustOpen(dir_ / "other"), {"shop", "ann"}).size(), 2u);
}

TEST_F(StoreCommandTest, DeleteUser) {
  EXPECT_EQ(Run({"delete-user", "--store", store_, "--namespace", "shop", "--user", "ann", "--compact"}), kExitOk);
  EXPECT_EQ(Run({"compact", "--store", store_}), kExitOk);
  EXPECT_EQ(Run({"verify", "--store", store_}), kExitOk);
  EXPECT_THAT(out_, HasSubstr("1 users, 2 events"));
}

}  // namespace
}  // namespace backstory
