// Logs whose writes fail, at the file system under RocksDB (goal R11, R12): a log never fails towards RocksDB, is never
// said to be durable while it is not, and loses no byte however often writing or syncing it failed.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "store/log_file_system.h"
#include "store/maintenance.h"
#include "tests/crash/failing_env.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

using rocksdb::IOOptions;

std::string Contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

struct Logs {
  Logs(const FailingEnv* env, const TempDir& dir) : system(env->file_system(), dir / "", 0) {}
  std::unique_ptr<rocksdb::FSWritableFile> Open(const std::string& path) {
    std::unique_ptr<rocksdb::FSWritableFile> file;
    EXPECT_TRUE(system.NewWritableFile(path, rocksdb::FileOptions(), &file, nullptr).ok());
    return file;
  }
  LogFileSystem system;
};

TEST(LogFileSystem, KeepsWhatTheDiskDoesNotTakeAndWritesItLater) {
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  auto log = logs.Open(dir / "000007.log");
  ASSERT_TRUE(log->Append("first.", IOOptions(), nullptr).ok());
  ASSERT_TRUE(logs.system.SyncLogs().ok());
  env.NoSpace(true);
  ASSERT_TRUE(log->Append("second.", IOOptions(), nullptr).ok()) << "RocksDB never sees a log fail";
  ASSERT_TRUE(log->Append("third.", IOOptions(), nullptr).ok());
  ASSERT_TRUE(log->Sync(IOOptions(), nullptr).ok());
  EXPECT_TRUE(logs.system.LogHealth().IsNoSpace());
  EXPECT_TRUE(logs.system.SyncLogs().IsNoSpace()) << "but nobody is told that it is durable";
  EXPECT_EQ(log->GetFileSize(IOOptions(), nullptr), 19u);
  EXPECT_EQ(Contents(dir / "000007.log"), "first.");
  env.NoSpace(false);
  EXPECT_TRUE(logs.system.SyncLogs().ok());
  EXPECT_TRUE(logs.system.LogHealth().ok());
  EXPECT_EQ(Contents(dir / "000007.log"), "first.second.third.");
}

// A checkpoint copies the live log, under the same number, into a folder of its own; a failed one is deleted again.
TEST(LogFileSystem, ACheckpointsCopyOfALogIsNotTheLog) {
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  auto log = logs.Open(dir / "000007.log");
  ASSERT_TRUE(log->Append("first.", IOOptions(), nullptr).ok());
  std::filesystem::create_directory(dir / "copy.partial.tmp");
  auto copy = logs.Open(dir / "copy.partial.tmp/000007.log");
  ASSERT_TRUE(copy->Append("first.", IOOptions(), nullptr).ok());
  ASSERT_TRUE(copy->Sync(IOOptions(), nullptr).ok());
  ASSERT_TRUE(copy->Close(IOOptions(), nullptr).ok());
  ASSERT_TRUE(logs.system.DeleteFile(dir / "copy.partial.tmp/000007.log", IOOptions(), nullptr).ok());
  EXPECT_TRUE(logs.system.SyncLogs().ok());
  EXPECT_EQ(Contents(dir / "000007.log"), "first.");
  env.NoSpace(true);
  ASSERT_TRUE(log->Append("second.", IOOptions(), nullptr).ok());
  EXPECT_TRUE(logs.system.SyncLogs().IsNoSpace()) << "the log is still known";
  std::unique_ptr<rocksdb::FSWritableFile> other;
  EXPECT_TRUE(logs.system.NewWritableFile(dir / "copy.partial.tmp/000008.log", rocksdb::FileOptions(), &other, nullptr)
                  .IsNoSpace())
      << "a copy may fail, and says so";
}

TEST(LogFileSystem, KnowsItsLogsHoweverTheDirectoryIsNamed) {
  TempDir dir;
  std::filesystem::create_directory(dir / "store");
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(dir / "store");
  for (const std::string& name : {std::string("."), std::string("./"), std::string(".."), std::string("../store"),
                                  dir / "store//", dir / "store/.."}) {
    FailingEnv env;
    LogFileSystem system(env.file_system(), name, 0);
    std::unique_ptr<rocksdb::FSWritableFile> log;
    ASSERT_TRUE(system.NewWritableFile(name + "/000007.log", rocksdb::FileOptions(), &log, nullptr).ok());
    env.NoSpace(true);
    EXPECT_TRUE(log->Append("first.", IOOptions(), nullptr).ok()) << name;
    EXPECT_TRUE(system.SyncLogs().IsNoSpace()) << name;
  }
  std::filesystem::current_path(before);
}

TEST(LogFileSystem, ALogThatCannotBeMadeIsMadeLater) {
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  env.NoSpace(true);
  auto log = logs.Open(dir / "000007.log");
  ASSERT_TRUE(log->Append("all of it", IOOptions(), nullptr).ok());
  EXPECT_FALSE(logs.system.SyncLogs().ok());
  log.reset();  // RocksDB closes it: still not forgotten
  EXPECT_FALSE(logs.system.LogHealth().ok());
  env.NoSpace(false);
  EXPECT_TRUE(logs.system.SyncLogs().ok());
  EXPECT_EQ(Contents(dir / "000007.log"), "all of it");
}

TEST(LogFileSystem, AfterAFailedSyncEveryUnsyncedByteIsWrittenAgain) {
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  auto log = logs.Open(dir / "000007.log");
  ASSERT_TRUE(log->Append("kept by the system?", IOOptions(), nullptr).ok());
  env.FailAt(1, false);
  ASSERT_FALSE(logs.system.SyncLogs().ok());
  // The system may have dropped the pages: as if it did.
  std::filesystem::resize_file(dir / "000007.log", 0);
  EXPECT_TRUE(logs.system.SyncLogs().ok());
  EXPECT_EQ(Contents(dir / "000007.log"), "kept by the system?");
}

TEST(LogFileSystem, TablesAreNotDurableBeforeClosedLogs) {
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  auto closed = logs.Open(dir / "000007.log");
  env.NoSpace(true);
  ASSERT_TRUE(closed->Append("half a commit", IOOptions(), nullptr).ok());
  env.NoSpace(false);
  auto open = logs.Open(dir / "000009.log");
  std::unique_ptr<rocksdb::FSWritableFile> table;
  ASSERT_TRUE(logs.system.NewWritableFile(dir / "000010.sst", rocksdb::FileOptions(), &table, nullptr).ok());
  ASSERT_TRUE(table->Append("rows", IOOptions(), nullptr).ok());
  env.NoSpace(true);
  EXPECT_TRUE(table->Sync(IOOptions(), nullptr).IsNoSpace());
  env.NoSpace(false);
  EXPECT_TRUE(table->Sync(IOOptions(), nullptr).ok());
  EXPECT_EQ(Contents(dir / "000007.log"), "half a commit") << "the table's sync finished the log first";
}

TEST(LogFileSystem, RandomFailuresLoseNoByte) {
  std::mt19937_64 random(TestSeed());
  TempDir dir;
  FailingEnv env;
  Logs logs(&env, dir);
  auto log = logs.Open(dir / "000007.log");
  std::string all, durable;
  for (int i = 0; i < 2'000; ++i) {
    if (random() % 3 == 0) env.FailAt(static_cast<int64_t>(random() % 5), random() % 2 == 0);
    const std::string bytes(random() % 200, static_cast<char>('a' + i % 26));
    ASSERT_TRUE(log->Append(bytes, IOOptions(), nullptr).ok());
    all += bytes;
    if (random() % 4 == 0 && logs.system.SyncLogs().ok()) durable = all;
    ASSERT_TRUE(Contents(dir / "000007.log").starts_with(durable));
  }
  env.FailAt(0, false);
  ASSERT_TRUE(logs.system.SyncLogs().ok());
  EXPECT_EQ(Contents(dir / "000007.log"), all);
}

std::vector<Event> Batch(uint64_t n, uint64_t rows) {
  std::vector<Event> events;
  for (uint64_t i = 0; i < rows; ++i) {
    events.push_back(Exposure(n << 16 | (i + 1), static_cast<int64_t>(n * 1'000 + i), (n * 31 + i) % 97));
  }
  return events;
}

// The disk comes and goes at random moments while several clients write, flushes and compactions run and the log is
// synced in the background: the process lives, every status is one a client can act on, writing resumes, and nothing
// acknowledged is missing, then and after reopening.
class FullDisk : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Reserve, FullDisk, testing::Values(0, size_t{2} << 20),
                         [](const auto& param) { return param.param == 0 ? "None" : "Some"; });

TEST_P(FullDisk, ComesAndGoesUnderLoad) {
  const uint64_t seed = TestSeed();
  std::mt19937_64 random(seed);
  constexpr int kClients = 3;
  constexpr int kRounds = 12;
  TempDir dir;
  StoreOptions options;
  options.directory = dir / "store";
  options.write_buffer_bytes = size_t{128} << 10;
  options.reserve_bytes = GetParam();
  options.wal_flush_interval = std::chrono::milliseconds(2);
  std::vector<std::vector<uint64_t>> acked(kClients);
  std::atomic<uint64_t> refused{0};
  FailingEnv env;
  {
    auto opened = OpenStoreWithEnv(options, env.env());
    ASSERT_TRUE(opened.ok()) << opened.status();
    HistoryStore& store = *opened->history;
    std::atomic<bool> stop{false};
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] {
        for (uint64_t n = 0; !stop; ++n) {
          const Durability how = n % 2 == 0 ? Durability::kSynced : Durability::kBuffered;
          const auto done = store.Append({"shop", Numbered("client", c)}, Batch(n, 60), kNow, how);
          if (done.ok()) acked[static_cast<size_t>(c)].push_back(n);
          if (done.ok()) continue;
          ++refused;
          EXPECT_TRUE(absl::IsResourceExhausted(done.status())) << done.status();
        }
      });
    }
    std::thread compactor([&] {
      while (!stop) {
        if (absl::Status status = store.Compact(); !status.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
          std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
      }
    });
    for (int round = 0; round < kRounds; ++round) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 100'000));
      env.NoSpace(true);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
      for (int c = 0; c < kClients; ++c) EXPECT_TRUE(store.Head({"shop", Numbered("client", c)}).ok());
      env.NoSpace(false);
    }
    stop = true;
    for (std::thread& client : clients) client.join();
    compactor.join();
    absl::Status resumed;
    for (int tries = 0; tries < 300; ++tries) {  // RocksDB tries every few seconds
      resumed = store.Append({"shop", "after"}, Batch(1, 10), kNow, Durability::kSynced).status();
      if (resumed.ok()) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    ASSERT_TRUE(resumed.ok()) << resumed << ", seed " << seed;
  }
  auto store = MustOpen(options);
  uint64_t count = 0;
  for (int c = 0; c < kClients; ++c) {
    std::vector<uint64_t> ids;
    for (const Event& e : ReadEvents(*store, {"shop", Numbered("client", c)})) ids.push_back(e.event_id);
    std::sort(ids.begin(), ids.end());
    for (const uint64_t n : acked[static_cast<size_t>(c)]) {
      ++count;
      for (const Event& e : Batch(n, 60)) {
        ASSERT_TRUE(std::binary_search(ids.begin(), ids.end(), e.event_id)) << "seed " << seed;
      }
    }
  }
  store.reset();
  EXPECT_THAT(VerifyStore(options.directory)->problems, testing::IsEmpty()) << "seed " << seed;
  std::printf("%llu batches acknowledged, %llu refused, 0 lost\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(refused.load()));
  EXPECT_GT(count, 0u);
  EXPECT_GT(refused, 0u);
}

}  // namespace
}  // namespace backstory
