#include "serving/engine/experiments/rotating_log.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/serving/experiments/failing_directory.h"

namespace backstory {
namespace {

TEST(RotatingLog, RotatesBySizeAndAgeAndKeepsEveryByteInOrder) {
  FailingDirectory directory;
  ManualClock clock(1'700'000'000'000'000);
  RotatingLog log(&directory, &clock, {"t", 10, 100});
  ASSERT_TRUE(log.Append("aaaa\n").ok());
  ASSERT_TRUE(log.Append("bbbb\n").ok());
  ASSERT_TRUE(log.Append("c\n").ok()) << "10 bytes are full";
  clock.Advance(100);
  ASSERT_TRUE(log.Append("d\n").ok()) << "too old";
  ASSERT_TRUE(log.Append("a line that is longer than a segment\n").ok());
  std::vector<std::string> contents;
  for (const auto& [name, content] : directory.files()) contents.push_back(content);
  EXPECT_EQ(contents, (std::vector<std::string>{"aaaa\nbbbb\n", "c\n", "d\n", "a line that is longer than a segment\n"}));
  EXPECT_EQ(directory.files().begin()->first, "t-20231114T221320Z-0000000000.jsonl");
  EXPECT_EQ(directory.synced_bytes(), 14u) << "a closed segment is on disk";
}

TEST(RotatingLog, AFailedWriteLeavesNoHalfLine) {
  FailingDirectory directory;
  ManualClock clock;
  RotatingLog log(&directory, &clock, {"t", 1000, INT64_MAX});
  ASSERT_TRUE(log.Append("one\n").ok());
  directory.FailAfterBytes(2);
  EXPECT_EQ(log.Append("two\n").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(directory.files().begin()->second, "one\n");
  directory.Heal();
  ASSERT_TRUE(log.Append("two\n").ok());
  EXPECT_EQ(directory.files().begin()->second, "one\ntwo\n");
  EXPECT_EQ(directory.files().size(), 1u);
}

TEST(RotatingLog, IfItCannotBeCutTheSegmentIsLeftBehind) {
  FailingDirectory directory;
  ManualClock clock;
  RotatingLog log(&directory, &clock, {"t", 1000, INT64_MAX});
  directory.FailAfterBytes(2);
  directory.FailTruncate(true);
  EXPECT_FALSE(log.Append("two\n").ok());
  directory.Heal();
  ASSERT_TRUE(log.Append("two\n").ok());
  ASSERT_EQ(directory.files().size(), 2u);
  EXPECT_EQ(directory.files().begin()->second, "tw");
  EXPECT_EQ(std::next(directory.files().begin())->second, "two\n");
}

TEST(RotatingLog, WritesRealFiles) {
  const std::string path = testing::TempDir() + "/rotating_log_test/deep/er";
  std::filesystem::remove_all(path);
  auto directory = OpenLogDirectory(path);
  ASSERT_TRUE(directory.ok()) << directory.status();
  RotatingLog log(directory->get(), SystemClock(), {"t", 5, INT64_MAX});
  for (const char* line : {"a\n", "bb\n", "ccc\n", "dddd\n"}) ASSERT_TRUE(log.Append(line).ok());
  ASSERT_TRUE(log.Sync().ok());
  const auto segments = ListSegments(path, "t");
  ASSERT_TRUE(segments.ok());
  std::string all;
  for (const std::string& segment : *segments) {
    std::ifstream file(segment);
    all.append(std::istreambuf_iterator<char>(file), {});
  }
  EXPECT_EQ(all, "a\nbb\nccc\ndddd\n");
  EXPECT_EQ(segments->size(), 3u);
  EXPECT_EQ(ListSegments(path + "/none", "t").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(OpenLogDirectory("/proc/none").status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace backstory
