// Arbitrary bytes as each of the texts of a version directory: model.textproto, calibration, goldens.jsonl, MANIFEST.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "models/calibration.h"
#include "models/golden.h"
#include "models/grab/config_text.h"
#include "models/grab/tensors.h"
#include "models/manifest.h"

namespace {

void Require(bool truth) {
  if (!truth) std::abort();
}

void FuzzConfig(std::string_view text) {
  const auto config = backstory::grab::ConfigFromText(text, "fuzz");
  if (!config.ok()) return;
  // What is accepted is valid, can be written, and is the same when it comes back.
  Require(backstory::grab::Validate(*config).ok());
  const std::string written = backstory::grab::ConfigToText(*config);
  const auto back = backstory::grab::ConfigFromText(written, "fuzz");
  Require(back.ok() && backstory::grab::ConfigToText(*back) == written);
  for (const auto& spec : backstory::grab::ExpectedTensors(*config)) {
    for (int64_t dim : spec.shape) Require(dim > 0);
  }
}

void FuzzCalibration(std::string_view text) {
  const std::vector<std::string> tasks{"like", "click"};
  const auto calibration =
      backstory::Calibration::FromText(text, "fuzz", tasks, backstory::Calibration::kAnyVersion, false);
  if (!calibration.ok()) return;
  for (float logit : {-1e30f, -1.0f, 0.0f, 1.0f, 1e30f}) {
    const float p = calibration->Probability("feed", 0, logit);
    Require(p > 0 && p < 1);
  }
  const auto back =
      backstory::Calibration::FromText(calibration->ToText(tasks), "fuzz", tasks, calibration->version(), true);
  Require(back.ok() && back->entries() == calibration->entries());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  FuzzConfig(text);
  FuzzCalibration(text);
  if (const auto manifest = backstory::ParseManifest(text, "fuzz"); manifest.ok()) {
    Require(backstory::ManifestToText(*manifest) == text);
  }
  if (const auto goldens = backstory::ParseGoldens(text, "fuzz"); goldens.ok()) {
    for (const backstory::GoldenCase& golden : *goldens) {
      Require(!golden.candidates.item_ids.empty());
      const size_t rows = golden.candidates.item_ids.size();
      const std::string written = backstory::GoldenToJson(golden, golden.logits.size() / rows);
      Require(backstory::GoldenFromJson(written).ok());
    }
  }
  return 0;
}
