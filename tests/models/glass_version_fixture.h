// Small generative version directories with random weights, whole or with one thing wrong.
#ifndef BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "features/event.h"
#include "models/glass/golden.h"
#include "models/glass/loader.h"
#include "models/glass/quantiser.h"
#include "models/glass/random_version.h"
#include "models/manifest.h"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {

inline Event RatingOf(uint64_t event_id, uint64_t item_id, int64_t time_us, float value = 5) {
  Event event;
  event.kind = EventKind::kAction;
  event.event_id = event_id;
  event.item_id = item_id;
  event.time_us = time_us;
  event.action = ActionType::kRating;
  event.value = value;
  return event;
}

// `name`: the repository's folder. Item i has id 1000 + 3 i. `change`: of the configuration, before anything is
// made of it.
inline VersionParts MakeParts(const std::string& name = "tiny", size_t items = 60, uint32_t seed = 5,
                              const std::function<void(Config*)>& change = nullptr) {
  Config c = SmallConfig();
  c.name = name;
  c.beam = 8;
  c.history = {{ActionType::kRating, 4.0f}};
  c.quantiser = QuantiserKind::kRqKMeans;
  c.quantiser_latent = c.embedding_width;
  if (change) change(&c);
  auto parts = RandomParts(c, items, seed, 1000, 3);
  EXPECT_TRUE(parts.ok()) << parts.status();
  return *std::move(parts);
}

inline void WriteText(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

inline void MustWrite(const VersionParts& parts, const std::string& path) {
  const absl::Status written = WriteParts(parts, path);
  EXPECT_TRUE(written.ok()) << written;
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_
