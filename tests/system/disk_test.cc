// The real server on a full disk (R11): reads go on, writes are refused, and once space is back so are writes, alone.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr int64_t kStart = 1'600'000'000'000'000;

std::vector<v1::Event> Events(size_t n, uint64_t first_id, int64_t time_us) {
  std::vector<v1::Event> events;
  for (size_t i = 0; i < n; ++i) events.push_back(Exposure(first_id + i, time_us + static_cast<int64_t>(i), i % 97 + 1));
  return events;
}

TEST(Disk, AFullDiskRefusesWritesKeepsReadsAndRecovers) {
  if (geteuid() != 0) GTEST_SKIP() << "a size-limited tmpfs needs root";
  ScratchDir scratch;
  const std::filesystem::path disk = scratch.path() / "disk";
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=512m") != 0) GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  struct Unmount {
    std::filesystem::path path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } unmount{disk};
  ServerProcess server({.store = disk / "store", .models = {}, .arguments = {"--create-store"}, .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  SystemClient client(server.Connect());
  // RocksDB waits until a whole write buffer has room before it resumes, so the space that comes back is ample.
  std::ofstream(disk / "ballast") << std::string(size_t{490} << 20, 'x');

  uint64_t next = 1, acked = 0;
  grpc::Status refused;
  for (int batch = 0; batch < 5'000 && refused.ok(); ++batch) {
    auto [status, response] = client.Append("full", Events(2'000, next, kStart + int64_t(next)));
    if (status.ok()) acked += response.accepted();
    if (!status.ok()) refused = status;
    next += 2'000;
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << refused.error_message();
  const auto [read, while_full] = client.Get("full");
  EXPECT_TRUE(read.ok()) << read.error_message();
  EXPECT_EQ(uint64_t(while_full.events_size()), std::min<uint64_t>(acked, 100'000));

  std::filesystem::remove(disk / "ballast");
  bool recovered = false;  // alone, without a restart: bounded by calls, each of which waits for the store's own retry
  for (int attempt = 0; attempt < 300 && !recovered; ++attempt) {
    recovered = client.Append("after", Events(1, 1 + uint64_t(attempt), kStart)).first.ok();
    if (!recovered) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_TRUE(recovered) << server.log();
  server.Kill();
  ASSERT_TRUE(server.Start()) << server.log();
  EXPECT_EQ(uint64_t(SystemClient(server.Connect()).Get("full").second.events_size()), std::min<uint64_t>(acked, 100'000))
      << "nothing acknowledged was lost on reopening";
}

}  // namespace
}  // namespace backstory
