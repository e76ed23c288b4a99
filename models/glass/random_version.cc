#include "models/glass/random_version.h"

#include <cmath>
#include <filesystem>
#include <random>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "features/io/event_json.h"
#include "models/glass/catalogue.h"
#include "models/glass/golden.h"
#include "models/glass/network.h"
#include "models/glass/quantiser.h"
#include "models/manifest.h"
#include "models/mapped_file.h"
#include "models/safetensors.h"
#include "nlohmann/json.hpp"

namespace backstory::glass {
namespace {

namespace fs = std::filesystem;

constexpr float kLiked = 4;  // ratings from here on are behaviours

std::string ConfigText(const Config& c) {
  std::string text = absl::StrCat("name: \"", c.name, "\"\nprofile: COMPAT\nsid_version: \"", c.sid_version, "\"\n");
  const auto add = [&text](const char* name, auto value) { absl::StrAppend(&text, name, ": ", value, "\n"); };
  for (const int level : c.levels) add("levels", level);
  add("vocabulary", c.vocabulary), add("d", c.d), add("heads", c.heads), add("d_kv", c.d_kv), add("ffn", c.ffn);
  add("encoder_layers", c.encoder_layers), add("decoder_layers", c.decoder_layers);
  add("short_items", c.short_items), add("retrieved_items", c.retrieved_items);
  add("embedding_width", c.embedding_width);
  add("beam", c.beam);
  if (!c.embedding_space.empty()) absl::StrAppend(&text, "embedding_space: \"", c.embedding_space, "\"\n");
  for (const HistoryRule& rule : c.history) {
    absl::StrAppend(&text, "history { action: RATING min_value: ", rule.min_value, " }\n");
  }
  absl::StrAppend(&text, "quantiser { kind: RQ_KMEANS latent: ", c.quantiser_latent, " }\n");
  return text;
}

nlohmann::json GoldenJson(const GoldenCase& golden) {
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

Event RandomRating(uint64_t event_id, uint64_t item_id, std::mt19937* random) {
  Event event;
  event.kind = EventKind::kAction;
  event.event_id = event_id;
  event.item_id = item_id;
  event.time_us = static_cast<int64_t>(event_id) * 1'000;
  event.action = ActionType::kRating;
  event.value = static_cast<float>((*random)() % 6);
  return event;
}

class Drawer {
 public:
  Drawer(uint32_t seed, TensorMap* map) : random_(seed), map_(map) {}
  void Add(const std::string& name, std::vector<int64_t> shape, float spread) {
    std::normal_distribution<float> normal(0, spread);
    size_t size = 1;
    for (const int64_t dimension : shape) size *= static_cast<size_t>(dimension);
    std::vector<float> values(size);
    for (float& value : values) value = (name.ends_with("norm") ? 1.0f : 0.0f) + normal(random_);
    map_->Add(name, std::move(shape), std::move(values)).IgnoreError();  // names are distinct, sizes fit
  }
  // Spread by the width of what comes in, so that outputs have one size whatever it is.
  void Matrix(const std::string& name, int64_t out, int64_t in, float gain) {
    Add(name, {out, in}, gain / std::sqrt(static_cast<float>(in)));
  }
  void Attention(const std::string& prefix, int64_t d, int64_t inner) {
    for (const char* part : {".q", ".k", ".v"}) Matrix(prefix + part, inner, d, 0.7f);
    Matrix(prefix + ".o", d, inner, 0.7f);
  }
  void Ffn(const std::string& prefix, int64_t d, int64_t ffn) {
    Add(prefix + ".ffn.norm", {d}, 0.1f);
    Matrix(prefix + ".ffn.w1", ffn, d, 1);
    Matrix(prefix + ".ffn.w2", d, ffn, 1);
  }

 private:
  std::mt19937 random_;
  TensorMap* map_;
};

absl::Status WriteTensors(const std::string& path, const TensorMap& map) {
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& name : map.Names()) {
    const TensorView* view = map.Find(name);
    tensors.push_back({name, DType::kF32, view->shape, AsBytes(view->values())});
  }
  return WriteSafetensors(path, tensors);
}

absl::Status WriteItems(const VersionParts& parts, const std::string& path) {
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
    const int64_t rows = static_cast<int64_t>(parts.tier_bins.size()) / parts.config.levels[0];
    tensors.push_back({"item.tier_bin", DType::kU8, {rows, parts.config.levels[0]}, AsBytes(parts.tier_bins)});
  }
  return WriteSafetensors(path, tensors);
}

}  // namespace

TensorMap RandomTensors(const Config& c, uint32_t seed) {
  TensorMap map;
  Drawer draw(seed, &map);
  const int64_t d = c.d, inner = static_cast<int64_t>(c.inner());
  draw.Matrix("token_embedding", c.vocabulary, d, 3);
  if (c.bins() > 0) {
    draw.Add("tier.w1", {d, c.levels[0] * static_cast<int64_t>(c.bins())}, 0.4f);
    draw.Add("tier.b1", {d}, 0.1f);
    draw.Matrix("tier.w2", d, d, 1);
    draw.Add("tier.b2", {d}, 0.1f);
  }
  if (c.retrieved_items > 0) {
    draw.Matrix("retrieved.w", d, d, 1);
    draw.Add("retrieved.b", {d}, 0.1f);
  }
  const auto start = [&](const std::string& prefix, bool first) {
    draw.Add(prefix + ".self.norm", {d}, 0.1f);
    draw.Attention(prefix + ".self", d, inner);
    if (first) draw.Add(prefix + ".self.rel_bias", {c.relative_buckets, c.heads}, 0.3f);
  };
  for (int i = 0; i < c.encoder_layers; ++i) {
    const std::string p = absl::StrCat("enc.", i);
    start(p, i == 0);
    draw.Ffn(p, d, c.ffn);
  }
  for (int i = 0; i < c.decoder_layers; ++i) {
    const std::string p = absl::StrCat("dec.", i);
    start(p, i == 0);
    draw.Add(p + ".cross.norm", {d}, 0.1f);
    draw.Attention(p + ".memory", d, inner);
    if (c.retrieved_items > 0) {
      draw.Attention(p + ".retrieved", d, inner);
      draw.Matrix(p + ".gate.w", d, 2 * d, 2);
      draw.Add(p + ".gate.b", {d}, 0.3f);
    }
    draw.Ffn(p, d, c.ffn);
  }
  draw.Add("enc.final_norm", {d}, 0.1f);
  draw.Add("dec.final_norm", {d}, 0.1f);
  return map;
}

TensorMap QuantiserTensors(const VersionParts& parts) {
  TensorMap map;
  for (const auto& [name, values] : parts.quantiser) {
    const int64_t rows =
        name == "prototype" ? parts.config.levels[0] : parts.config.levels[static_cast<size_t>(name.back() - '0')];
    map.Add(name, {rows, static_cast<int64_t>(values.size()) / rows}, values).IgnoreError();  // as above
  }
  return map;
}

absl::StatusOr<std::string> RandomGoldens(const VersionParts& parts) {
  CatalogueInput input;
  const std::vector<uint64_t> ids(parts.item_ids.begin(), parts.item_ids.end());
  input.item_ids = ids, input.sids = parts.sids, input.tier_bins = parts.tier_bins, input.prior = parts.prior;
  input.prototypes = parts.quantiser.at("prototype");
  const auto catalogue = Catalogue::Create(parts.config, input);
  if (!catalogue.ok()) return catalogue.status();
  auto network = Network::Create(parts.config, parts.weights);
  if (!network.ok()) return network.status();
  const auto searcher = MakeCpuSearcher(*std::move(network), nullptr);
  std::string text;
  std::mt19937 random(7);
  for (const size_t events : {0, 1, 30}) {
    GoldenCase golden{absl::StrCat("events_", events), {}, 1'000'000'000, 7, 9, true, {}};
    for (size_t i = 0; i < events; ++i) {
      golden.events.push_back(RandomRating(i + 1, ids[random() % ids.size()], &random));
    }
    auto expect = RunGolden(*searcher, **catalogue, golden);
    if (!expect.ok()) return expect.status();
    golden.expect = *std::move(expect);
    absl::StrAppend(&text, GoldenJson(golden).dump(), "\n");
  }
  return text;
}

absl::StatusOr<VersionParts> RandomParts(const Config& config, size_t items, uint32_t seed, int64_t first_id,
                                         int64_t id_step) {
  VersionParts parts;
  parts.config = config;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.3f);
  const size_t width = static_cast<size_t>(config.embedding_width);
  const auto draw = [&](size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  };
  for (size_t l = 0; l < kLevels; ++l) {
    parts.quantiser[absl::StrCat("codebook.", l)] = draw(static_cast<size_t>(config.levels[l]) * width);
  }
  parts.quantiser["prototype"] = draw(static_cast<size_t>(config.levels[0]) * width);
  const TensorMap tensors = QuantiserTensors(parts);
  const auto quantiser = Quantiser::Create(config, tensors);
  if (!quantiser.ok()) return quantiser.status();
  parts.embeddings = draw(items * width);
  for (size_t i = 0; i < items; ++i) {
    const auto encoded = quantiser->Encode(std::span(parts.embeddings).subspan(i * width, width));
    if (!encoded.ok()) return encoded.status();
    parts.item_ids.push_back(first_id + static_cast<int64_t>(i) * id_step);
    parts.sids.push_back(encoded->sid);
    parts.tier_bins.insert(parts.tier_bins.end(), encoded->tier_bins.begin(), encoded->tier_bins.end());
    parts.prior.push_back(static_cast<float>(random() % 100));
  }
  parts.config.sid_version = SidVersion(tensors, parts.sids);
  parts.weights = RandomTensors(parts.config, seed);
  auto goldens = RandomGoldens(parts);
  if (!goldens.ok()) return goldens.status();
  parts.goldens = *std::move(goldens);
  return parts;
}

absl::Status WriteParts(const VersionParts& parts, const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  absl::Status s = WriteFileAtomically(path + "/model.textproto", ConfigText(parts.config) + parts.extra_config);
  if (s.ok()) s = WriteTensors(path + "/weights-00001-of-00001.safetensors", parts.weights);
  if (s.ok()) s = WriteTensors(path + "/quantiser.safetensors", QuantiserTensors(parts));
  if (s.ok()) s = WriteItems(parts, path + "/items.safetensors");
  if (s.ok()) s = WriteFileAtomically(path + "/goldens.jsonl", parts.goldens);
  return s.ok() ? WriteManifest(path) : s;
}

std::vector<std::string> PresetNames() { return {"glass-released", "glass-tiny"}; }

absl::StatusOr<Config> PresetConfig(std::string_view name) {
  Config config;
  config.name = std::string(name);
  config.history = {{ActionType::kRating, kLiked}};
  config.quantiser = QuantiserKind::kRqKMeans;
  if (name == "glass-tiny") {
    config.d = 16, config.heads = 2, config.d_kv = 8, config.ffn = 32;
    config.encoder_layers = config.decoder_layers = 1;
    config.levels = {8, 8, 8}, config.vocabulary = 32, config.short_items = 6, config.embedding_width = 8;
  } else if (name != "glass-released") {
    return absl::NotFoundError(absl::StrCat("no preset ", std::string(name), "; there are glass-released, glass-tiny"));
  }
  config.quantiser_latent = config.embedding_width;
  return config;
}

absl::Status WriteRandomVersion(const Config& config, size_t items, uint32_t seed, const std::string& path) {
  std::error_code error;
  if (fs::exists(path, error) && !(fs::is_directory(path, error) && fs::is_empty(path, error))) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": exists and is no empty directory"));
  }
  const auto parts = RandomParts(config, items, seed);
  return parts.ok() ? WriteParts(*parts, path) : parts.status();
}

}  // namespace backstory::glass
