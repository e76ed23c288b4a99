// What the parameter device accepts, and what it says where there is no such card.
#include "serving/embedded/scoring_device.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace backstory {
namespace {

TEST(ScoringDevice, TextsAreParsedOrRefusedByName) {
  EXPECT_EQ(*ParseDevice("auto"), kDeviceAuto);
  EXPECT_EQ(*ParseDevice("cpu"), kDeviceCpu);
  EXPECT_EQ(*ParseDevice("cuda:0"), 0);
  EXPECT_EQ(*ParseDevice("cuda:12"), 12);
  for (const char* text : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CPU"}) {
    const auto parsed = ParseDevice(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status()));
    EXPECT_NE(parsed.status().message().find("--device"), absl::string_view::npos) << parsed.status();
  }
}

struct Opened {
  absl::StatusOr<std::shared_ptr<ScoringDevice>> device;
  std::vector<std::string> lines;
};

Opened Open(const std::string& text) {
  ParameterSet launch;
  EXPECT_TRUE(launch.Set("device", text, ParameterSource::kServer).ok());
  Opened opened{absl::UnknownError(""), {}};
  opened.device = ScoringDevice::Open(launch, nullptr,
                                      [lines = &opened.lines](const std::string& line) { lines->push_back(line); });
  return opened;
}

TEST(ScoringDevice, TheCpuNeedsNoCardAndSaysNothing) {
  const Opened cpu = Open("cpu");
  ASSERT_TRUE(cpu.device.ok()) << cpu.device.status();
  EXPECT_EQ((*cpu.device)->Describe(), "cpu");
  EXPECT_FALSE((*cpu.device)->Factory());
  EXPECT_TRUE(cpu.lines.empty());
}

TEST(ScoringDevice, ACardThatIsNotThereIsRefusedWithWhatWasFound) {
  const Opened missing = Open("cuda:63");
  ASSERT_FALSE(missing.device.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(missing.device.status()));
  EXPECT_NE(missing.device.status().message().find("(--device) = cuda:63: "), absl::string_view::npos)
      << missing.device.status();
}

TEST(ScoringDevice, AutoStartsEverywhereAndSaysInOneLineWhatScores) {
  const Opened found = Open("auto");
  ASSERT_TRUE(found.device.ok()) << found.device.status();
  ASSERT_EQ(found.lines.size(), 1u);
  const bool card = (*found.device)->Describe() != "cpu";
  EXPECT_EQ(bool{(*found.device)->Factory()}, card);
  EXPECT_NE(found.lines[0].find(card ? "scores" : "device auto: the CPU scores: "), std::string::npos)
      << found.lines[0];
}

}  // namespace
}  // namespace backstory
