// Offline quality of probabilities against binary labels. Pure, thread-safe.
#ifndef BACKSTORY_SERVING_CLI_RANKING_QUALITY_H_
#define BACKSTORY_SERVING_CLI_RANKING_QUALITY_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace backstory {

struct ScoredLabel {
  uint64_t group = 0;  // the user, for GAUC
  double p = 0;        // predicted probability, in (0, 1)
  bool positive = false;
};

struct RankingQuality {
  size_t n = 0;
  size_t positives = 0;
  double auc = 0;       // chance that a positive scores above a negative, ties count half; NaN if one class is absent
  double gauc = 0;      // mean of per-group AUC weighted by group size, over groups with both classes; NaN if none
  size_t gauc_groups = 0;
  double log_loss = 0;  // natural log, probabilities clamped to [1e-7, 1 - 1e-7]
  double pcoc = 0;      // sum of predictions / positives (1 = calibrated); NaN without positives
};

RankingQuality Quality(std::span<const ScoredLabel> scored);

// AUC alone, by rank sum with mid-ranks for ties. NaN if a class is absent.
double Auc(std::span<const ScoredLabel> scored);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_RANKING_QUALITY_H_
