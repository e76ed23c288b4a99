// Arbitrary bytes as a targeting expression: parsed or refused, and what parses has a value for every request.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "serving/engine/experiments/targeting.h"

namespace {

using backstory::FeatureMap;
using backstory::Targeting;
using backstory::TargetingInput;
using backstory::Units;

void Require(bool truth) {
  if (!truth) std::abort();
}

const std::vector<TargetingInput>& Requests() {
  static const Units* const nobody = new Units();
  static const Units* const ann = new Units{"ann", "phone-1", "s"};
  static const FeatureMap* const none = new FeatureMap();
  static const FeatureMap* const some = new FeatureMap{
      {"country", {"de", 0, false}}, {"app_version", {"", 12.5, true}}, {"x", {"", -1e300, true}}, {"a-b.c", {"", 0, false}}};
  static const std::vector<TargetingInput>* const requests =
      new std::vector<TargetingInput>{{"", "", nobody, none}, {"shop", "home", ann, some}, {"shop", "cart", nobody, some}};
  return *requests;
}

// `text` around an expression that was accepted means what the wrapping says, or is refused for a limit.
void Compare(const Targeting& plain, const std::string& text, bool opposite) {
  const auto wrapped = Targeting::Parse(text);
  if (!wrapped.ok()) return;
  for (const TargetingInput& request : Requests()) {
    Require(wrapped->Matches(request) == (plain.Matches(request) != opposite));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto targeting = Targeting::Parse(text);
  if (!targeting.ok()) {
    Require(targeting.status().code() == absl::StatusCode::kInvalidArgument);
    Require(targeting.status().message().substr(0, 7) == "column ");
    return 0;
  }
  Require(size <= backstory::kTargetingBytesMax);
  if (targeting->everybody()) return 0;
  Compare(*targeting, "(" + std::string(text) + ")", false);
  Compare(*targeting, "not (" + std::string(text) + ")", true);
  Compare(*targeting, std::string(text) + " or false", false);
  return 0;
}
