// The real server whose exposure log lies on a full disk: requests are answered all the same, what is lost is counted,
// one log line names the cause, and logging resumes by itself once there is room.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/system/client.h"
#include "tests/system/server_process.h"

namespace backstory {
namespace {

constexpr char kConfig[] = R"(hash_version: 1
domain {
  name: "main"
  buckets { first: 0 count: 10000 }
  layer {
    name: "length"
    parameter: "history_rows"
    experiment {
      name: "short"
      state: RUNNING
      buckets { first: 0 count: 10000 }
      ramp: 10000
      arm { name: "control" weight: 5000 }
      arm { name: "short" weight: 5000 parameters { name: "history_rows" value: "16" } }
    }
  }
}
)";

double MetricValue(const std::string& scrape, const std::string& series) {
  const size_t at = scrape.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(scrape.substr(at + series.size() + 2));
}

size_t Count(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

// Every byte there is, in ever smaller pieces.
void FillUp(const std::filesystem::path& file) {
  std::ofstream out(file, std::ios::binary);
  for (size_t piece = 1 << 20; piece >= 1; piece /= 4) {
    const std::string bytes(piece, 'x');
    while (out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush()) {
    }
    out.clear();
  }
}

struct Lines {
  uint64_t exposures = 0, finals = 0, told_dropped = 0, broken = 0;
};

Lines ReadLines(const std::filesystem::path& directory) {
  Lines lines;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::ifstream file(entry.path());
    for (std::string text; std::getline(file, text);) {
      const auto line = nlohmann::json::parse(text, nullptr, false);
      if (line.is_discarded()) {
        ++lines.broken;
      } else if (line["type"] == "exposure") {
        ++lines.exposures;
      } else if (line["type"] == "final") {
        ++lines.finals;
      } else if (line["type"] == "dropped") {
        lines.told_dropped += line["records"].get<uint64_t>();
      }
    }
  }
  return lines;
}

TEST(ExposureDisk, AFullDiskStopsTheLogAndNothingElse) {
  if (geteuid() != 0) GTEST_SKIP() << "a size-limited tmpfs needs root";
  ScratchDir scratch;
  const std::filesystem::path disk = scratch.path() / "disk";
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=4m") != 0) GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  struct Unmount {
    std::filesystem::path path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } unmount{disk};
  std::ofstream(scratch.path() / "experiments.textproto") << kConfig;
  std::ofstream(scratch.path() / "key") << "a key of the test\n";
  std::ofstream(scratch.path() / "server.textproto")
      << "experiments { file: \"" << (scratch.path() / "experiments.textproto").string() << "\" exposure_dir: \""
      << (disk / "exposures").string() << "\" unit_key_file: \"" << (scratch.path() / "key").string()
      << "\" queue_records_max: 100 }\n";
  ServerProcess server({.store = scratch.path() / "store",
                        .models = {},
                        .arguments = {"--create-store", "--config", (scratch.path() / "server.textproto").string()},
                        .environment = {}});
  ASSERT_TRUE(server.Start()) << server.log();
  SystemClient client(server.Connect());
  uint64_t ranked = 0;
  const auto rank = [&] {
    const auto [status, response] =
        client.Rank("user-" + std::to_string(ranked++ % 50), 1'700'000'000'000'000, {1, 2, 3});
    EXPECT_TRUE(status.ok()) << "request " << ranked << ": " << status.error_message();
    EXPECT_EQ(response.exposures_size(), 1);
  };
  const auto await = [&](const std::string& series, double at_least) {  // ctest's limit ends it
    while (MetricValue(server.Scrape(), series) < at_least) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  for (int i = 0; i < 20; ++i) rank();
  await("backstory_exposure_log_records_total", 40);

  FillUp(disk / "ballast");
  for (int i = 0; MetricValue(server.Scrape(), "backstory_exposure_log_dropped_total") < 50; ++i) {
    ASSERT_LT(i, 20'000) << server.log();
    for (int k = 0; k < 20; ++k) rank();
  }
  const std::string full = server.Scrape();
  EXPECT_EQ(MetricValue(full, "backstory_exposure_log_failing"), 1);
  EXPECT_GE(MetricValue(full, "backstory_exposure_log_write_errors_total"), 1);
  EXPECT_EQ(Count(server.log(), "\"exposure log failing\""), 1u) << "told once, however often it is tried";
  EXPECT_NE(server.log().find("No space left on device"), std::string::npos) << server.log();
  EXPECT_EQ(ReadLines(disk / "exposures").broken, 0u) << "no half line is left";

  std::filesystem::remove(disk / "ballast");
  while (MetricValue(server.Scrape(), "backstory_exposure_log_failing") != 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  const double before = MetricValue(server.Scrape(), "backstory_exposure_log_records_total");
  for (int i = 0; i < 20; ++i) rank();
  await("backstory_exposure_log_records_total", before + 40);
  EXPECT_EQ(Count(server.log(), "\"exposure log works again\""), 1u);
  const auto dropped = static_cast<uint64_t>(MetricValue(server.Scrape(), "backstory_exposure_log_dropped_total"));
  server.Signal(SIGTERM);
  const ExitState end = server.Wait();
  EXPECT_TRUE(end.exited && end.code == 0) << server.log();

  const Lines lines = ReadLines(disk / "exposures");
  EXPECT_EQ(lines.broken, 0u);
  EXPECT_EQ(lines.told_dropped, dropped) << "the log itself says how much is missing";
  EXPECT_EQ(lines.exposures + lines.finals + dropped, 2 * ranked) << "every record is there or counted";
  std::printf("%llu requests answered, %llu records dropped and told\n", static_cast<unsigned long long>(ranked),
              static_cast<unsigned long long>(dropped));
}

}  // namespace
}  // namespace backstory
