// Splits real histories by time, for measuring a served model on events it was not trained on. Pure, thread-safe.
#ifndef BACKSTORY_SERVING_CLI_HELD_OUT_H_
#define BACKSTORY_SERVING_CLI_HELD_OUT_H_

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "features/io/import_file.h"
#include "features/tokenizer_config.h"

namespace backstory {

// A labelled event of one user.
struct LabelledEvent {
  Event event;
  bool positive = false;
  double item_rate = 0.5;  // smoothed share of positives of its item over all users, strictly before its time
};

struct UserHistory {
  std::string user;
  std::vector<LabelledEvent> events;  // canonical order
  size_t held_out = 0;                // events[held_out ..] are the newest part
};

// Labels actions of `rule.action` (positive: value >= rule.min_value; other events are left out), groups them by user,
// and cuts each user at `fraction` of its events: floor(fraction n), moved earlier until no tie group (same request, else
// same time) straddles the cut. The split that models/training/shards.py makes. Users come in order of first appearance.
std::vector<UserHistory> SplitByTime(std::span<const ImportedEvent> events, const LabelRule& rule, double fraction);

// Users worth showing to a person: `count` of them, from the longest history down to the median one, each with at least
// `each` held-out positives and `each` held-out negatives. Indices into `users`.
std::vector<size_t> Showcase(std::span<const UserHistory> users, size_t count, size_t each);

// Held-out events of a showcased user: the first `each` positives and the first `each` negatives, in canonical order.
std::vector<size_t> ShowcaseEvents(const UserHistory& user, size_t each);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_HELD_OUT_H_
