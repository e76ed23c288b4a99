#include "models/grab/init_random.h"

#include <xxhash.h>

#include <cassert>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "models/grab/tensors.h"

namespace backstory::grab {
namespace {

constexpr int64_t kMinuteUs = 60'000'000;
constexpr float kTableBound = 0.05f;
constexpr float kCodebookBound = 0.02f;
constexpr float kGateBias = -2.0f;  // mixing starts nearly closed

struct Preset {
  const char* name;
  int d, heads, d_head, layers, ffn, embedding, hidden, head_hidden;
  uint32_t item_vocab;
  size_t channels = 2;
};

constexpr Preset kPresets[] = {
    {"grab-256", 256, 4, 64, 4, 512, 32, 256, 256, 1u << 16},
    {"grab-512", 512, 4, 128, 4, 1024, 64, 512, 512, 1u << 16},
    // The size of MLPerf's DLRMv3 (its attention is another): one channel, so every event is one row.
    {"grab-dlrm", 512, 4, 128, 5, 1024, 64, 512, 512, 1u << 16, 1},
    {"grab-tiny", 16, 2, 8, 2, 24, 8, 16, 16, 64},
};

TokenizerConfig GenericTokenizer(uint32_t item_vocab) {
  TokenizerConfig t;
  t.partial = {{"item", SparseSource::kItemId, "", "item", item_vocab},
               {"category", SparseSource::kItemCategories, "", "category", 256},
               {"action", SparseSource::kActionClass, "", "action", 16},
               {"position", SparseSource::kPosition, "", "position", 16},
               {"scene", SparseSource::kScene, "", "scene", 32}};
  t.full = {{"f_item", SparseSource::kItemId, "", "item", item_vocab},
            {"f_category", SparseSource::kItemCategories, "", "category", 256},
            {"f_scene", SparseSource::kScene, "", "scene", 32},
            {"f_hour", SparseSource::kHourOfDay, "", "hour", 25}};
  t.full_dense = {{"item_rate", DenseSource::kItemRate},
                  {"item_count", DenseSource::kItemLogCount},
                  {"user_rate", DenseSource::kUserRate},
                  {"user_count", DenseSource::kUserLogCount},
                  {"user_gap", DenseSource::kUserLogGap}};
  t.actions = {{ActionType::kConversion, -3.4e38f, 3.4e38f, 2}, {ActionType::kClick, -3.4e38f, 3.4e38f, 1}};
  t.label = {ActionType::kClick};
  t.channels = {{"shown", {}}, {"clicked", {1, 2}}};
  t.label_window_us = 30 * kMinuteUs;
  return t;
}

// SplitMix64 (Steele, Lea, Flood 2014): standard distributions differ between libraries, this does not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // Uniform in [-bound, bound).
  float Next(float bound) {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (static_cast<float>(z >> 40) * 0x1p-23f - 1.0f) * bound;
  }

 private:
  uint64_t state_;
};

std::vector<float> Constant(size_t size, float value) { return std::vector<float>(size, value); }

std::vector<float> RandomTensor(const TensorSpec& spec, uint64_t seed) {
  size_t size = 1;
  for (int64_t dim : spec.shape) size *= static_cast<size_t>(dim);
  const std::string_view name = spec.name;
  if (name.ends_with(".gate.b")) return Constant(size, kGateBias);
  if (name.ends_with(".g")) return Constant(size, 1.0f);
  if (spec.shape.size() == 1) return Constant(size, 0.0f);
  float bound = std::sqrt(6.0f / static_cast<float>(spec.shape[0] + spec.shape[1]));
  if (name.starts_with("tok.table.")) bound = kTableBound;
  if (name.ends_with(".bpos") || name.ends_with(".btime") || name.ends_with(".bact")) bound = kCodebookBound;
  // A tensor's values depend on its name, not on its place in the list.
  Random random(XXH3_64bits_withSeed(name.data(), name.size(), seed));
  std::vector<float> values(size);
  for (float& value : values) value = random.Next(bound);
  return values;
}

}  // namespace

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

absl::StatusOr<Config> PresetConfig(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    Config c;
    c.name = preset.name;
    c.tokenizer = GenericTokenizer(preset.item_vocab);
    c.tokenizer.channels.resize(preset.channels);
    c.d = preset.d;
    c.heads = preset.heads;
    c.d_head = preset.d_head;
    c.layers = preset.layers;
    c.ffn = preset.ffn;
    c.embedding = preset.embedding;
    c.gate_mlp_hidden = preset.hidden;
    c.head_hidden = preset.head_hidden;
    c.tasks = {"click"};
    return c;
  }
  return absl::NotFoundError(
      absl::StrCat("preset \"", std::string(name), "\": not one of ", absl::StrJoin(PresetNames(), ", ")));
}

TensorMap RandomWeights(const Config& config, uint64_t seed) {
  TensorMap map;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const absl::Status added = map.Add(spec.name, spec.shape, RandomTensor(spec, seed));
    assert(added.ok());
    (void)added;
  }
  return map;
}

}  // namespace backstory::grab
