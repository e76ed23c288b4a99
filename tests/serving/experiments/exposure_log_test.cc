#include "serving/engine/experiments/exposure_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "tests/serving/experiments/failing_directory.h"

namespace backstory {
namespace {

using testing::HasSubstr;
using testing::Not;

ExposureRecord Record(uint64_t id) {
  ExposureRecord record;
  record.ns = "shop";
  record.scene = "home";
  record.units = {"ann", "phone", ""};
  record.request_id = 42;
  record.now_us = 1'700'000'000'000'000;
  record.config_version = "v1";
  record.exposures = {{"length", "longer", "treatment", "user", kReasonAssigned},
                      {"model", "swap", "new", "device", kReasonOverride}};
  record.id = id;
  record.model = "grab";
  record.version = "7";
  return record;
}

std::vector<nlohmann::json> Lines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

class ExposureLogTest : public testing::Test {
 protected:
  std::unique_ptr<ExposureLog> Open(size_t queue = 1000) {
    ExposureLogOptions options;
    options.key = "key";
    options.queue_records_max = queue;
    options.retry_interval_us = 1000;
    options.on_health = [this](const absl::Status& status) {
      const std::lock_guard<std::mutex> lock(mutex_);
      health_.push_back(status.code());
    };
    auto log = ExposureLog::Open(options, &directory_, &clock_, &metrics_);
    EXPECT_TRUE(log.ok()) << log.status();
    return *std::move(log);
  }
  std::vector<absl::StatusCode> health() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return health_;
  }

  FailingDirectory directory_;
  ManualClock clock_{5'000'000};
  MemoryMetrics metrics_;
  std::mutex mutex_;
  std::vector<absl::StatusCode> health_;
};

TEST_F(ExposureLogTest, WritesOneLineForEachExposureAndOneForTheEnd) {
  const auto log = Open();
  log->Write(Record(9));
  log->Finish({9, "UNAVAILABLE", "grab", "7", {{"history_rows", "800", "experiment"}}, 2});
  ASSERT_TRUE(log->Flush().ok());
  const auto lines = Lines(directory_.all());
  ASSERT_EQ(lines.size(), 3u);
  const nlohmann::json expected = {{"type", "exposure"},
                                   {"run", lines[0]["run"]},
                                   {"id", 9},
                                   {"time_us", 1'700'000'000'000'000},
                                   {"namespace", "shop"},
                                   {"scene", "home"},
                                   {"layer", "length"},
                                   {"experiment", "longer"},
                                   {"arm", "treatment"},
                                   {"unit", "user"},
                                   {"unit_hash", UnitHash("key", "user", "ann")},
                                   {"reason", "assigned"},
                                   {"config_version", "v1"},
                                   {"model", "grab"},
                                   {"version", "7"},
                                   {"request_id", "42"}};
  EXPECT_EQ(lines[0], expected);
  EXPECT_EQ(lines[1]["unit_hash"], UnitHash("key", "device", "phone"));
  EXPECT_EQ(lines[1]["reason"], "override");
  EXPECT_EQ(lines[2]["type"], "final");
  EXPECT_EQ(lines[2]["id"], 9);
  EXPECT_EQ(lines[2]["status"], "UNAVAILABLE");
  EXPECT_EQ(lines[2]["degrade_step"], 2);
  EXPECT_EQ(lines[2]["parameters"]["history_rows"], "800");
  EXPECT_EQ(lines[2]["run"], lines[0]["run"]);
  EXPECT_THAT(directory_.all(), Not(HasSubstr("ann"))) << "no raw id";
  EXPECT_EQ(directory_.synced_bytes(), directory_.all().size()) << "Flush means on disk";
  EXPECT_EQ(metrics_.Value("backstory_exposure_log_records_total"), 3);
}

TEST_F(ExposureLogTest, TheHashIsKeyedAndOfTheUnit) {
  // echo -n user/ann | openssl dgst -sha256 -hmac key
  EXPECT_EQ(UnitHash("key", "user", "ann").size(), 16u);
  std::set<std::string> hashes = {UnitHash("key", "user", "ann"), UnitHash("key", "device", "ann"),
                                  UnitHash("other", "user", "ann"), UnitHash("key", "user", "bob")};
  EXPECT_EQ(hashes.size(), 4u);
  EXPECT_EQ(UnitHash("key", "user", "ann"), "a8e9e69463a3fecf");
}

TEST_F(ExposureLogTest, CountsArmsWithoutOverrides) {
  const auto log = Open();
  log->Write(Record(1));
  log->Write(Record(2));
  EXPECT_EQ(log->Counts(), (std::map<ExposureLog::ArmKey, uint64_t>{{{"length", "longer", "treatment"}, 2}}));
}

// A full disk: what does not fit the queue is dropped and counted, everything else is written when the disk has room
// again, in order, and the log itself says how much is missing.
TEST_F(ExposureLogTest, SurvivesAFullDisk) {
  const auto log = Open(10);
  log->Write(Record(1));
  ASSERT_TRUE(log->Flush().ok());
  directory_.FailAfterBytes(100);
  log->Write(Record(2));
  EXPECT_EQ(log->Flush().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(metrics_.Value("backstory_exposure_log_failing"), 1);
  EXPECT_GE(metrics_.Value("backstory_exposure_log_write_errors_total"), 1);
  for (uint64_t id = 3; id < 20; ++id) log->Write(Record(id));
  EXPECT_EQ(log->dropped(), 7u) << "17 written while record 2 is pending: 10 wait";
  EXPECT_EQ(metrics_.Value("backstory_exposure_log_dropped_total"), 7);
  EXPECT_EQ(Lines(directory_.all()).size(), 2u) << "no half line is left";
  directory_.Heal();
  ASSERT_TRUE(log->Flush().ok());
  std::vector<int> ids;
  int told = 0;
  for (const auto& line : Lines(directory_.all())) {
    if (line["type"] == "dropped") told += line["records"].get<int>();
    if (line["type"] == "exposure" && line["unit"] == "user") ids.push_back(line["id"]);
  }
  EXPECT_EQ(ids, (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
  EXPECT_EQ(told, 7);
  EXPECT_EQ(metrics_.Value("backstory_exposure_log_failing"), 0);
  EXPECT_EQ(health(), (std::vector<absl::StatusCode>{absl::StatusCode::kResourceExhausted, absl::StatusCode::kOk}));
}

TEST_F(ExposureLogTest, RecoversByItself) {
  const auto log = Open();
  directory_.FailAfterBytes(0);
  log->Write(Record(1));
  EXPECT_FALSE(log->Flush().ok());
  directory_.Heal();
  while (metrics_.Value("backstory_exposure_log_records_total") < 2)
    std::this_thread::yield();  // ctest's limit ends it
  EXPECT_EQ(Lines(directory_.all()).size(), 2u);
}

TEST_F(ExposureLogTest, WritesWhatWaitsWhenItEnds) {
  auto log = Open();
  for (uint64_t id = 1; id <= 500; ++id) log->Write(Record(id));
  log.reset();
  EXPECT_EQ(Lines(directory_.all()).size(), 1000u);
  EXPECT_EQ(directory_.synced_bytes(), directory_.all().size());
}

TEST_F(ExposureLogTest, TakesRecordsFromManyThreads) {
  const auto log = Open(1 << 20);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t n = 0; n < 250; ++n) log->Write(Record(t * 1000 + n));
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(log->Flush().ok());
  std::set<int> ids;
  for (const auto& line : Lines(directory_.all())) ids.insert(line["id"].get<int>());
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_EQ(log->dropped(), 0u);
}

TEST_F(ExposureLogTest, RefusesAKeyItCannotUse) {
  EXPECT_EQ(ExposureLog::Open({}, &directory_, &clock_, &metrics_).status().code(), absl::StatusCode::kInvalidArgument);
}

// A sync costs the writer's thread milliseconds: one for whoever asked, else one each interval.
TEST_F(ExposureLogTest, AFlushDoesNotMakeEveryLaterBatchASync) {
  const auto log = Open();
  log->Write(Record(1));
  ASSERT_TRUE(log->Flush().ok());
  const uint64_t synced = directory_.synced_bytes();
  EXPECT_EQ(synced, directory_.all().size());
  for (uint64_t id = 2; id <= 4; ++id) {  // when one is written, what followed the write before it has happened
    const size_t before = directory_.all().size();
    log->Write(Record(id));
    while (directory_.all().size() == before) std::this_thread::yield();
  }
  EXPECT_EQ(directory_.synced_bytes(), synced) << "the clock stands still";
  ASSERT_TRUE(log->Flush().ok());
  EXPECT_EQ(directory_.synced_bytes(), directory_.all().size());
}

}  // namespace
}  // namespace backstory
