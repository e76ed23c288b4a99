// The statistics an experiment is read with. Pure functions; every one is checked in
// tests/serving/experiments/statistics_test.cc against published values or by simulation.
#ifndef BACKSTORY_SERVING_ENGINE_EXPERIMENTS_STATISTICS_H_
#define BACKSTORY_SERVING_ENGINE_EXPERIMENTS_STATISTICS_H_

#include <cstdint>
#include <vector>

namespace backstory {

// P(X >= statistic) of a chi-square variable with `degrees` >= 1 degrees of freedom.
double ChiSquareSurvival(double statistic, int degrees);
// p of observed counts under expected shares (which add up to 1): chi-square with counts - 1 degrees of freedom. 1 if
// nothing was observed.
double ChiSquareP(const std::vector<double>& counts, const std::vector<double>& shares);
// P(|Z| >= |z|) of a standard normal variable.
double TwoSidedP(double z);
// The z with P(Z <= z) = p, 0 < p < 1.
double NormalQuantile(double p);

// Mean and variance of a value per unit, added one by one (Welford).
class Moments {
 public:
  void Add(double value);
  int64_t count() const { return count_; }
  double mean() const { return mean_; }
  double variance() const { return count_ < 2 ? 0 : sum_squares_ / static_cast<double>(count_ - 1); }  // of one value
  double mean_variance() const { return count_ < 1 ? 0 : variance() / static_cast<double>(count_); }

 private:
  int64_t count_ = 0;
  double mean_ = 0, sum_squares_ = 0;
};

// A ratio of two per-unit sums, such as clicks / impressions, whose variance is that between units (delta method): the
// impressions of one user are not independent, so counting them one by one would make every interval too narrow.
class RatioMoments {
 public:
  void Add(double numerator, double denominator);  // of one unit
  int64_t count() const { return count_; }
  double numerator() const { return sum_n_; }
  double denominator() const { return sum_d_; }
  double ratio() const { return sum_d_ == 0 ? 0 : sum_n_ / sum_d_; }
  double variance() const;  // of ratio()

 private:
  int64_t count_ = 0;
  double sum_n_ = 0, sum_d_ = 0, sum_nn_ = 0, sum_dd_ = 0, sum_nd_ = 0;
};

struct Estimate {
  double value = 0, variance = 0;
  int64_t units = 0;
};
Estimate EstimateOf(const Moments& moments);
Estimate EstimateOf(const RatioMoments& moments);

struct Interval {
  double low = 0, high = 0;
};
// value -+ z standard errors at level 1 - alpha.
Interval IntervalOf(const Estimate& estimate, double alpha);

// What an arm changes against another. p and [low, high] hold for one look at a time fixed beforehand.
struct Difference {
  double value = 0;  // b - a
  double standard_error = 0;
  double low = 0, high = 0;
  double p = 1;
};
Difference DifferenceOf(const Estimate& a, const Estimate& b, double alpha);
inline Difference DifferenceOf(const Moments& a, const Moments& b, double alpha) {
  return DifferenceOf(EstimateOf(a), EstimateOf(b), alpha);
}

// The same, holding at every look at once, so that one may peek daily and stop when it is decided: an asymptotic
// confidence sequence from a normal mixture (mixture sequential probability ratio test). Wider than the fixed interval:
// about 1.4 to 1.9 times. It is narrowest around `tuned_units` units in both arms together, which must be chosen before the
// data is seen.
inline constexpr double kTunedUnits = 5000;
Difference AlwaysValid(const Estimate& a, const Estimate& b, double alpha, double tuned_units = kTunedUnits);

// Is the split of units between arms the one that was configured?
struct SampleRatio {
  double statistic = 0;
  double p = 1;
  double deviation = 0;   // largest |observed share - configured share|
  bool mismatch = false;  // p < 0.001 and deviation >= 0.001: small p alone is nothing at a billion units
};
SampleRatio CheckSampleRatio(const std::vector<int64_t>& units, const std::vector<int64_t>& weights);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_ENGINE_EXPERIMENTS_STATISTICS_H_
