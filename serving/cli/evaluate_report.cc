#include "serving/cli/evaluate_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace backstory {
namespace {

std::string Title(const Titles& titles, uint64_t item) {
  const auto it = titles.find(item);
  return it == titles.end() ? fmt::format("item {}", item) : it->second;
}

// Cuts at a UTF-8 boundary.
std::string Fit(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t end = bytes - 1;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "~";
}

// The past events with the largest attention mass, over all channels, each event once.
std::string Reasons(const UserHistory& user, const v1::Explanation& explanation, const Titles& titles, size_t count) {
  std::string text;
  std::vector<uint64_t> seen;
  for (const v1::Attribution& past : explanation.events()) {
    if (std::find(seen.begin(), seen.end(), past.event_id()) != seen.end()) continue;
    seen.push_back(past.event_id());
    const auto known = std::find_if(user.events.begin(), user.events.end(),
                                    [&](const LabelledEvent& e) { return e.event.event_id == past.event_id(); });
    text += fmt::format("{}{}", text.empty() ? "" : ", ", Fit(Title(titles, past.item_id()), 30));
    if (known != user.events.end()) text += fmt::format(" {:g}*", known->event.value);
    text += fmt::format(" ({:.0f}%)", 100 * past.mass());
    if (seen.size() == count) break;
  }
  return text;
}

}  // namespace

std::string CacheLine(const v1::CacheReport& cache) {
  return fmt::format("{}: {} K/V rows reused, {} computed, tier {}, {:.2f} MB of state", cache.source(),
                     cache.rows_reused(), cache.rows_computed(), cache.tier(),
                     static_cast<double>(cache.state_bytes()) / 1e6);
}

std::string ShowcaseTable(const UserHistory& user, std::span<const size_t> shown, const v1::RankResponse& response,
                          const Titles& titles) {
  std::vector<int> order(shown.size());
  std::iota(order.begin(), order.end(), 0);
  const auto& p = response.scores(0).calibrated();
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
  std::string text = fmt::format("user {}: {} ratings in the store, {} of them before the first held-out one\n",
                                 user.user, user.events.size(), user.held_out);
  text += fmt::format("  {:<40} {:>6}  {:<11} driven by (attention mass)\n", "held-out movie", "P(like)", "truth");
  for (const int i : order) {
    const LabelledEvent& event = user.events[shown[static_cast<size_t>(i)]];
    const std::string reasons =
        i < response.explanations_size() ? Reasons(user, response.explanations(i), titles, 2) : "";
    text += fmt::format("  {:<40} {:>6.1f}%  {} {:<6g} {}\n", Fit(Title(titles, event.event.item_id), 40), 100 * p[i],
                        event.positive ? "liked" : "no   ", event.event.value, reasons);
  }
  return text + fmt::format("  cache {}\n", CacheLine(response.cache()));
}

}  // namespace backstory
