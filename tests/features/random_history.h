// Random user histories for property tests: exposures in requests, joined, late and stray actions, equal times.
#ifndef BACKSTORY_TESTS_FEATURES_RANDOM_HISTORY_H_
#define BACKSTORY_TESTS_FEATURES_RANDOM_HISTORY_H_

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "features/tokenizer.h"

namespace backstory::testing {

inline constexpr int64_t kSecondUs = 1'000'000;

// Click log: a class for no action, clicks, long dwells; two channels; half an hour of label window.
inline TokenizerConfig ClickConfig() {
  TokenizerConfig config;
  config.partial = {
      {.name = "item", .source = SparseSource::kItemId, .table = "item", .vocab = 1000},
      {.name = "genres", .source = SparseSource::kItemCategories, .table = "genre", .vocab = 50},
      {.name = "class", .source = SparseSource::kActionClass, .table = "class", .vocab = 8},
      {.name = "value", .source = SparseSource::kActionValue, .table = "value", .vocab = 18},
      {.name = "slot", .source = SparseSource::kPosition, .table = "slot", .vocab = 8},
      {.name = "scene", .source = SparseSource::kScene, .table = "scene", .vocab = 16},
      {.name = "device", .source = SparseSource::kEventContext, .attribute = "device", .table = "device", .vocab = 16}};
  config.full = {{.name = "item", .source = SparseSource::kItemId, .table = "item", .vocab = 1000}};
  config.actions = {{.action = ActionType::kDwell, .min_value = 30, .action_class = 3},
                    {.action = ActionType::kClick, .action_class = 2},
                    {.action = ActionType::kNone, .action_class = 1}};
  config.default_action_class = 0;
  config.label = {.action = ActionType::kClick, .unlabelled_is_negative = true};
  config.channels = {{.name = "all", .action_classes = {}}, {.name = "positive", .action_classes = {2, 3}}};
  config.label_window_us = 1800 * kSecondUs;
  return config;
}

struct RandomHistory {
  std::vector<Event> events;  // canonical order
  std::map<uint64_t, Item> items;
  ItemLookup Lookup() const {
    return [this](uint64_t id) -> const Item* {
      const auto found = items.find(id);
      return found == items.end() ? nullptr : &found->second;
    };
  }
};

inline Event RandomExposure(std::mt19937_64& random, int64_t time_us, uint64_t event_id, uint64_t request_id) {
  Event event;
  event.event_id = event_id;
  event.time_us = time_us;
  event.item_id = 1 + random() % 20;
  event.request_id = request_id;
  event.position = static_cast<uint32_t>(random() % 12);
  if (random() % 2 == 0) event.scene = "feed";
  if (random() % 3 == 0) event.context = {{"device", random() % 2 == 0 ? "phone" : "tv"}};
  return event;
}

// An action that mostly answers `exposure` properly, sometimes of another item, outside the window, or unknown.
inline Event RandomAction(std::mt19937_64& random, const Event& exposure, uint64_t event_id) {
  Event event;
  event.kind = EventKind::kAction;
  event.event_id = event_id;
  event.time_us = exposure.time_us + static_cast<int64_t>(random() % 2400) * kSecondUs;
  event.item_id = random() % 12 == 0 ? exposure.item_id + 1 : exposure.item_id;
  event.exposure_id = random() % 8 == 0 ? random() % 2 * 987654321 : exposure.event_id;
  const ActionType types[] = {ActionType::kClick, ActionType::kDwell, ActionType::kLike};
  event.action = types[random() % 3];
  event.value = static_cast<float>(random() % 60);
  return event;
}

// About `size` events over a few hours, event ids random, many equal times.
inline RandomHistory MakeHistory(std::mt19937_64& random, size_t size) {
  RandomHistory history;
  int64_t time_us = 1'000'000 * kSecondUs;
  while (history.events.size() < size) {
    time_us += static_cast<int64_t>(random() % 3 == 0 ? random() % 3000 : random() % 2) * kSecondUs;
    const uint64_t request_id = random() % 3 == 0 ? 0 : 1 + random() % 1'000'000;
    for (size_t shown = 1 + random() % 4; shown > 0; --shown) {
      const Event exposure = RandomExposure(random, time_us, 1 + random() % (uint64_t{1} << 40), request_id);
      history.events.push_back(exposure);
      for (size_t actions = random() % 3; actions > 0; --actions) {
        history.events.push_back(RandomAction(random, exposure, 1 + random() % (uint64_t{1} << 40)));
      }
    }
  }
  std::sort(history.events.begin(), history.events.end(), CanonicalLess);
  for (uint64_t id = 1; id <= 15; ++id) {  // items 16 to 21 are unknown
    Item item;
    item.item_id = id;
    if (id % 3 != 0) item.categories = {id % 2 == 0 ? "a0" : id % 4 == 1 ? "a1" : "a3", "b"};
    item.year = id % 2 == 0 ? 1990 + static_cast<int32_t>(id) : 0;
    history.items.emplace(id, std::move(item));
  }
  return history;
}

}  // namespace backstory::testing

#endif  // BACKSTORY_TESTS_FEATURES_RANDOM_HISTORY_H_
