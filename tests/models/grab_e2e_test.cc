// From raw events to logits, against the PyTorch twin: random versions of several configurations and the shipped one.
// models/training/make_goldens.py writes tests/conformance/grab_e2e; loading a version scores its goldens.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "models/grab/loader.h"

namespace backstory::grab {
namespace {

namespace fs = std::filesystem;

fs::path Root() {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  return root == nullptr ? "." : root;
}

std::vector<std::string> Versions(const fs::path& repository) {
  std::vector<std::string> paths;
  for (const fs::directory_entry& model : fs::directory_iterator(repository)) paths.push_back(model.path() / "1");
  return paths;
}

// Measured on float64 logits of the twin: 1e-6 of the scale. Ten times that, a tenth of what loading allows.
constexpr double kTolerance = 1e-5;

TEST(GrabEndToEnd, RandomConfigurationsMatchTheTwin) {
  const std::vector<std::string> paths = Versions(Root() / "tests/conformance/grab_e2e");
  ASSERT_EQ(paths.size(), 8u);
  std::set<int> channels, layers;
  bool pre = false, latent = false, hidden = false, windows = false, unmixed = false;
  for (const std::string& path : paths) {
    const auto loaded = LoadGrabVersion(path, {});
    ASSERT_TRUE(loaded.ok()) << path << ": " << loaded.status();
    const LoadedGrab& grab = **loaded;
    EXPECT_LE(grab.goldens.worst, kTolerance) << path << ": " << grab.goldens.worst_case;
    EXPECT_EQ(grab.goldens.cases, 9u) << path;
    channels.insert(grab.config.channels());
    layers.insert(grab.config.layers);
    pre = pre || grab.config.norm == Norm::kPre;
    latent = latent || grab.config.latent > 0;
    hidden = hidden || grab.config.tokenizer.open_rows == OpenRows::kHide;
    windows = windows || grab.config.window_rows < 100;
    unmixed = unmixed || !grab.config.target_mixing;
  }
  EXPECT_EQ(channels, (std::set<int>{1, 2, 3}));
  EXPECT_EQ(layers, (std::set<int>{1, 2, 3}));
  EXPECT_TRUE(pre && latent && hidden && windows && unmixed);
}

TEST(GrabEndToEnd, ShippedVersionMatchesTheTwin) {
  const auto loaded = LoadGrabVersion(Root() / "models/zoo/grab-ml/1", {.expected_name = "grab-ml"});
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_LE((*loaded)->goldens.worst, kTolerance) << (*loaded)->goldens.worst_case;
  EXPECT_EQ((*loaded)->calibration()->version(), 1u);
}

}  // namespace
}  // namespace backstory::grab
