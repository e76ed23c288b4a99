// A full disk: reads go on, writes say so, nothing acknowledged is lost, and writing resumes by itself (goal R11).
//
// Method: as root, a small tmpfs filled until ENOSPC. Elsewhere the same through an Env whose writes fail with "no
// space".
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "gmock/gmock.h"
#include "store/maintenance.h"
#include "tests/crash/failing_env.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

namespace fs = std::filesystem;

std::vector<Event> Batch(uint64_t n) {
  std::vector<Event> events;
  for (uint64_t i = 0; i < 200; ++i) {
    Event e = Exposure(n * 200 + i + 1, static_cast<int64_t>(n * 200 + i), i);
    e.context = {{"noise", std::to_string((n * 200 + i) * 0x9E3779B97F4A7C15u) +
                               std::string(60, static_cast<char>('a' + i % 26))}};
    events.push_back(e);
  }
  return events;
}

class TinyDisk {
 public:
  explicit TinyDisk(const std::string& path, const char* size) : path_(path) {
    fs::create_directories(path);
    mounted_ = mount("tmpfs", path.c_str(), "tmpfs", 0, size) == 0;
  }
  ~TinyDisk() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

// Appends until refused; returns acknowledged batches.
uint64_t FillUp(HistoryStore& store, uint64_t first, uint64_t limit) {
  for (uint64_t n = first; n < limit; ++n) {
    const auto result = store.Append({"shop", "ann"}, Batch(n), kNow, Durability::kSynced);
    if (!result.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(result.status())) << result.status();
      return n;
    }
  }
  return limit;
}

void CheckAll(HistoryStore& store, uint64_t batches) {
  const std::vector<Event> events = ReadEvents(store, {"shop", "ann"});
  ASSERT_GE(events.size(), batches * 200);
  for (uint64_t i = 0; i < batches * 200; ++i) ASSERT_EQ(events[i].event_id, i + 1);
}

// Waits for recovery, which RocksDB tries every few seconds; bounded by the test's timeout.
void AwaitRecovery(HistoryStore& store, uint64_t batch) {
  for (int tries = 0; tries < 300; ++tries) {
    if (store.Append({"shop", "ann"}, Batch(batch), kNow, Durability::kSynced).ok()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  FAIL() << "writes did not resume in 30 s: " << store.WriteHealth();
}

// With the reserve the store refuses in time; without, it finds out when the system says so, in the middle of a log, a
// table or a file list.
class DiskFull : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(Reserve, DiskFull, testing::Values(0, size_t{2} << 20),
                         [](const auto& param) { return param.param == 0 ? "None" : "Some"; });

TEST_P(DiskFull, OnATinyFileSystem) {
  TempDir dir;
  TinyDisk disk(dir / "disk", "size=20m");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a tmpfs: " << std::strerror(errno);
  const std::string ballast = dir / "disk/ballast";
  std::ofstream(ballast, std::ios::binary) << std::string(size_t{10} << 20, 'b');
  StoreOptions options;
  options.directory = dir / "disk/store";
  options.write_buffer_bytes = size_t{1} << 20;
  options.reserve_bytes = GetParam();
  uint64_t acked = 0;
  {
    auto store = MustOpen(options);
    acked = FillUp(*store, 0, 100'000);
    ASSERT_LT(acked, 100'000u) << "the disk never filled";
    ASSERT_GT(acked, 10u);
    CheckAll(*store, acked);
    fs::remove(ballast);
    AwaitRecovery(*store, acked);
    CheckAll(*store, acked + 1);
  }
  auto store = MustOpen(options);
  CheckAll(*store, acked + 1);
  store.reset();
  EXPECT_THAT(VerifyStore(options.directory)->problems, testing::IsEmpty());
}

TEST_P(DiskFull, ThroughTheFileSystemInterface) {
  TempDir dir;
  FailingEnv env;
  StoreOptions options;
  options.directory = dir / "store";
  options.write_buffer_bytes = size_t{256} << 10;
  options.reserve_bytes = GetParam();
  uint64_t acked = 0;
  {
    auto opened = OpenStoreWithEnv(options, env.env());
    ASSERT_TRUE(opened.ok()) << opened.status();
    HistoryStore& store = *opened->history;
    acked = FillUp(store, 0, 20);
    ASSERT_EQ(acked, 20u);
    env.NoSpace(true);
    EXPECT_EQ(FillUp(store, acked, acked + 5), acked);
    CheckAll(store, acked);
    EXPECT_FALSE(FillUp(store, acked, acked + 1) > acked);
    env.NoSpace(false);
    AwaitRecovery(store, acked);
    CheckAll(store, acked + 1);
    // A flush that failed before there was space may be noticed only now, and is then recovered from as well.
    for (int tries = 0; tries < 300 && !store.WriteHealth().ok(); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    EXPECT_TRUE(store.WriteHealth().ok()) << store.WriteHealth();
    AwaitRecovery(store, acked + 1);
  }
  auto store = MustOpen(options);
  CheckAll(*store, acked + 1);
}

}  // namespace
}  // namespace backstory
