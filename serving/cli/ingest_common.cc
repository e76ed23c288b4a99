#include "serving/cli/ingest_common.h"

#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "features/io/csv.h"

namespace backstory {
namespace {

constexpr size_t kKeptBufferBytes = 1 << 20;

}  // namespace

void AddImportFlags(CLI::App* command, ImportFlags* flags) {
  command->add_option("--preset", flags->preset, "Known layout of the files: movielens, or backstory (the default)");
  command->add_option("--map", flags->columns,
                      "Event fields and the columns they are in: user=userId,time=timestamp,item=movieId");
  command->add_option("--map-items", flags->item_columns,
                      "Item fields and their columns: item=movieId,categories=genres");
  command->add_option("--default", flags->constants,
                      "Values of event fields that have no column: kind=action,action=rating or label_action=like");
  command->add_option("--time-unit", flags->time_unit, "Unit of time columns: s, ms or us (us; s with movielens)");
}

absl::StatusOr<ImportMappings> MappingsOf(const ImportFlags& flags) {
  absl::StatusOr<ImportMappings> mappings = PresetMappings(flags.preset);
  if (!mappings.ok()) return mappings.status();
  for (const std::string& pairs : flags.columns) {
    if (auto s = AddEventColumns(pairs, &mappings->events); !s.ok()) return s;
  }
  for (const std::string& pairs : flags.item_columns) {
    if (auto s = AddItemColumns(pairs, &mappings->items); !s.ok()) return s;
  }
  for (const std::string& pairs : flags.constants) {
    if (auto s = AddEventConstants(pairs, &mappings->events); !s.ok()) return s;
  }
  if (!flags.time_unit.empty()) {
    const absl::StatusOr<int64_t> unit = TimeUnitUs(flags.time_unit);
    if (!unit.ok()) return unit.status();
    mappings->events.time_unit_us = *unit;
  }
  return mappings;
}

absl::Status BadRowReport::Open(const std::string& keep_path) {
  keep_path_ = keep_path;
  if (keep_path_.empty()) return absl::OkStatus();
  std::FILE* file = std::fopen(keep_path_.c_str(), "w");
  if (file == nullptr || std::fputs("file,line,reason,row\n", file) < 0 || std::fclose(file) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--bad-rows ", keep_path_, ": cannot be written"));
  }
  return absl::OkStatus();
}

void BadRowReport::Add(const std::string& path, const BadRow& row) {
  if (count_++ < kShown) std::fprintf(stderr, "%s:%lu: %s\n", path.c_str(), row.line, row.reason.c_str());
  if (keep_path_.empty()) return;
  AppendCsvField(path, &kept_);
  absl::StrAppend(&kept_, ",", row.line, ",");
  AppendCsvField(row.reason, &kept_);
  kept_.push_back(',');
  AppendCsvField(row.text, &kept_);
  kept_.push_back('\n');
  if (kept_.size() > kKeptBufferBytes) Flush();
}

bool BadRowReport::Flush() {
  std::FILE* file = std::fopen(keep_path_.c_str(), "a");
  if (file == nullptr) return false;
  const bool written = std::fwrite(kept_.data(), 1, kept_.size(), file) == kept_.size();
  kept_.clear();
  return std::fclose(file) == 0 && written;
}

absl::Status BadRowReport::Finish() {
  if (count_ > kShown) std::fprintf(stderr, "%lu more bad rows not shown\n", count_ - kShown);
  if (keep_path_.empty() || Flush()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("--bad-rows ", keep_path_, ": cannot be written"));
}

ProgressBar::ProgressBar(const char* what)
    : what_(what), shown_(::isatty(STDERR_FILENO) == 1), last_(std::chrono::steady_clock::now()) {}

void ProgressBar::operator()(uint64_t done, uint64_t total) {
  constexpr int kWidth = 40;
  const auto now = std::chrono::steady_clock::now();
  if (!shown_ || total == 0 || (done < total && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  drawn_ = true;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const int filled = static_cast<int>(share * kWidth);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f%%", what_, bar.c_str(), 100 * share);
}

void ProgressBar::Clear() {
  if (drawn_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void Leave(const std::string& command, const absl::Status& status, int code) {
  FailCommand(code != kExitOk ? code : ExitCodeOf(status), absl::StrCat(command, ": ", status.message()));
}

}  // namespace backstory
