// What synthetic users are fitted to: statistics of MovieLens ml-latest-small (610 users, 100,836 ratings), measured
// once.
//
// Each user's ratings were sorted by time; a gap over 30 minutes ends a session. A table holds the quantiles of the
// measured values at kShares; numbers are drawn by linear interpolation in it, so that no formula stands between the
// measurement and the result. Interests are fitted to how often two ratings of one user, k apart, share their item's
// first genre: 0.312 (k = 1), 0.298 (2), 0.285 (5), 0.257 (20), 0.228 (100), against 0.200 for two ratings of anybody.
// An interest held with probability kFollow that is given up with probability kRenew per event gives an excess of
// 0.08 exp(-k / 25); lasting tastes (a share kTaste of draws from three genres of the user's own) give the rest.
#ifndef BACKSTORY_SERVING_CLI_SYNTH_TABLES_H_
#define BACKSTORY_SERVING_CLI_SYNTH_TABLES_H_

#include <array>
#include <cstddef>
#include <string_view>

namespace backstory::synth {

inline constexpr size_t kPoints = 15;
using Quantiles = std::array<double, kPoints>;
inline constexpr Quantiles kShares = {0, .01, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .99, 1};

// Seconds between two ratings of one session that are not at the same second.
inline constexpr Quantiles kWithinSessionSec = {1, 1, 2, 3, 4, 6, 9, 13, 19, 27, 40, 79, 149, 528, 1791};
// Seconds between two sessions.
inline constexpr Quantiles kBetweenSessionsSec = {1806,   2304,   5539,    12061,   62724,   90074,    175054,   313304,
                                                  507661, 709444, 1323499, 3203413, 7010764, 30417773, 211146332};
// Ratings in a session, and of a user.
inline constexpr Quantiles kSessionEvents = {1, 1, 1, 1, 1, 1, 1, 2, 2, 4, 10, 34, 73, 211, 1019};
inline constexpr Quantiles kUserEvents = {20, 20, 22, 24, 32, 40, 54, 71, 101, 140, 216, 400, 613, 1260, 2698};

// Share of within-session gaps that are 0 s: such ratings form one page.
inline constexpr double kSamePage = 0.1685;

inline constexpr double kFollow = 0.32;  // an event follows the current interest
inline constexpr double kRenew = 0.04;   // after an event the current interest is drawn anew
inline constexpr double kTaste = 0.295;  // a draw comes from the user's own three genres

// Share of ratings by first genre of the item.
struct Genre {
  std::string_view name;
  double share;
};
inline constexpr std::array<Genre, 18> kGenres = {{{"Action", .3038},
                                                   {"Comedy", .2501},
                                                   {"Drama", .1693},
                                                   {"Adventure", .1026},
                                                   {"Crime", .0656},
                                                   {"Animation", .0253},
                                                   {"Horror", .0244},
                                                   {"Children", .0208},
                                                   {"Documentary", .0101},
                                                   {"Mystery", .0097},
                                                   {"Thriller", .0062},
                                                   {"Sci-Fi", .0034},
                                                   {"Fantasy", .0031},
                                                   {"Western", .0015},
                                                   {"Musical", .0013},
                                                   {"Romance", .0012},
                                                   {"Film-Noir", .0011},
                                                   {"War", .0005}}};

// Popularity of the item of rank r of 9,724 is (r + 300)^-1.5: the top 1 % of items get 16 % of events (measured 16 %),
// the top 10 % get 62 % (measured 60 %).
inline constexpr double kPopularityOffset = 300.0 / 9724.0;  // times the number of items

// ---- Not measured: the real set has no exposures. ----
inline constexpr double kLateClick = 0.1;  // share of clicks that come late, 5 minutes to 6 hours after the exposure
inline constexpr double kDwell = 0.5;      // share of clicks with a dwell time

}  // namespace backstory::synth

#endif  // BACKSTORY_SERVING_CLI_SYNTH_TABLES_H_
