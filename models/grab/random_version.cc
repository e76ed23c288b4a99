#include "models/grab/random_version.h"

#include <algorithm>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "models/calibration.h"
#include "models/grab/config_text.h"
#include "models/grab/init_random.h"
#include "models/grab/model.h"
#include "models/manifest.h"
#include "models/mapped_file.h"
#include "models/safetensors.h"
#include "models/version_files.h"

namespace backstory::grab {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kStartUs = 1'700'000'000'000'000;  // 2023-11-14
constexpr int64_t kSecondUs = 1'000'000;
constexpr uint64_t kItems = 50;
constexpr size_t kCandidates = 8;
constexpr int kWeightFilesMax = 99;

// mt19937_64 is the same everywhere; the standard's distributions are not, so ranges are cut out by remainder.
class Dice {
 public:
  explicit Dice(uint64_t seed) : engine_(seed) {}
  uint64_t Below(uint64_t n) { return engine_() % n; }

 private:
  std::mt19937_64 engine_;
};

Item MakeItem(uint64_t id, Dice* dice) {
  static constexpr const char* kCategories[] = {"news", "sport", "music", "film", "games"};
  Item item;
  item.item_id = id;
  item.categories = {kCategories[dice->Below(5)]};
  item.year = static_cast<int32_t>(1990 + dice->Below(30));
  item.title = absl::StrCat("item ", id);
  return item;
}

// An action for an exposure: one the configuration's rules know, else a click.
Event MakeAction(const Config& config, const Event& exposure, uint64_t id, Dice* dice) {
  Event action;
  action.kind = EventKind::kAction;
  action.event_id = id;
  action.time_us = exposure.time_us + static_cast<int64_t>(dice->Below(120)) * kSecondUs;
  action.item_id = exposure.item_id;
  action.action = ActionType::kClick;
  const auto& rules = config.tokenizer.actions;
  if (!rules.empty()) {
    const ActionType type = rules[dice->Below(rules.size())].action;
    if (type != ActionType::kNone) action.action = type;
  }
  action.value = static_cast<float>(dice->Below(11)) / 2;
  // One in five stands alone.
  if (dice->Below(5) != 0) action.exposure_id = exposure.event_id;
  return action;
}

// `exposures` of them, in pages of up to three that share a request or a time, about a third acted upon.
std::vector<Event> MakeEvents(const Config& config, size_t exposures, Dice* dice) {
  std::vector<Event> events;
  int64_t time_us = kStartUs;
  uint64_t request = 0, next_id = 1;
  for (size_t i = 0; i < exposures; ++i) {
    if (dice->Below(3) != 0 || request == 0) {
      time_us += static_cast<int64_t>(1 + dice->Below(5000)) * kSecondUs;
      ++request;
    }
    Event exposure;
    exposure.event_id = next_id++;
    exposure.time_us = time_us;
    exposure.item_id = 1 + dice->Below(kItems);
    exposure.request_id = request % 2 == 0 ? request : 0;
    exposure.position = static_cast<uint32_t>(dice->Below(20));
    exposure.scene = dice->Below(2) == 0 ? "feed" : "search";
    events.push_back(exposure);
    if (dice->Below(3) == 0) events.push_back(MakeAction(config, exposure, next_id++, dice));
  }
  std::sort(events.begin(), events.end(), CanonicalLess);
  return events;
}

absl::Status WriteWeights(const TensorMap& tensors, int files, const std::string& path) {
  std::vector<std::vector<SafetensorsTensor>> parts(static_cast<size_t>(files));
  size_t next = 0;
  for (const std::string& name : tensors.Names()) {
    const TensorView* view = tensors.Find(name);
    parts[next++ % parts.size()].push_back({name, DType::kF32, view->shape, AsBytes(view->values())});
  }
  for (int i = 0; i < files; ++i) {
    const std::string file = absl::StrCat(path, "/", WeightsFileName(i + 1, files));
    if (absl::Status s = WriteSafetensors(file, std::move(parts[static_cast<size_t>(i)])); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status WriteGoldens(const Config& config, const TensorMap& tensors, const RandomVersionOptions& options,
                          const std::string& path) {
  const auto model = CreateModel(config, tensors, options.pool);
  if (!model.ok()) return model.status();
  std::string text;
  for (GoldenCase& golden : RandomGoldens(config, options.seed)) {
    auto logits = ScoreGolden(**model, golden);
    if (!logits.ok()) return logits.status();
    golden.logits = *std::move(logits);
    absl::StrAppend(&text, GoldenToJson(golden, config.tasks.size()), "\n");
  }
  return WriteFileAtomically(absl::StrCat(path, "/goldens.jsonl"), text);
}

}  // namespace

std::vector<GoldenCase> RandomGoldens(const Config& config, uint64_t seed) {
  Dice dice(seed);
  struct Shape {
    const char* name;
    size_t exposures;
  };
  std::vector<GoldenCase> goldens;
  for (const Shape& shape :
       {Shape{"empty_history", 0}, {"single_event", 1}, {"ties_and_actions", 40}, {"pages", 200}}) {
    GoldenCase golden;
    golden.name = shape.name;
    golden.user = absl::StrCat("user-", shape.name);
    golden.scene = "feed";
    golden.events = MakeEvents(config, shape.exposures, &dice);
    const int64_t newest_us = golden.events.empty() ? kStartUs : golden.events.back().time_us;
    golden.now_us = newest_us + static_cast<int64_t>(1 + dice.Below(3600)) * kSecondUs;
    for (uint64_t id = 1; id <= kItems; ++id) golden.items.emplace(id, MakeItem(id, &dice));
    for (size_t i = 0; i < kCandidates; ++i) {
      // Now and then an item that the catalog does not know.
      const uint64_t id = 1 + dice.Below(kItems + 5);
      golden.candidates.item_ids.push_back(id);
      ItemCounts counts{.exposures = 10 + dice.Below(1000)};
      counts.cells = {{static_cast<uint16_t>(config.tokenizer.label.action), 8, 1 + dice.Below(10)}};
      golden.counts.emplace(id, std::move(counts));
    }
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

absl::Status WriteRandomVersion(const Config& config, const RandomVersionOptions& options, const std::string& path) {
  if (absl::Status s = Validate(config); !s.ok()) return s;
  if (options.weight_files < 1 || options.weight_files > kWeightFilesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("weight_files: ", options.weight_files, " is outside [1, ", kWeightFilesMax, "]"));
  }
  std::error_code error;
  if (fs::exists(path, error) && !(fs::is_directory(path, error) && fs::is_empty(path, error))) {
    return absl::AlreadyExistsError(absl::StrCat(path, ": exists and is no empty directory"));
  }
  fs::create_directories(absl::StrCat(path, "/calibration"), error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));

  const TensorMap tensors = RandomWeights(config, options.seed);
  absl::Status status = WriteFileAtomically(absl::StrCat(path, "/model.textproto"), ConfigToText(config));
  if (status.ok()) status = WriteWeights(tensors, options.weight_files, path);
  if (status.ok()) {
    // One line per task, so that whoever calibrates sees where the numbers go.
    const Calibration identity = Calibration::Make(1, Calibration::Entries(config.tasks.size(), {{"", Platt{}}}));
    status = WriteFileAtomically(absl::StrCat(path, "/calibration/1.textproto"), identity.ToText(config.tasks));
  }
  if (status.ok()) status = WriteGoldens(config, tensors, options, path);
  if (status.ok()) status = WriteManifest(path);
  return status;
}

}  // namespace backstory::grab
