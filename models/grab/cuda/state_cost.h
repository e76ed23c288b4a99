// Which way brings a user's K/V to the card soonest: it is there, its pages are copied from host memory, or its rows
// are computed again from their tokens. Pure functions of measured constants; no CUDA. Copying moves bytes that grow
// with the rows, computing costs work that grows with their square, and both wait for what is queued before: neither
// always wins (tests/bench/RESULTS.md has the table of a card).
#ifndef BACKSTORY_MODELS_GRAB_CUDA_STATE_COST_H_
#define BACKSTORY_MODELS_GRAB_CUDA_STATE_COST_H_

#include <cstddef>
#include <span>
#include <vector>

namespace backstory::grab {

// Rows [first, rows) of every channel to be computed. Attention over what is before makes the second term.
struct HistoryWork {
  double rows = 0;   // sum of n - first
  double pairs = 0;  // sum of n^2 - first^2
  bool operator==(const HistoryWork&) const = default;
};
HistoryWork WorkOf(std::span<const size_t> first, std::span<const size_t> rows);

// a + b rows + c pairs, in seconds.
struct ComputeCost {
  double a = 0, b = 0, c = 0;
  double Seconds(const HistoryWork& work) const { return work.rows == 0 ? 0 : a + b * work.rows + c * work.pairs; }
};
// What real histories take over what was expected of them, lately: `slowness` after one more of `real` seconds for
// `expected` ones at that slowness. Moves a tenth of the way; a single outlier counts as at most four times too long or
// too short. The fit's histories are made up, and others may compute beside it.
double Corrected(double slowness, double expected, double real);
ComputeCost Times(double slowness, const ComputeCost& cost);

// fixed + bytes / rate, in seconds.
struct CopyCost {
  double fixed = 0, per_byte = 0;
  double Seconds(double bytes) const { return bytes == 0 ? 0 : fixed + per_byte * bytes; }
};

// Least squares of relative errors, no coefficient below zero. At least as many samples as coefficients, of different
// sizes; all times above zero.
struct ComputeSample {
  HistoryWork work;
  double seconds = 0;
};
ComputeCost FitCompute(std::span<const ComputeSample> samples);
struct CopySample {
  double bytes = 0;
  double seconds = 0;
};
CopyCost FitCopy(std::span<const CopySample> samples);

enum class StateSource { kCard, kHost, kTokens };

// What a user has where. A slower tier of pages (a disk) would be one more of the second pair.
struct StateOffer {
  HistoryWork after_card;  // rows to compute, given those on the card
  bool on_host = false;    // host memory has rows that the card has not
  HistoryWork after_host;  // rows to compute, given also those
  double host_bytes = 0;   // to copy for them
};
struct StateQueues {
  double copy_bytes = 0;       // ahead on the way to the card
  double compute_seconds = 0;  // ahead of the next history to be computed
};
struct StateCosts {
  ComputeCost compute;
  CopyCost copy;
};
struct StateChoice {
  StateSource source = StateSource::kCard;
  double seconds = 0;        // expected, waiting included
  double other_seconds = 0;  // of the way not taken; 0 if there was none
};
// kCard: nothing to copy and nothing to compute. Rows that only the tokens have are computed either way: kHost says
// that pages are copied first. On equal terms pages are copied, which leaves the card's processors to others.
StateChoice ChooseStateSource(const StateOffer& offer, const StateCosts& costs, const StateQueues& queues);

}  // namespace backstory::grab

#endif  // BACKSTORY_MODELS_GRAB_CUDA_STATE_COST_H_
