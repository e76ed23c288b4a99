// Golden cases of a generative version: raw events in, and the SIDs, log-probabilities and items that must come out.
// docs/reference/model-files.md lists the keys.
#ifndef BACKSTORY_MODELS_GLASS_GOLDEN_H_
#define BACKSTORY_MODELS_GLASS_GOLDEN_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/event.h"
#include "models/glass/catalogue.h"
#include "models/glass/searcher.h"

namespace backstory::glass {

// Allowed |log-probability - golden|: the bound of tests/conformance/glass for fp32.
inline constexpr double kGoldenTolerance = 2e-4;
// The same for a searcher that rounds to bf16, as a fraction of max(1, largest |log-probability| of the case), which
// stands for the size of the logits. Derived as for ranking (models/golden.h): 1.6e-3 a product, two dozen products
// deep, three deviations.
inline constexpr double kGoldenToleranceBf16 = 2.5e-2;
// Cases whose candidates lie closer than this may list them in another order (only the empty history is ever so close).
inline constexpr double kGoldenGapMin = 5e-5;

struct GoldenExpectation {
  std::vector<uint64_t> short_items;  // item ids of the short window, oldest first
  size_t long_items = 0;              // behaviours before it
  std::vector<Sid> sids;              // of every beam, best first
  std::vector<double> log_probability;
  std::vector<uint64_t> items;  // recommended, best first
  std::vector<Sid> item_sids;
  double min_gap = 0;  // of a file's case only
};

struct GoldenCase {
  std::string name;
  std::vector<Event> events;  // of one user, in any order
  int64_t as_of_us = 0;       // events at or after it are not seen
  size_t beam = 1, count = 1;
  bool exclude_seen = false;
  GoldenExpectation expect;
};

// A whole file; INVALID_ARGUMENT "source:line: key: ...". Blank lines are skipped. Names are unique.
absl::StatusOr<std::vector<GoldenCase>> ParseGoldens(std::string_view text, std::string_view source);

// Every step of a recommendation on one case.
absl::StatusOr<GoldenExpectation> RunGolden(const Searcher& searcher, const Catalogue& catalogue,
                                            const GoldenCase& golden);

struct GoldenReport {
  size_t cases = 0;
  size_t beams = 0;
  double worst = 0;  // largest difference of a log-probability, in the tolerance's unit
  std::string worst_case;
};

// FAILED_PRECONDITION naming case, what differs, expected and found. Without `exact`: the expected beams in their
// places and the expected items. With it, for a searcher that rounds, and may lose beams in close decisions: each beam
// that it found has the log-probability which the network `exact` gives that semantic ID, and the best one is as good
// as the expected one, both within kGoldenToleranceBf16.
absl::StatusOr<GoldenReport> CheckGoldens(const Searcher& searcher, const Catalogue& catalogue,
                                          const std::vector<GoldenCase>& goldens, const Network* exact = nullptr);

}  // namespace backstory::glass

#endif  // BACKSTORY_MODELS_GLASS_GOLDEN_H_
