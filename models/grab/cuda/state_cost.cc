#include "models/grab/cuda/state_cost.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

namespace backstory::grab {
namespace {

constexpr size_t kTerms = 3;
using Terms = std::array<double, kTerms>;

struct Sample {
  Terms x;
  double seconds;
};

// Least squares over the terms of `use` (a bit each) by normal equations, every sample scaled to one; nullopt if those
// terms cannot be told apart.
std::optional<Terms> Solve(std::span<const Sample> samples, unsigned use) {
  std::vector<size_t> terms;
  for (size_t t = 0; t < kTerms; ++t) {
    if (use >> t & 1) terms.push_back(t);
  }
  const size_t n = terms.size();
  // Terms differ by ten orders of magnitude: each in units of its largest sample.
  Terms unit{};
  for (const Sample& s : samples) {
    for (size_t t : terms) unit[t] = std::max(unit[t], s.x[t] / s.seconds);
  }
  std::array<std::array<double, kTerms + 1>, kTerms> m{};
  for (const Sample& s : samples) {
    for (size_t i = 0; i < n; ++i) {
      if (unit[terms[i]] == 0) return std::nullopt;
      const double xi = s.x[terms[i]] / s.seconds / unit[terms[i]];
      for (size_t j = 0; j < n; ++j) m[i][j] += xi * s.x[terms[j]] / s.seconds / unit[terms[j]];
      m[i][n] += xi;
    }
  }
  for (size_t i = 0; i < n; ++i) {
    size_t pivot = i;
    for (size_t r = i + 1; r < n; ++r) {
      if (std::abs(m[r][i]) > std::abs(m[pivot][i])) pivot = r;
    }
    std::swap(m[i], m[pivot]);
    if (std::abs(m[i][i]) < 1e-13) return std::nullopt;
    for (size_t r = 0; r < n; ++r) {
      if (r == i) continue;
      const double factor = m[r][i] / m[i][i];
      for (size_t k = i; k <= n; ++k) m[r][k] -= factor * m[i][k];
    }
  }
  Terms solution{};
  for (size_t i = 0; i < n; ++i) solution[terms[i]] = m[i][n] / m[i][i] / unit[terms[i]];
  return solution;
}

// Three terms have seven subsets: the best of those whose solution has no negative term.
Terms Fit(std::span<const Sample> samples, unsigned allowed) {
  Terms best{};
  double best_error = std::numeric_limits<double>::infinity();
  for (unsigned use = 1; use < 1u << kTerms; ++use) {
    if ((use & ~allowed) != 0) continue;
    const std::optional<Terms> solution = Solve(samples, use);
    if (!solution.has_value()) continue;
    double error = 0;
    bool feasible = true;
    for (double term : *solution) feasible &= term >= 0;
    for (const Sample& s : samples) {
      double predicted = 0;
      for (size_t t = 0; t < kTerms; ++t) predicted += (*solution)[t] * s.x[t];
      const double off = predicted / s.seconds - 1;
      error += off * off;
    }
    if (feasible && error < best_error) best_error = error, best = *solution;
  }
  return best;
}

}  // namespace

HistoryWork WorkOf(std::span<const size_t> first, std::span<const size_t> rows) {
  assert(first.size() == rows.size());
  HistoryWork work;
  for (size_t c = 0; c < rows.size(); ++c) {
    const double from = static_cast<double>(first[c]), to = static_cast<double>(rows[c]);
    work.rows += to - from;
    work.pairs += to * to - from * from;
  }
  return work;
}

ComputeCost FitCompute(std::span<const ComputeSample> samples) {
  std::vector<Sample> terms;
  for (const ComputeSample& s : samples) terms.push_back({{1, s.work.rows, s.work.pairs}, s.seconds});
  const Terms fit = Fit(terms, 0b111);
  return {fit[0], fit[1], fit[2]};
}

double Corrected(double slowness, double expected, double real) {
  constexpr double kStep = 0.1, kOutlier = 4;
  if (!(expected > 0) || !(real > 0)) return slowness;
  return slowness * (1 + kStep * (std::clamp(real / expected, 1 / kOutlier, kOutlier) - 1));
}

ComputeCost Times(double slowness, const ComputeCost& cost) {
  return {slowness * cost.a, slowness * cost.b, slowness * cost.c};
}

CopyCost FitCopy(std::span<const CopySample> samples) {
  std::vector<Sample> terms;
  for (const CopySample& s : samples) terms.push_back({{1, s.bytes, 0}, s.seconds});
  const Terms fit = Fit(terms, 0b011);
  return {fit[0], fit[1]};
}

StateChoice ChooseStateSource(const StateOffer& offer, const StateCosts& costs, const StateQueues& queues) {
  const auto compute = [&](const HistoryWork& work) {
    return work.rows == 0 ? 0 : queues.compute_seconds + costs.compute.Seconds(work);
  };
  const double from_tokens = compute(offer.after_card);
  if (!offer.on_host) {
    return {offer.after_card.rows == 0 ? StateSource::kCard : StateSource::kTokens, from_tokens, 0};
  }
  const double from_host = costs.copy.Seconds(queues.copy_bytes + offer.host_bytes) + compute(offer.after_host);
  if (from_host <= from_tokens) return {StateSource::kHost, from_host, from_tokens};
  return {StateSource::kTokens, from_tokens, from_host};
}

}  // namespace backstory::grab
