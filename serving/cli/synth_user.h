// Made-up users with long histories: exposures in pages, clicks now and later, sessions, interests that come back.
// docs/reference/synth.md says which statistics are fitted to real data and which are assumptions.
//
// Deterministic to the bit on every machine: 64-bit integers and + - * / sqrt of doubles only, never libm.
#ifndef BACKSTORY_SERVING_CLI_SYNTH_USER_H_
#define BACKSTORY_SERVING_CLI_SYNTH_USER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/item.h"

namespace backstory {

// How many events a user gets: "5000" (all the same), "1000-100000" (every doubling equally likely), "movielens" (as
// the real set: 20 to 2,698, half of the users below 71).
struct LengthRange {
  uint64_t low = 1000, high = 100'000;
  bool movielens = false;
};
absl::StatusOr<LengthRange> ParseLengths(std::string_view text);

struct SynthOptions {
  uint64_t seed = 1;
  LengthRange lengths;
  uint64_t items = 10'000;
  double click_rate = 0.15;                // mean share of exposures that are clicked; 0.001 to 0.4
  double span_days_max = 3 * 365;          // longer histories have their between-session gaps shortened to fit
  int64_t end_us = 1'537'800'000'000'000;  // newest possible event, 2018-09-24 (the end of the real set)
};

// The catalog and the popularity of its items; shared by all users, read-only.
class SynthWorld {
 public:
  static constexpr int kGenres = 18;
  explicit SynthWorld(const SynthOptions& options);
  const std::vector<Item>& items() const { return items_; }

  // An item of the genre (or of any, if genre < 0) by popularity; `draw` is uniform in [0, 1).
  size_t Pick(int genre, double draw) const;
  int GenreOf(size_t item) const { return genre_[item]; }
  double QualityOf(size_t item) const { return quality_[item]; }  // 0.4 to 1.6, mean 1

 private:
  std::vector<Item> items_;
  std::vector<int> genre_;  // first category of the item
  std::vector<double> quality_;
  std::vector<std::vector<size_t>> of_genre_;    // items of a genre; the last entry: all
  std::vector<std::vector<double>> cumulative_;  // their popularity, cumulated
};

struct SynthUser {
  std::string user;
  std::vector<Event> events;  // canonical order
};

// User number `index`; depends on the options and the index alone, not on how many users are made.
SynthUser MakeSynthUser(const SynthWorld& world, const SynthOptions& options, uint64_t index);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SYNTH_USER_H_
