// The examples of docs/reference/model-files.md are what this program reads and writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "models/calibration.h"
#include "models/golden.h"
#include "models/grab/config_text.h"
#include "models/manifest.h"
#include "tests/models/temp_dir.h"

namespace backstory {
namespace {

// The fenced block of the page that contains `mark`.
std::string Block(const std::string& mark) {
  const char* source = std::getenv("BACKSTORY_SOURCE_DIR");
  const std::string page = ReadAll(std::string(source != nullptr ? source : ".") + "/docs/reference/model-files.md");
  std::string found;
  bool inside = false;
  for (size_t from = 0, fence; (fence = page.find("```", from)) != std::string::npos; from = fence + 3) {
    const std::string text = page.substr(from, fence - from);
    if (inside && text.find(mark) != std::string::npos) {
      EXPECT_EQ(found, "") << "two blocks with " << mark;
      found = text.substr(text.find('\n') + 1);
    }
    inside = !inside;
  }
  EXPECT_NE(found, "") << "no block with " << mark;
  return found;
}

TEST(ModelFilesPage, ManifestIsTheOneOfItsFiles) {
  const TempDir dir;
  WriteAll(dir.path("v/CARD.md"), "abc");
  WriteAll(dir.path("v/data/empty.bin"), "");
  ASSERT_TRUE(WriteManifest(dir.path("v")).ok());
  EXPECT_EQ(ReadAll(dir.path("v/MANIFEST")), Block("CARD.md\n99"));
  EXPECT_TRUE(VerifyDirectory(dir.path("v")).ok());
}

TEST(ModelFilesPage, ConfigurationIsValid) {
  const auto config = grab::ConfigFromText(Block("name: \"clicks\""), "page");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->tokenizer.channels.size(), 2u);
}

TEST(ModelFilesPage, GoldenCaseIsValid) {
  const std::string line = absl::StrReplaceAll(Block("\"one_click\""), {{"\n", ""}});
  const auto golden = GoldenFromJson(line);
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(golden->events.size(), 2u);
  EXPECT_EQ(golden->logits.size(), 2u);
}

TEST(ModelFilesPage, CalibrationIsValid) {
  std::string text = Block("$ cat platt.textproto");
  text = text.substr(text.find('\n') + 1);
  text = text.substr(0, text.find("$ backstory"));
  const std::vector<std::string> tasks{"click"};
  const auto calibration = Calibration::FromText(text, "page", tasks, Calibration::kAnyVersion, false);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->Find("search", 0), (Platt{1.05, 0.04}));
}

}  // namespace
}  // namespace backstory
