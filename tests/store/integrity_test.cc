// The integrity record by itself: format, versions, and which differences a crash explains.
#include "store/integrity.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "store/files.h"
#include "tests/store/store_test_util.h"

namespace backstory {
namespace {

using testing::HasSubstr;
using State = IntegrityRecord::State;

IntegrityRecord Sample() {
  IntegrityRecord record;
  record.state = State::kOpen;
  record.sequence = 42;
  record.manifest = "MANIFEST-000005";
  record.manifest_bytes = 10;
  record.manifest_hash = 0xABC;
  record.ssts = {{"000009.sst", {100, "0a0b"}}, {"000010.sst", {200, ""}}};
  return record;
}

TEST(IntegrityRecord, RoundTrip) {
  const IntegrityRecord record = Sample();
  const auto parsed = ParseIntegrity(FormatIntegrity(record));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(FormatIntegrity(*parsed), FormatIntegrity(record));
  EXPECT_EQ(parsed->ssts, record.ssts);
}

TEST(IntegrityRecord, AnyChangedByteIsDamage) {
  const std::string text = FormatIntegrity(Sample());
  for (size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_FALSE(ParseIntegrity(damaged).ok()) << "byte " << i;
    EXPECT_FALSE(ParseIntegrity(text.substr(0, i)).ok()) << "cut at " << i;
  }
}

// A binary of an older format refuses a newer store clearly (R28).
TEST(IntegrityRecord, NewerFormatIsRefusedByVersion) {
  IntegrityRecord record = Sample();
  record.format_version = kStoreFormatVersion + 1;
  const auto parsed = ParseIntegrity(FormatIntegrity(record));
  EXPECT_TRUE(absl::IsFailedPrecondition(parsed.status()));
  EXPECT_THAT(std::string(parsed.status().message()),
              HasSubstr("format version 2 is newer than this binary supports (1)"));
}

class CheckTest : public testing::Test {
 protected:
  void SetUp() override {
    Write("CURRENT", "MANIFEST-000005\n");
    Write("MANIFEST-000005", "0123456789");
    Write("000009.sst", std::string(100, 'x'));
    Write("000010.sst", std::string(200, 'x'));
    record_ = Sample();
    record_.manifest_hash = *HashFilePrefix(dir_ / "MANIFEST-000005", 10);
    ASSERT_TRUE(WriteIntegrity(dir_.path(), record_).ok());
  }
  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  std::string Files() { return std::string(CheckFiles(dir_.path()).status().message()); }
  std::string Live(const std::map<std::string, SstFile>& live, uint64_t sequence, uint64_t watermark) {
    return std::string(CheckAgainstLive(dir_.path(), record_, live, sequence, watermark).message());
  }

  TempDir dir_;
  IntegrityRecord record_;
};

TEST_F(CheckTest, AsRecordedPasses) {
  EXPECT_EQ(Files(), "");
  EXPECT_EQ(Live(record_.ssts, 42, 42), "");
  EXPECT_EQ(Live(record_.ssts, 50, 42), "") << "written but not acknowledged is no loss";
}

TEST_F(CheckTest, SequenceBelowTheWatermarkIsLoss) {
  EXPECT_THAT(Live(record_.ssts, 49, 50), HasSubstr("ends at sequence 49 but 50 was acknowledged"));
  EXPECT_THAT(Live(record_.ssts, 41, 0), HasSubstr("42 was acknowledged"));
}

TEST_F(CheckTest, ShorterManifestIsLossLongerIsNot) {
  Write("MANIFEST-000005", "012345678");
  EXPECT_THAT(Files(), HasSubstr("MANIFEST-000005: shorter"));
  Write("MANIFEST-000005", "012345678X");
  EXPECT_THAT(Files(), HasSubstr("MANIFEST-000005: differs"));
  Write("MANIFEST-000005", "0123456789 and an edit");
  EXPECT_EQ(Files(), "");
  EXPECT_EQ(Live({}, 42, 42), "") << "the edits may have replaced every file";
  record_.state = State::kClosed;
  ASSERT_TRUE(WriteIntegrity(dir_.path(), record_).ok());
  EXPECT_THAT(Files(), HasSubstr("longer")) << "a closed store does not grow";
}

TEST_F(CheckTest, MissingOrShortSstIsLoss) {
  Write("000010.sst", "short");
  EXPECT_THAT(Files(), HasSubstr("000010.sst: 5 bytes, 200 recorded"));
  std::filesystem::remove(dir_ / "000010.sst");
  EXPECT_THAT(Files(), HasSubstr("000010.sst: missing"));
  std::map<std::string, SstFile> live = record_.ssts;
  live.erase("000009.sst");
  EXPECT_THAT(Live(live, 42, 42), HasSubstr("no longer names 000009.sst"));
  live = record_.ssts;
  live["000011.sst"] = {};
  EXPECT_THAT(Live(live, 42, 42), HasSubstr("not recorded"));
}

TEST_F(CheckTest, NewerManifestMustNameAllThatWasLive) {
  Write("MANIFEST-000012", "new");
  Write("CURRENT", "MANIFEST-000012\n");
  EXPECT_EQ(Files(), "") << "a crash while opening leaves this";
  std::map<std::string, SstFile> live = record_.ssts;
  live["000011.sst"] = {};
  EXPECT_EQ(Live(live, 42, 42), "") << "recovery may have added files";
  live.erase("000010.sst");
  EXPECT_THAT(Live(live, 42, 42), HasSubstr("no longer names 000010.sst"));
}

TEST_F(CheckTest, CurrentIsChecked) {
  for (const char* bad : {"", "MANIFEST-000004\n", "MANIFEST-000099\n", "MANIFEST-000005", "rubbish\n"}) {
    Write("CURRENT", bad);
    EXPECT_THAT(Files(), HasSubstr("CURRENT")) << bad;
  }
}

TEST(Watermark, NewestIntactSlotCounts) {
  TempDir dir;
  {
    Watermark watermark;
    ASSERT_TRUE(watermark.Open(dir.path()).ok());
    for (uint64_t sequence = 1; sequence <= 5; ++sequence) ASSERT_TRUE(watermark.Set(sequence).ok());
  }
  EXPECT_EQ(*Watermark::Read(dir.path()), 5u);
  std::string bytes = *ReadWholeFile(dir / "WATERMARK");
  ASSERT_EQ(bytes.size(), 128u);
  std::string torn = bytes;
  torn[15] = '9';
  std::ofstream(dir / "WATERMARK", std::ios::binary) << torn;
  EXPECT_LE(*Watermark::Read(dir.path()), 5u) << "one torn slot leaves the other";
  torn[64 + 15] = '9';
  std::ofstream(dir / "WATERMARK", std::ios::binary) << torn;
  EXPECT_TRUE(absl::IsDataLoss(Watermark::Read(dir.path()).status()));
}

}  // namespace
}  // namespace backstory
