#include "serving/engine/experiments/log_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "serving/engine/experiments/exposure_log.h"

namespace backstory {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string WriteFile(const std::string& name, const std::string& content) {
  const std::string directory = testing::TempDir() + "/log_reader_test";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/" + name, std::ios::binary) << content;
  return directory + "/" + name;
}

constexpr char kExposure[] =
    R"({"type":"exposure","id":1,"time_us":5,"layer":"l","experiment":"e","arm":"a","unit":"user","unit_hash":"h","reason":"assigned"})";

TEST(LogReader, CountsWhatItCannotRead) {
  const std::string path = WriteFile(
      "exposures-1.jsonl", std::string(kExposure) + "\n" + R"({"type":"final","id":1})" + "\n" +
                               R"({"type":"dropped","records":3})" + "\n" + "not json\n" + R"({"type":"what"})" + "\n\n" +
                               R"({"type":"exposure"})" + "\n" + std::string(kExposure).substr(0, 40));
  std::vector<LoggedExposure> seen;
  ReadReport report;
  ASSERT_TRUE(ReadExposures({path}, [&](LoggedExposure e) { seen.push_back(std::move(e)); }, &report).ok());
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].arm, "a");
  EXPECT_EQ(seen[0].time_us, 5);
  EXPECT_EQ(report.lines, 3u);
  EXPECT_EQ(report.dropped, 3u);
  EXPECT_EQ(report.bad, 3u);
  EXPECT_EQ(report.torn, 1u) << "a process that died while writing is not a bad line";
  EXPECT_THAT(report.problems, ElementsAre(HasSubstr("exposures-1.jsonl:4: "), HasSubstr(":5: unknown type \"what\""),
                                           HasSubstr(":7: ")));
}

TEST(LogReader, ReadsADirectoryInOrder) {
  const std::string directory = testing::TempDir() + "/log_reader_dir";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  EXPECT_EQ(ReadExposures({directory}, [](LoggedExposure) {}, nullptr).code(), absl::StatusCode::kNotFound);
  for (const char* name : {"exposures-b.jsonl", "exposures-a.jsonl", "other.jsonl"}) {
    std::string line = kExposure;
    line.replace(line.find("\"arm\":\"a\""), 9, std::string("\"arm\":\"") + name[10] + "\"");
    std::ofstream(directory + "/" + name) << line << "\n";
  }
  std::string arms;
  ReadReport report;
  ASSERT_TRUE(ReadExposures({directory}, [&](LoggedExposure e) { arms += e.arm; }, &report).ok());
  EXPECT_EQ(arms, "ab");
  EXPECT_EQ(ReadExposures({directory + "/none"}, [](LoggedExposure) {}, &report).code(), absl::StatusCode::kNotFound);
}

TEST(LogReader, HashesTheRawIdsOfOutcomes) {
  const std::string path = WriteFile("outcomes.jsonl",
                                     R"({"time_us":1,"user":"ann","device":"d","label":1,"predicted":0.25})"
                                     "\n"
                                     R"({"time_us":2,"unit":"user","unit_hash":"h","label":0})"
                                     "\n"
                                     R"({"time_us":3,"label":0})"
                                     "\n"
                                     R"({"time_us":3,"user":"bob"})"
                                     "\n");
  std::vector<Outcome> seen;
  ReadReport report;
  ASSERT_TRUE(ReadOutcomes(path, "key", [&](Outcome o) { seen.push_back(std::move(o)); }, &report).ok());
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].unit_hash, UnitHash("key", "user", "ann"));
  EXPECT_EQ(seen[1].unit_hash, UnitHash("key", "device", "d"));
  EXPECT_EQ(seen[2].unit_hash, "h");
  EXPECT_TRUE(seen[0].has_predicted);
  EXPECT_FALSE(seen[2].has_predicted);
  EXPECT_EQ(report.bad, 2u);
  ReadReport without_key;
  ASSERT_TRUE(ReadOutcomes(path, "", [](Outcome) {}, &without_key).ok());
  EXPECT_THAT(without_key.problems[0], HasSubstr("outcomes.jsonl:1: raw id in \"user\", and no key to hash it with"));
}

}  // namespace
}  // namespace backstory
