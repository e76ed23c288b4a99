// The public GLASS implementation's cases in tests/conformance/glass, ready to run.
#ifndef BACKSTORY_TESTS_MODELS_GLASS_CONFORMANCE_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GLASS_CONFORMANCE_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "models/glass/beam_search.h"
#include "models/safetensors.h"

namespace backstory::glass {

// The README's bounds for fp32 code against the fp64 run.
inline constexpr double kMemoryBound = 5e-5, kLogitBound = 3e-4, kScoreBound = 2e-4;

inline std::string Path(const std::string& name) {
  const char* root = std::getenv("BACKSTORY_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/tests/conformance/glass/" + name;
}

inline SafetensorsFile Open(const std::string& name) {
  auto file = SafetensorsFile::Open(Path(name));
  EXPECT_TRUE(file.ok()) << file.status();
  return *file;
}

template <typename T>
std::vector<T> Read(const SafetensorsFile& file, const std::string& name) {
  auto values = file.Read<T>(name);
  EXPECT_TRUE(values.ok()) << values.status();
  return values.ok() ? *values : std::vector<T>();
}

// Cases: every file that names its weights. More can be dropped into the folder.
inline std::vector<std::string> Cases() {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(Path(""))) {
    if (entry.path().extension() != ".safetensors") continue;
    auto file = SafetensorsFile::Open(entry.path().string());
    if (file.ok() && file->metadata().contains("weights")) cases.push_back(entry.path().filename().string());
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

struct Version {
  Config config;
  TensorMap tensors;
  std::unique_ptr<const Network> network;
  std::unique_ptr<const Catalogue> catalogue;
};

inline Config ConfigOf(const SafetensorsFile& weights) {
  const auto json = nlohmann::json::parse(weights.metadata().at("config"));
  Config c;
  c.d = json["d_model"];
  c.heads = json["heads"];
  c.d_kv = json["d_kv"];
  c.ffn = json["ffn"];
  c.encoder_layers = json["enc_layers"];
  c.decoder_layers = json["dec_layers"];
  for (size_t l = 0; l < kLevels; ++l) c.levels[l] = json["levels"][l];
  c.vocabulary = json["vocab"];
  c.short_items = json["short_items"];
  c.retrieved_items = json["retrieved_items"];
  c.tier_edges = json["tier_edges"].get<std::vector<float>>();
  c.relative_buckets = json["rel_buckets"];
  c.relative_distance_max = json["rel_max_distance"];
  c.beam = json["beam"];
  EXPECT_EQ(c.bos(), json["bos"].get<uint32_t>());
  EXPECT_EQ(c.stride(), json["stride"].get<uint32_t>());
  return c;
}

inline Version LoadVersion(const std::string& weights_name, const std::string& catalogue_name) {
  Version v;
  const SafetensorsFile weights = Open(weights_name), items = Open(catalogue_name);
  v.config = ConfigOf(weights);
  const std::vector<float> embeddings = Read<float>(items, "item.embedding"),
                           prototypes = Read<float>(items, "prototype");
  v.config.embedding_width = static_cast<int>(items.Find("item.embedding")->shape[1]);
  EXPECT_TRUE(Validate(v.config).ok()) << Validate(v.config);
  EXPECT_TRUE(weights.AddTo(&v.tensors).ok());
  auto network = Network::Create(v.config, v.tensors);
  EXPECT_TRUE(network.ok()) << network.status();
  v.network = *std::move(network);
  const std::vector<int64_t> codes = Read<int64_t>(items, "item.sid");
  std::vector<uint64_t> ids;
  std::vector<Sid> sids;
  for (size_t i = 0; i * kLevels < codes.size(); ++i) {
    ids.push_back(i);
    sids.push_back({static_cast<uint16_t>(codes[3 * i]), static_cast<uint16_t>(codes[3 * i + 1]),
                    static_cast<uint16_t>(codes[3 * i + 2])});
  }
  auto catalogue = Catalogue::Create(v.config, {ids, sids, embeddings, prototypes, {}});
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  v.catalogue = *std::move(catalogue);
  return v;
}

inline void ExpectNear(const std::vector<double>& want, const float* got, size_t n, double bound,
                       const std::string& what) {
  ASSERT_EQ(want.size(), n) << what;
  size_t worst = 0;
  for (size_t i = 1; i < n; ++i) {
    if (std::abs(want[i] - got[i]) > std::abs(want[worst] - got[worst])) worst = i;
  }
  EXPECT_LE(std::abs(want[worst] - got[worst]), bound)
      << what << ": worst at " << worst << ", expected " << want[worst] << ", found " << got[worst];
}

struct Case {
  SafetensorsFile file;
  Version version;
  History history;
  std::vector<uint32_t> short_tokens;  // without the left padding
  std::vector<float> tier;
};

inline Case LoadCase(const std::string& name) {
  const SafetensorsFile file = Open(name);
  Version version = LoadVersion(file.metadata().at("weights"), file.metadata().at("catalogue"));
  History history(version.catalogue.get());
  std::vector<uint32_t> tokens;
  for (const int64_t token : Read<int64_t>(file, "in.short_tokens")) {
    if (token != 0 || !tokens.empty()) tokens.push_back(static_cast<uint32_t>(token));
  }
  // Whole behaviours: a behaviour of SID (0, 0, 0) at the old end is pads too, and then indistinguishable from padding.
  while (tokens.size() % kLevels != 0) tokens.insert(tokens.begin(), 0);
  for (const int64_t row : Read<int64_t>(file, "in.long_items")) history.Append(static_cast<uint32_t>(row));
  // What is appended after them pushes exactly these out of the short window.
  for (int i = 0; i < version.config.short_items; ++i) history.Append(0);
  std::vector<float> tier(static_cast<size_t>(version.config.levels[0]) * version.config.bins());
  history.TierFeatures(tier.data());
  return {file, std::move(version), std::move(history), std::move(tokens), std::move(tier)};
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_GLASS_CONFORMANCE_FIXTURE_H_
