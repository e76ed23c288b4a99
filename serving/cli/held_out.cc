#include "serving/cli/held_out.h"

#include <algorithm>
#include <cmath>

#include "features/tokenizer.h"

namespace backstory {
namespace {

constexpr double kRatePrior = 0.5, kRatePriorWeight = 20;

size_t CutBeforeTies(const std::vector<LabelledEvent>& events, double fraction) {
  // Rounded to 1e-9 first, so that 0.7 + 0.1 cuts like 0.8.
  const double exact = std::round(fraction * static_cast<double>(events.size()) * 1e9) / 1e9;
  size_t cut = static_cast<size_t>(std::floor(exact));
  const auto tie = [&](size_t i) { return TieKey(events[i].event.request_id, events[i].event.time_us); };
  while (cut > 0 && cut < events.size() && tie(cut) == tie(cut - 1)) --cut;
  return cut;
}

// One sweep over all users in time order; events of one moment do not see each other.
void FillItemRates(std::vector<UserHistory>* users) {
  std::vector<LabelledEvent*> order;
  for (UserHistory& user : *users) {
    for (LabelledEvent& labelled : user.events) order.push_back(&labelled);
  }
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return CanonicalLess(a->event, b->event); });
  struct Counts {
    double n = 0, positives = 0;
  };
  std::unordered_map<uint64_t, Counts> items;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    for (; end < order.size() && order[end]->event.time_us == order[begin]->event.time_us; ++end) {
      const Counts& c = items[order[end]->event.item_id];
      order[end]->item_rate = (c.positives + kRatePrior * kRatePriorWeight) / (c.n + kRatePriorWeight);
    }
    for (; begin < end; ++begin) {
      Counts& c = items[order[begin]->event.item_id];
      c.n += 1;
      c.positives += order[begin]->positive;
    }
  }
}

size_t HeldOutOf(const UserHistory& user, bool positive) {
  return static_cast<size_t>(std::count_if(user.events.begin() + static_cast<std::ptrdiff_t>(user.held_out),
                                           user.events.end(),
                                           [&](const LabelledEvent& e) { return e.positive == positive; }));
}

}  // namespace

std::vector<UserHistory> SplitByTime(std::span<const ImportedEvent> events, const LabelRule& rule, double fraction) {
  std::vector<UserHistory> users;
  std::unordered_map<std::string, size_t> index;
  for (const ImportedEvent& imported : events) {
    if (imported.event.kind != EventKind::kAction || imported.event.action != rule.action) continue;
    const auto [it, fresh] = index.try_emplace(imported.user, users.size());
    if (fresh) users.push_back({imported.user, {}, 0});
    users[it->second].events.push_back({imported.event, imported.event.value >= rule.min_value});
  }
  for (UserHistory& user : users) {
    std::sort(user.events.begin(), user.events.end(),
              [](const auto& a, const auto& b) { return CanonicalLess(a.event, b.event); });
    user.held_out = CutBeforeTies(user.events, fraction);
  }
  FillItemRates(&users);
  return users;
}

std::vector<size_t> Showcase(std::span<const UserHistory> users, size_t count, size_t each) {
  std::vector<size_t> fit;
  for (size_t i = 0; i < users.size(); ++i) {
    if (HeldOutOf(users[i], true) >= each && HeldOutOf(users[i], false) >= each) fit.push_back(i);
  }
  std::stable_sort(fit.begin(), fit.end(),
                   [&](size_t a, size_t b) { return users[a].events.size() > users[b].events.size(); });
  std::vector<size_t> chosen;
  for (size_t k = 0; k < count && k < fit.size(); ++k) {
    chosen.push_back(fit[count > 1 ? k * ((fit.size() - 1) / 2) / (count - 1) : 0]);
  }
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  return chosen;
}

std::vector<size_t> ShowcaseEvents(const UserHistory& user, size_t each) {
  std::vector<size_t> chosen;
  size_t taken[2] = {0, 0};
  for (size_t i = user.held_out; i < user.events.size(); ++i) {
    if (taken[user.events[i].positive]++ < each) chosen.push_back(i);
  }
  return chosen;
}

}  // namespace backstory
