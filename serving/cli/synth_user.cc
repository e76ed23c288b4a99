#include "serving/cli/synth_user.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "features/hash.h"
#include "serving/cli/synth_tables.h"

namespace backstory {
namespace {

constexpr int64_t kSecondUs = 1'000'000;
constexpr uint64_t kEventsMax = 10'000'000;  // of one user

// splitmix64: a counter through a mixing function.
class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  bool Chance(double p) { return Uniform() < p; }
  uint64_t Below(uint64_t n) { return Next() % n; }

 private:
  uint64_t state_;
};

double Quantile(const synth::Quantiles& table, double share) {
  const auto above = std::upper_bound(synth::kShares.begin() + 1, synth::kShares.end() - 1, share);
  const auto i = static_cast<size_t>(above - synth::kShares.begin());
  const double part = (share - synth::kShares[i - 1]) / (synth::kShares[i] - synth::kShares[i - 1]);
  return table[i - 1] + part * (table[i] - table[i - 1]);
}

int GenreByShare(double draw) {
  for (int g = 0; g + 1 < SynthWorld::kGenres; ++g) {
    draw -= synth::kGenres[static_cast<size_t>(g)].share;
    if (draw < 0) return g;
  }
  return SynthWorld::kGenres - 1;
}

uint64_t Length(const LengthRange& range, Draws* draws) {
  if (range.movielens) return static_cast<uint64_t>(Quantile(synth::kUserEvents, draws->Uniform()));
  if (range.low == range.high) return range.low;
  // Every doubling from low to high is equally likely, and evenly filled.
  std::vector<uint64_t> edges = {range.low};
  while (edges.back() < range.high) edges.push_back(std::min(range.high, edges.back() * 2));
  const size_t i = draws->Below(edges.size() - 1);
  return edges[i] + draws->Below(edges[i + 1] - edges[i] + 1);
}

// One user as it grows. Times are seconds from the first event until Finish moves them.
class UserMaker {
 public:
  UserMaker(const SynthWorld& world, const SynthOptions& options, uint64_t index)
      : world_(world), options_(options), draws_(HashU64(index, HashBytes("synthetic user", options.seed))) {
    for (int& taste : tastes_) taste = GenreByShare(draws_.Uniform());
    interest_ = DrawGenre();
    eagerness_ = 0.5 + draws_.Uniform();
    length_ = Length(options.lengths, &draws_);
    first_event_id_ = draws_.Next();
  }

  std::vector<Event> Make() {
    int64_t session_start_sec = 0;
    while (events_.size() < length_) {
      starts_.push_back(events_.size());
      AddSession(session_start_sec);
      const int64_t gap_sec = static_cast<int64_t>(Quantile(synth::kBetweenSessionsSec, draws_.Uniform()));
      gaps_sec_.push_back(gap_sec);
      session_start_sec = newest_sec_ + gap_sec;
    }
    Finish();
    return std::move(events_);
  }

 private:
  int DrawGenre() { return draws_.Chance(synth::kTaste) ? tastes_[draws_.Below(3)] : GenreByShare(draws_.Uniform()); }
  uint64_t NewEventId() {
    const uint64_t id = HashU64(next_event_++, first_event_id_);
    return id == 0 ? 1 : id;
  }

  void AddSession(int64_t start_sec) {
    const auto shown = static_cast<uint64_t>(Quantile(synth::kSessionEvents, draws_.Uniform()));
    const std::string device = draws_.Chance(0.7) ? "phone" : "tv";
    int64_t now_sec = start_sec;
    uint64_t request_id = 0;
    uint32_t position = 0;
    for (uint64_t i = 0; i < shown && events_.size() < length_; ++i) {
      const bool same_page = i > 0 && draws_.Chance(synth::kSamePage);
      if (i > 0 && !same_page) now_sec += static_cast<int64_t>(Quantile(synth::kWithinSessionSec, draws_.Uniform()));
      if (!same_page) request_id = std::max<uint64_t>(1, draws_.Next());
      position = same_page ? position + 1 : 1;
      AddExposure(now_sec, request_id, position, device);
    }
    newest_sec_ = now_sec;
  }

  void AddExposure(int64_t now_sec, uint64_t request_id, uint32_t position, const std::string& device) {
    const bool follows = draws_.Chance(synth::kFollow);
    const int genre = follows ? interest_ : DrawGenre();
    if (draws_.Chance(synth::kRenew)) interest_ = DrawGenre();
    const size_t item = world_.Pick(genre, draws_.Uniform());
    Event event;
    event.event_id = NewEventId();
    event.time_us = now_sec * kSecondUs;
    event.item_id = world_.items()[item].item_id;
    event.request_id = request_id;
    event.position = position;
    event.scene = "feed";
    event.context = {{"device", device}};
    const uint64_t exposure_id = event.event_id;
    events_.push_back(std::move(event));
    // 1.52 in the mean for the interest that is followed, 0.76 else: 1 over all exposures.
    const double fit = follows ? 1.52 : 0.76;
    const double p = options_.click_rate * world_.QualityOf(item) * eagerness_ * fit;
    if (draws_.Chance(p)) AddClick(now_sec, world_.items()[item].item_id, exposure_id);
  }

  void AddClick(int64_t shown_sec, uint64_t item_id, uint64_t exposure_id) {
    const bool late = draws_.Chance(synth::kLateClick);
    const uint64_t delay_sec = late ? 300 + draws_.Below(6 * 3600 - 300) : 1 + draws_.Below(60);
    Event click;
    click.kind = EventKind::kAction;
    click.event_id = NewEventId();
    click.time_us = (shown_sec + static_cast<int64_t>(delay_sec)) * kSecondUs;
    click.item_id = item_id;
    click.exposure_id = exposure_id;
    click.action = ActionType::kClick;
    events_.push_back(click);
    if (!draws_.Chance(synth::kDwell)) return;
    click.event_id = NewEventId();
    click.action = ActionType::kDwell;
    click.value = static_cast<float>(1 + draws_.Below(300));
    click.time_us += static_cast<int64_t>(click.value) * kSecondUs;
    events_.push_back(click);
  }

  // Shortens the gaps between sessions if the whole is too long, and moves it to its place in time.
  void Finish() {
    const double span_sec = options_.span_days_max * 86400;
    double between_sec = 0;
    for (size_t s = 0; s + 1 < gaps_sec_.size(); ++s) between_sec += static_cast<double>(gaps_sec_[s]);
    const double active_sec = static_cast<double>(newest_sec_) - between_sec;
    double keep = between_sec > 0 ? (span_sec - active_sec) / between_sec : 1;
    keep = std::clamp(keep, 0.0, 1.0);
    int64_t removed_sec = 0;
    for (size_t s = 0; s < starts_.size(); ++s) {
      const size_t end = s + 1 < starts_.size() ? starts_[s + 1] : events_.size();
      for (size_t i = starts_[s]; i < end; ++i) events_[i].time_us -= removed_sec * kSecondUs;
      // A session never begins before the one before it ended: 30 minutes of every gap stay.
      const int64_t kept_sec = std::max<int64_t>(1801, static_cast<int64_t>(keep * static_cast<double>(gaps_sec_[s])));
      if (keep < 1) removed_sec += gaps_sec_[s] - kept_sec;
    }
    int64_t newest_us = 0;
    for (const Event& event : events_) newest_us = std::max(newest_us, event.time_us);
    const auto idle_sec = static_cast<int64_t>(draws_.Below(30 * 86400));
    const int64_t shift_us = options_.end_us - idle_sec * kSecondUs - newest_us;
    for (Event& event : events_) event.time_us = std::max<int64_t>(0, event.time_us + shift_us);
    std::sort(events_.begin(), events_.end(), CanonicalLess);
  }

  const SynthWorld& world_;
  const SynthOptions& options_;
  Draws draws_;
  int tastes_[3] = {0, 0, 0};
  int interest_ = 0;
  double eagerness_ = 1;  // 0.5 to 1.5, mean 1
  uint64_t length_ = 0, first_event_id_ = 0, next_event_ = 0;
  int64_t newest_sec_ = 0;
  std::vector<Event> events_;
  std::vector<size_t> starts_;     // first event of each session
  std::vector<int64_t> gaps_sec_;  // after each session
};

}  // namespace

absl::StatusOr<LengthRange> ParseLengths(std::string_view text) {
  LengthRange range;
  if (text == "movielens") {
    range.movielens = true;
    return range;
  }
  const auto number = [](std::string_view part, uint64_t* out) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), *out);
    return error == std::errc() && end == part.data() + part.size() && !part.empty();
  };
  const size_t dash = text.find('-');
  const bool two = dash != std::string_view::npos;
  if (!number(text.substr(0, dash), &range.low) || (two && !number(text.substr(dash + 1), &range.high))) {
    return absl::InvalidArgumentError(
        absl::StrCat("events per user '", std::string(text), "': N, LOW-HIGH or movielens needed"));
  }
  if (!two) range.high = range.low;
  if (range.low < 1 || range.high < range.low || range.high > kEventsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("events per user '", std::string(text), "': 1 <= LOW <= HIGH <= ", kEventsMax, " needed"));
  }
  return range;
}

SynthWorld::SynthWorld(const SynthOptions& options) : of_genre_(kGenres + 1), cumulative_(kGenres + 1) {
  Draws draws(HashBytes("synthetic catalog", options.seed));
  const double offset = synth::kPopularityOffset * static_cast<double>(options.items);
  for (uint64_t rank = 0; rank < options.items; ++rank) {
    Item item;
    item.item_id = rank + 1;
    const int genre = GenreByShare(draws.Uniform());
    item.categories.emplace_back(synth::kGenres[static_cast<size_t>(genre)].name);
    for (uint64_t more = draws.Below(3); more > 0; --more) {
      const auto other = synth::kGenres[draws.Below(kGenres)].name;
      if (std::find(item.categories.begin(), item.categories.end(), other) == item.categories.end()) {
        item.categories.emplace_back(other);
      }
    }
    item.year = 1950 + static_cast<int32_t>(draws.Below(69));
    item.title = absl::StrCat("Synthetic item ", item.item_id);
    genre_.push_back(genre);
    quality_.push_back(0.4 + 1.2 * draws.Uniform());
    const double base = static_cast<double>(rank) + 1 + offset;
    const double weight = 1 / (base * std::sqrt(base));
    for (const size_t group : {static_cast<size_t>(genre), static_cast<size_t>(kGenres)}) {
      of_genre_[group].push_back(rank);
      cumulative_[group].push_back((cumulative_[group].empty() ? 0 : cumulative_[group].back()) + weight);
    }
    items_.push_back(std::move(item));
  }
}

size_t SynthWorld::Pick(int genre, double draw) const {
  size_t group = genre < 0 ? kGenres : static_cast<size_t>(genre);
  if (of_genre_[group].empty()) group = kGenres;
  const std::vector<double>& cumulative = cumulative_[group];
  const auto at = std::upper_bound(cumulative.begin(), cumulative.end() - 1, draw * cumulative.back());
  return of_genre_[group][static_cast<size_t>(at - cumulative.begin())];
}

SynthUser MakeSynthUser(const SynthWorld& world, const SynthOptions& options, uint64_t index) {
  return {absl::StrCat("synthetic-", index + 1), UserMaker(world, options, index).Make()};
}

}  // namespace backstory
