#include "serving/engine/experiments/statistics.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

namespace backstory {
namespace {

constexpr double kSrmP = 0.001;
constexpr double kSrmDeviation = 0.001;

// Regularised upper incomplete gamma function Q(a, x), a > 0, x >= 0: the series of P below x = a + 1, else Lentz's
// continued fraction.
double UpperGamma(double a, double x) {
  if (x <= 0) return 1;
  const double scale = std::exp(a * std::log(x) - x - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (double n = a + 1; term > sum * 1e-16; ++n) sum += term *= x / n;
    return std::max(0.0, 1 - scale * sum);
  }
  constexpr double kTiny = 1e-300;
  double b = x + 1 - a, c = 1 / kTiny, d = 1 / b, h = d;
  for (int i = 1; i < 10'000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = an * d + b;
    if (std::abs(d) < kTiny) d = kTiny;
    c = b + an / c;
    if (std::abs(c) < kTiny) c = kTiny;
    d = 1 / d;
    const double delta = d * c;
    h *= delta;
    if (std::abs(delta - 1) < 1e-15) break;
  }
  return scale * h;
}

}  // namespace

double ChiSquareSurvival(double statistic, int degrees) {
  assert(degrees >= 1);
  return UpperGamma(degrees / 2.0, statistic / 2);
}

double ChiSquareP(const std::vector<double>& counts, const std::vector<double>& shares) {
  assert(counts.size() == shares.size() && counts.size() >= 2);
  double total = 0, statistic = 0;
  for (const double count : counts) total += count;
  if (total == 0) return 1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * shares[i];
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return ChiSquareSurvival(statistic, static_cast<int>(counts.size()) - 1);
}

double TwoSidedP(double z) { return std::erfc(std::abs(z) / std::sqrt(2.0)); }

double NormalQuantile(double p) {
  assert(p > 0 && p < 1);
  // Newton steps on the distribution function, which is convex below 0 and concave above: from the middle they never
  // overshoot towards the tail by more than they can come back.
  const bool upper = p > 0.5;
  const double tail = upper ? 1 - p : p;
  double z = std::sqrt(-2 * std::log(tail));  // above the answer
  for (int i = 0; i < 100; ++i) {
    const double survival = 0.5 * std::erfc(z / std::sqrt(2.0));
    const double density = std::exp(-z * z / 2) / std::sqrt(2 * M_PI);
    // Newton on log survival, which is nearly a parabola.
    const double step = std::log(survival / tail) * survival / density;
    z += step;
    if (std::abs(step) < 1e-14 * std::max(1.0, z)) break;
  }
  return upper ? z : -z;
}

void Moments::Add(double value) {
  ++count_;
  const double before = value - mean_;
  mean_ += before / static_cast<double>(count_);
  sum_squares_ += before * (value - mean_);
}

void RatioMoments::Add(double numerator, double denominator) {
  ++count_;
  sum_n_ += numerator;
  sum_d_ += denominator;
  sum_nn_ += numerator * numerator;
  sum_dd_ += denominator * denominator;
  sum_nd_ += numerator * denominator;
}

double RatioMoments::variance() const {
  if (count_ < 2 || sum_d_ == 0) return 0;
  const double n = static_cast<double>(count_), r = ratio();
  // Residuals numerator - r * denominator have mean 0 by the definition of r.
  const double residual = std::max(0.0, sum_nn_ - 2 * r * sum_nd_ + r * r * sum_dd_);
  return residual / (n - 1) * n / (sum_d_ * sum_d_);
}

Estimate EstimateOf(const Moments& moments) { return {moments.mean(), moments.mean_variance(), moments.count()}; }
Estimate EstimateOf(const RatioMoments& moments) { return {moments.ratio(), moments.variance(), moments.count()}; }

Interval IntervalOf(const Estimate& estimate, double alpha) {
  const double half = NormalQuantile(1 - alpha / 2) * std::sqrt(estimate.variance);
  return {estimate.value - half, estimate.value + half};
}

Difference DifferenceOf(const Estimate& a, const Estimate& b, double alpha) {
  Difference difference;
  difference.value = b.value - a.value;
  difference.standard_error = std::sqrt(a.variance + b.variance);
  const double half = NormalQuantile(1 - alpha / 2) * difference.standard_error;
  difference.low = difference.value - half;
  difference.high = difference.value + half;
  if (difference.standard_error > 0) difference.p = TwoSidedP(difference.value / difference.standard_error);
  return difference;
}

Difference AlwaysValid(const Estimate& a, const Estimate& b, double alpha, double tuned_units) {
  Difference difference = DifferenceOf(a, b, alpha);
  const double n = static_cast<double>(a.units + b.units);
  if (n == 0 || difference.standard_error == 0) {
    // Nothing is known of the spread yet.
    difference.low = -std::numeric_limits<double>::infinity();
    difference.high = std::numeric_limits<double>::infinity();
    difference.p = 1;
    return difference;
  }
  // Mixing variance that makes the interval narrowest at tuned_units.
  const double rho2 = (-2 * std::log(alpha) + std::log(-2 * std::log(alpha) + 1)) / tuned_units;
  const double weight = n * rho2 / (n * rho2 + 1);
  const double half =
      difference.standard_error * std::sqrt(2 / weight * (0.5 * std::log(n * rho2 + 1) - std::log(alpha)));
  difference.low = difference.value - half;
  difference.high = difference.value + half;
  const double z = difference.value / difference.standard_error;
  difference.p = std::min(1.0, std::exp(0.5 * std::log(n * rho2 + 1) - weight * z * z / 2));
  return difference;
}

SampleRatio CheckSampleRatio(const std::vector<int64_t>& units, const std::vector<int64_t>& weights) {
  assert(units.size() == weights.size() && units.size() >= 2);
  double total = 0, weight = 0;
  for (const int64_t count : units) total += static_cast<double>(count);
  for (const int64_t share : weights) weight += static_cast<double>(share);
  SampleRatio ratio;
  if (total == 0) return ratio;
  for (size_t i = 0; i < units.size(); ++i) {
    const double share = static_cast<double>(weights[i]) / weight, expected = total * share;
    const double off = static_cast<double>(units[i]) - expected;
    ratio.statistic += off * off / expected;
    ratio.deviation = std::max(ratio.deviation, std::abs(off) / total);
  }
  ratio.p = ChiSquareSurvival(ratio.statistic, static_cast<int>(units.size()) - 1);
  ratio.mismatch = ratio.p < kSrmP && ratio.deviation >= kSrmDeviation;
  return ratio;
}

}  // namespace backstory
