// Writes small generative version directories with random weights, whole or with one thing wrong.
#ifndef BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_
#define BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "features/io/event_json.h"
#include "models/glass/golden.h"
#include "models/glass/loader.h"
#include "models/glass/quantiser.h"
#include "models/manifest.h"
#include "models/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/models/glass_fixture.h"

namespace backstory::glass {

// Everything a version is made of, open to edits before it is written.
struct VersionParts {
  Config config;
  TensorMap weights;
  std::map<std::string, std::vector<float>> quantiser;
  std::vector<float> embeddings;  // [items][width]: not in the files; what the SIDs were made of
  std::vector<int64_t> item_ids;
  std::vector<Sid> sids;
  std::vector<uint8_t> tier_bins;
  std::vector<float> prior;
  std::string extra_config;  // appended to model.textproto
  std::string goldens;       // goldens.jsonl
  int64_t sid_columns = static_cast<int64_t>(kLevels);
};

inline std::string ConfigText(const Config& c) {
  std::string text = "name: \"" + c.name + "\"\nprofile: COMPAT\nsid_version: \"" + c.sid_version + "\"\n";
  const auto add = [&text](const char* name, auto value) {
    text += std::string(name) + ": " + std::to_string(value) + "\n";
  };
  for (const int level : c.levels) add("levels", level);
  add("vocabulary", c.vocabulary), add("d", c.d), add("heads", c.heads), add("d_kv", c.d_kv), add("ffn", c.ffn);
  add("encoder_layers", c.encoder_layers), add("decoder_layers", c.decoder_layers);
  add("short_items", c.short_items), add("retrieved_items", c.retrieved_items),
      add("embedding_width", c.embedding_width);
  add("beam", c.beam);
  for (const HistoryRule& rule : c.history) {
    text += "history { action: RATING min_value: " + std::to_string(rule.min_value) + " }\n";
  }
  text += "quantiser { kind: RQ_KMEANS latent: " + std::to_string(c.quantiser_latent) + " }\n";
  return text;
}

inline nlohmann::json GoldenJson(const GoldenCase& golden) {
  const GoldenExpectation& e = golden.expect;
  nlohmann::json events = nlohmann::json::array();
  for (const Event& event : golden.events) events.push_back(EventToJson(event));
  return {{"name", golden.name},
          {"events", events},
          {"as_of_us", golden.as_of_us},
          {"beam", golden.beam},
          {"count", golden.count},
          {"exclude_seen", golden.exclude_seen},
          {"expect",
           {{"short_items", e.short_items},
            {"long_items", e.long_items},
            {"sids", e.sids},
            {"log_probability", e.log_probability},
            {"items", e.items},
            {"item_sids", e.item_sids},
            {"min_gap", 1.0}}}};
}

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

// Cases as this build answers them: what they prove is that what is loaded is what was written.
inline std::string GoldensOf(const VersionParts& parts) {
  CatalogueInput input;
  std::vector<uint64_t> ids(parts.item_ids.begin(), parts.item_ids.end());
  input.item_ids = ids, input.sids = parts.sids, input.tier_bins = parts.tier_bins, input.prior = parts.prior;
  input.prototypes = parts.quantiser.at("prototype");
  const auto catalogue = Catalogue::Create(parts.config, input);
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  const auto network = Network::Create(parts.config, parts.weights);
  EXPECT_TRUE(network.ok()) << network.status();
  std::string text;
  std::mt19937 random(7);
  for (const size_t events : {0, 1, 30}) {
    GoldenCase golden{"events_" + std::to_string(events), {}, 1'000'000'000, 7, 9, true, {}};
    for (size_t i = 0; i < events; ++i) {
      golden.events.push_back(
          RatingOf(i + 1, ids[random() % ids.size()], static_cast<int64_t>(i) * 1'000, random() % 6));
    }
    golden.expect = RunGolden(**network, **catalogue, golden, nullptr);
    text += GoldenJson(golden).dump() + "\n";
  }
  return text;
}

inline TensorMap QuantiserMap(const VersionParts& parts) {
  const Config& c = parts.config;
  TensorMap map;
  for (const auto& [name, values] : parts.quantiser) {
    const int64_t rows = name == "prototype" ? c.levels[0] : c.levels[static_cast<size_t>(name.back() - '0')];
    EXPECT_TRUE(map.Add(name, {rows, static_cast<int64_t>(values.size()) / rows}, values).ok());
  }
  return map;
}

// `name`: the repository's folder. Item i has id 1000 + 3 i. `change`: of the configuration, before anything is made of
// it.
inline VersionParts MakeParts(const std::string& name = "tiny", size_t items = 60, uint32_t seed = 5,
                              const std::function<void(Config*)>& change = nullptr) {
  VersionParts parts;
  Config& c = parts.config;
  c = SmallConfig();
  c.name = name;
  c.beam = 8;
  c.history = {{ActionType::kRating, 4.0f}};
  c.quantiser = QuantiserKind::kRqKMeans;
  c.quantiser_latent = c.embedding_width;
  if (change) change(&c);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.3f);
  const size_t width = static_cast<size_t>(c.embedding_width), codes = static_cast<size_t>(c.levels[0]);
  const auto draw = [&](size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  for (size_t l = 0; l < kLevels; ++l) {
    parts.quantiser["codebook." + std::to_string(l)] = draw(static_cast<size_t>(c.levels[l]) * width);
  }
  parts.quantiser["prototype"] = draw(codes * width);
  const auto quantiser = Quantiser::Create(c, QuantiserMap(parts));
  EXPECT_TRUE(quantiser.ok()) << quantiser.status();
  parts.embeddings = draw(items * width);
  for (size_t i = 0; i < items; ++i) {
    const auto encoded = quantiser->Encode(std::span(parts.embeddings).subspan(i * width, width));
    EXPECT_TRUE(encoded.ok()) << encoded.status();
    parts.item_ids.push_back(static_cast<int64_t>(1000 + 3 * i));
    parts.sids.push_back(encoded->sid);
    parts.tier_bins.insert(parts.tier_bins.end(), encoded->tier_bins.begin(), encoded->tier_bins.end());
    parts.prior.push_back(static_cast<float>(random() % 100));
  }
  c.sid_version = SidVersion(QuantiserMap(parts), parts.sids);
  parts.weights = RandomTensors(c, seed);
  parts.goldens = GoldensOf(parts);
  return parts;
}

inline void WriteText(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

inline void WriteTensors(const std::string& path, const TensorMap& map) {
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& name : map.Names()) {
    const TensorView* view = map.Find(name);
    tensors.push_back({name, DType::kF32, view->shape, AsBytes(view->values())});
  }
  EXPECT_TRUE(WriteSafetensors(path, tensors).ok());
}

// Writes <path>, MANIFEST last.
inline void WriteParts(const VersionParts& parts, const std::string& path) {
  const Config& c = parts.config;
  std::filesystem::create_directories(path);
  WriteText(path + "/model.textproto", ConfigText(c) + parts.extra_config);
  WriteTensors(path + "/weights-00001-of-00001.safetensors", parts.weights);
  WriteTensors(path + "/quantiser.safetensors", QuantiserMap(parts));
  const int64_t items = static_cast<int64_t>(parts.item_ids.size());
  const std::span<const uint16_t> codes(parts.sids.empty() ? nullptr : parts.sids[0].data(),
                                        parts.sids.size() * kLevels);
  std::vector<SafetensorsTensor> tensors = {
      {"item.id", DType::kI64, {items}, AsBytes(parts.item_ids)},
      {"item.sid",
       DType::kU16,
       {static_cast<int64_t>(codes.size()) / parts.sid_columns, parts.sid_columns},
       AsBytes(codes)},
      {"item.prior", DType::kF32, {static_cast<int64_t>(parts.prior.size())}, AsBytes(parts.prior)}};
  if (!parts.tier_bins.empty()) {
    const int64_t rows = static_cast<int64_t>(parts.tier_bins.size()) / c.levels[0];
    tensors.push_back({"item.tier_bin", DType::kU8, {rows, c.levels[0]}, AsBytes(parts.tier_bins)});
  }
  EXPECT_TRUE(WriteSafetensors(path + "/items.safetensors", tensors).ok());
  WriteText(path + "/goldens.jsonl", parts.goldens);
  const absl::Status sealed = WriteManifest(path);
  EXPECT_TRUE(sealed.ok()) << sealed;
}

}  // namespace backstory::glass

#endif  // BACKSTORY_TESTS_MODELS_GLASS_VERSION_FIXTURE_H_
