// Small GLASS versions with random weights and catalogues.
#ifndef BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "models/glass/catalogue.h"
#include "models/glass/config.h"
#include "models/tensor_map.h"

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
    for (size_t l = 0; l < kLevels; ++l) sid[l] = static_cast<uint16_t>(random() % static_cast<uint32_t>(config.levels[l]));
    sids.push_back(sid);
  }
  auto catalogue = Catalogue::Create(config, {ids, sids, embeddings, {}, {}});
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  return *std::move(catalogue);
}

// Every tensor of the configuration, N(0, 1 / fan in) or so: well conditioned, nothing meant by it.
inline TensorMap RandomTensors(const Config& c, uint32_t seed) {
  std::mt19937 random(seed);
  TensorMap map;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float spread) {
    std::normal_distribution<float> normal(0, spread);
    size_t size = 1;
    for (const int64_t dimension : shape) size *= static_cast<size_t>(dimension);
    std::vector<float> values(size);
    for (float& value : values) value = (name.ends_with("norm") ? 1.0f : 0.0f) + normal(random);
    EXPECT_TRUE(map.Add(name, std::move(shape), std::move(values)).ok());
  };
  const int64_t d = c.d, inner = static_cast<int64_t>(c.inner());
  add("token_embedding", {c.vocabulary, d}, 0.6f);
  if (c.bins() > 0) {
    add("tier.w1", {d, c.levels[0] * static_cast<int64_t>(c.bins())}, 0.4f);
    add("tier.b1", {d}, 0.1f);
    add("tier.w2", {d, d}, 0.2f);
    add("tier.b2", {d}, 0.1f);
  }
  if (c.retrieved_items > 0) {
    add("retrieved.w", {d, d}, 0.2f);
    add("retrieved.b", {d}, 0.1f);
  }
  const auto attention = [&](const std::string& prefix) {
    for (const char* part : {".q", ".k", ".v"}) add(prefix + part, {inner, d}, 0.15f);
    add(prefix + ".o", {d, inner}, 0.15f);
  };
  const auto ffn = [&](const std::string& prefix) {
    add(prefix + ".ffn.norm", {d}, 0.1f);
    add(prefix + ".ffn.w1", {c.ffn, d}, 0.2f);
    add(prefix + ".ffn.w2", {d, c.ffn}, 0.2f);
  };
  for (int i = 0; i < c.encoder_layers; ++i) {
    const std::string p = "enc." + std::to_string(i);
    add(p + ".self.norm", {d}, 0.1f);
    attention(p + ".self");
    if (i == 0) add(p + ".self.rel_bias", {c.relative_buckets, c.heads}, 0.3f);
    ffn(p);
  }
  for (int i = 0; i < c.decoder_layers; ++i) {
    const std::string p = "dec." + std::to_string(i);
    add(p + ".self.norm", {d}, 0.1f);
    attention(p + ".self");
    if (i == 0) add(p + ".self.rel_bias", {c.relative_buckets, c.heads}, 0.3f);
    add(p + ".cross.norm", {d}, 0.1f);
    attention(p + ".memory");
    if (c.retrieved_items > 0) {
      attention(p + ".retrieved");
      add(p + ".gate.w", {d, 2 * d}, 0.3f);
      add(p + ".gate.b", {d}, 0.3f);
    }
    ffn(p);
  }
  add("enc.final_norm", {d}, 0.1f);
  add("dec.final_norm", {d}, 0.1f);
  return map;
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_GLASS_FIXTURE_H_
