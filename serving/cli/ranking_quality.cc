#include "serving/cli/ranking_quality.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace backstory {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// `sorted` by p. Sums the mid-ranks of the positives: the Mann-Whitney statistic.
double AucOfSorted(std::span<const ScoredLabel> sorted) {
  double rank_sum = 0;
  size_t positives = 0;
  for (size_t begin = 0; begin < sorted.size();) {
    size_t end = begin, tied_positives = 0;
    while (end < sorted.size() && sorted[end].p == sorted[begin].p) tied_positives += sorted[end++].positive;
    rank_sum += 0.5 * static_cast<double>(begin + end + 1) * static_cast<double>(tied_positives);
    positives += tied_positives;
    begin = end;
  }
  const double p = static_cast<double>(positives), n = static_cast<double>(sorted.size() - positives);
  if (p == 0 || n == 0) return kNan;
  return (rank_sum - p * (p + 1) / 2) / (p * n);
}

}  // namespace

double Auc(std::span<const ScoredLabel> scored) {
  std::vector<ScoredLabel> sorted(scored.begin(), scored.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.p < b.p; });
  return AucOfSorted(sorted);
}

RankingQuality Quality(std::span<const ScoredLabel> scored) {
  RankingQuality q;
  q.n = scored.size();
  q.auc = Auc(scored);
  double predicted = 0;
  for (const ScoredLabel& s : scored) {
    const double p = std::clamp(s.p, 1e-7, 1 - 1e-7);
    q.log_loss -= std::log(s.positive ? p : 1 - p);
    predicted += s.p;
    q.positives += s.positive;
  }
  q.log_loss = q.n ? q.log_loss / static_cast<double>(q.n) : kNan;
  q.pcoc = q.positives ? predicted / static_cast<double>(q.positives) : kNan;

  std::vector<ScoredLabel> grouped(scored.begin(), scored.end());
  std::sort(grouped.begin(), grouped.end(),
            [](const auto& a, const auto& b) { return a.group != b.group ? a.group < b.group : a.p < b.p; });
  double sum = 0, weight = 0;
  for (size_t begin = 0; begin < grouped.size();) {
    size_t end = begin;
    while (end < grouped.size() && grouped[end].group == grouped[begin].group) ++end;
    const double auc = AucOfSorted(std::span(grouped).subspan(begin, end - begin));
    if (!std::isnan(auc)) {
      sum += auc * static_cast<double>(end - begin);
      weight += static_cast<double>(end - begin);
      ++q.gauc_groups;
    }
    begin = end;
  }
  q.gauc = weight > 0 ? sum / weight : kNan;
  return q;
}

}  // namespace backstory
