// Golden cases: raw events and raw candidates in, logits out. They travel with a model version and are scored when it
// is loaded, so that a version that this build, this machine or a damaged file would score differently never serves.
// The line format is in docs/reference/model-files.md.
#ifndef BACKSTORY_MODELS_GOLDEN_H_
#define BACKSTORY_MODELS_GOLDEN_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/item.h"
#include "features/tokenizer.h"
#include "models/grab/model.h"

namespace backstory {

inline constexpr size_t kGoldenCandidatesMax = 10'000;

// Allowed |logit - golden| as a fraction of max(1, largest |golden logit| of the case). Rows are normalised in every
// layer, so fp32 rounding enters per sub-layer with about sqrt(K) * 2^-24 for reductions of K terms: 8e-6 at K =
// 16,384, a dozen sub-layers deep 1e-4. Measured differences between implementations are near 1e-6. A case may ask for
// less, not for more.
inline constexpr double kGoldenTolerance = 1e-4;

// The same of a model that computes in bf16 and is held against logits of exact arithmetic: each operand of a product
// is off by up to 2^-8 of itself, 2^-9 in the mean and independently, so a product's error is near sqrt(2 / 3) 2^-9
// = 1.6e-3 of its rms; two dozen products deep that is 8e-3, and three of it covers the largest of a few hundred
// logits.
inline constexpr double kGoldenToleranceBf16 = 2.5e-2;

struct GoldenCase {
  std::string name;
  std::string user;
  std::string scene;
  int64_t now_us = 0;
  uint64_t request_id = 0;         // 0: none; else rows of the same request are not seen
  std::vector<Event> events;       // live ones, ascending (time_us, event_id); those at or after now are invisible
  std::map<uint64_t, Item> items;  // the catalog
  std::map<uint64_t, ItemCounts> counts;
  FeatureMap features;
  CandidateColumns candidates;
  std::vector<float> logits;  // [candidates, tasks]; empty in a case that is yet to be scored
  double tolerance = kGoldenTolerance;
};

// One line without its line break. INVALID_ARGUMENT naming the key.
absl::StatusOr<GoldenCase> GoldenFromJson(std::string_view line);
std::string GoldenToJson(const GoldenCase& golden, size_t tasks);

// A whole file; INVALID_ARGUMENT "source:line: ...". Blank lines are skipped. Names are unique.
absl::StatusOr<std::vector<GoldenCase>> ParseGoldens(std::string_view text, std::string_view source);

// Every scoring call of the house on one case: join, tokenise, prefill, score. [candidates, tasks].
absl::StatusOr<std::vector<float>> ScoreGolden(const grab::Model& model, const GoldenCase& golden);

struct GoldenReport {
  size_t cases = 0;
  size_t logits = 0;
  double worst = 0;        // largest |logit - golden| / max(1, scale of its case)
  std::string worst_case;  // "name[candidate][task]"
};

// FAILED_PRECONDITION naming case, candidate, task, expected and found for the first one beyond its tolerance, which is
// the case's own or `tolerance`, whichever is larger.
absl::StatusOr<GoldenReport> CheckGoldens(const grab::Model& model, const std::vector<GoldenCase>& goldens,
                                          double tolerance = 0);

}  // namespace backstory

#endif  // BACKSTORY_MODELS_GOLDEN_H_
