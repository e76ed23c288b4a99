// Small GLASS versions with random weights and catalogues.
#ifndef BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "models/glass/catalogue.h"
#include "models/glass/config.h"
#include "models/glass/random_version.h"

namespace backstory::glass {

inline Config SmallConfig() {
  Config c;
  c.d = 24;
  c.heads = 2;
  c.d_kv = 12;
  c.ffn = 40;
  c.encoder_layers = 2;
  c.decoder_layers = 2;
  c.levels = {6, 9, 11};
  c.vocabulary = 40;
  c.short_items = 6;
  c.retrieved_items = 5;
  c.embedding_width = 8;
  return c;
}

inline std::unique_ptr<const Catalogue> RandomCatalogue(const Config& config, size_t items, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.3f);
  std::vector<uint64_t> ids;
  std::vector<Sid> sids;
  std::vector<float> embeddings(items * static_cast<size_t>(config.embedding_width));
  for (float& value : embeddings) value = normal(random);
  for (size_t i = 0; i < items; ++i) {
    ids.push_back(1000 + 3 * i);
    Sid sid;
    for (size_t l = 0; l < kLevels; ++l)
      sid[l] = static_cast<uint16_t>(random() % static_cast<uint32_t>(config.levels[l]));
    sids.push_back(sid);
  }
  auto catalogue = Catalogue::Create(config, {ids, sids, embeddings, {}, {}});
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  return *std::move(catalogue);
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_
