#include "serving/cli/synth_files.h"

#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "features/io/csv.h"
#include "features/io/event_json.h"

namespace backstory {
namespace {

// A file that is whole or absent: written beside its place, then renamed.
class OutFile {
 public:
  explicit OutFile(std::string path)
      : path_(std::move(path)), file_(std::fopen(Temporary().c_str(), "w"), std::fclose) {}
  void Write(const std::string& text) {
    ok_ = ok_ && file_ != nullptr && std::fwrite(text.data(), 1, text.size(), file_.get()) == text.size();
  }
  absl::Status Close() {
    ok_ = ok_ && file_ != nullptr && std::fclose(file_.release()) == 0;
    ok_ = ok_ && std::rename(Temporary().c_str(), path_.c_str()) == 0;
    return ok_ ? absl::OkStatus() : absl::ResourceExhaustedError(absl::StrCat(path_, ": cannot be written"));
  }

 private:
  std::string Temporary() const { return path_ + ".partial"; }
  std::string path_;
  bool ok_ = true;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

std::string Head(const SynthOptions& options, uint64_t users) {
  const LengthRange& lengths = options.lengths;
  const std::string range = lengths.movielens ? "movielens" : absl::StrCat(lengths.low, "-", lengths.high);
  return absl::StrCat("# SYNTHETIC: made by `backstory synth --users ", users, " --events-per-user ", range,
                      " --items ", options.items, " --click-rate ", options.click_rate, " --seed ", options.seed,
                      "`; no person did this\n");
}

void AppendItem(const Item& item, std::string* out) {
  std::string categories;
  for (const std::string& category : item.categories)
    absl::StrAppend(&categories, categories.empty() ? "" : "|", category);
  absl::StrAppend(out, item.item_id, ",");
  AppendCsvField(item.title, out);
  absl::StrAppend(out, ",", categories, ",", item.year, "\n");
}

// user,kind,event_id,time_us,item_id,request_id,position,scene,action,value,exposure_id,context.device
void AppendEvent(const std::string& user, const Event& event, std::string* out) {
  absl::StrAppend(out, user, ",", event.kind == EventKind::kAction ? "action," : "exposure,", event.event_id, ",",
                  event.time_us);
  absl::StrAppend(out, ",", event.item_id, ",");
  if (event.kind == EventKind::kExposure) {
    absl::StrAppend(out, event.request_id, ",", event.position, ",", event.scene, ",,,,", event.context[0].value);
  } else {
    absl::StrAppend(out, ",,,", ActionTypeName(event.action), ",");
    if (event.value != 0) absl::StrAppend(out, static_cast<int>(event.value));
    absl::StrAppend(out, ",", event.exposure_id, ",");
  }
  out->push_back('\n');
}

}  // namespace

absl::StatusOr<SynthCounts> WriteSynthFiles(const SynthOptions& options, uint64_t users, const std::string& directory,
                                            const std::function<void(uint64_t, uint64_t)>& progress) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::InvalidArgumentError(absl::StrCat("--out ", directory, ": ", error.message()));
  const SynthWorld world(options);
  SynthCounts counts;
  std::string text = Head(options, users) + "item_id,title,categories,year\n";
  for (const Item& item : world.items()) AppendItem(item, &text);
  OutFile items(directory + "/items.csv");
  items.Write(text);
  if (auto status = items.Close(); !status.ok()) return status;
  counts.items = world.items().size();

  OutFile events(directory + "/events.csv");
  events.Write(
      Head(options, users) +
      "user,kind,event_id,time_us,item_id,request_id,position,scene,action,value,exposure_id,context.device\n");
  for (uint64_t index = 0; index < users; ++index) {
    const SynthUser made = MakeSynthUser(world, options, index);
    text.clear();
    for (const Event& event : made.events) {
      AppendEvent(made.user, event, &text);
      counts.exposures += event.kind == EventKind::kExposure ? 1 : 0;
      counts.clicks += event.action == ActionType::kClick ? 1 : 0;
    }
    events.Write(text);
    counts.events += made.events.size();
    ++counts.users;
    if (progress) progress(counts.users, users);
  }
  if (auto status = events.Close(); !status.ok()) return status;
  return counts;
}

}  // namespace backstory
