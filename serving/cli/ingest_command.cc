#include "serving/cli/ingest_command.h"

#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "serving/cli/ingest_common.h"
#include "serving/cli/ingest_run.h"
#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

constexpr const char* kExamples = R"(
Examples:
  backstory ingest --store /data/store --events events.csv --items items.csv
  backstory ingest --store /data/store --namespace movielens --preset movielens \
      --events ratings.csv --items movies.csv
  backstory ingest --store /data/store --events log.jsonl --time-unit ms \
      --map user=uid,time=ts,item=sku,label=clicked,request_id=page --bad-rows bad.csv --allow-bad 100

When it ends, all is on disk. Events are idempotent: after an interruption run the same command again.
Exit codes: 0 done, 1 failed or more bad rows than allowed, 2 usage, 4 store damaged.)";

struct Flags {
  ImportFlags import;
  std::string events, items, store, ns = "default", bad_rows;
  uint64_t allow_bad = 0;
  unsigned threads = 0;
  bool allow_immutable_change = false;
  bool json = false;
};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Store OpenForWriting(const std::string& directory) {
  StoreOptions options;
  options.directory = directory;
  absl::StatusOr<Store> store = OpenStore(options);
  if (!store.ok()) Leave("ingest", store.status());
  return *std::move(store);
}

ImportFile OpenFile(const std::string& path, ImportFile::Content content, const ImportMapping& mapping) {
  absl::StatusOr<ImportFile> file = ImportFile::Open(path, content, mapping);
  if (!file.ok()) Leave("ingest", file.status());
  if (!file->unused_columns().empty()) {
    std::string names;
    for (const std::string& name : file->unused_columns()) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    std::fprintf(stderr, "%s: columns not used: %s\n", path.c_str(), names.c_str());
  }
  return *std::move(file);
}

void Print(const Flags& flags, const IngestCounts& items, const IngestCounts& events, double seconds) {
  const double rate = seconds > 0 ? static_cast<double>(events.events) / seconds : 0;
  if (flags.json) {
    std::printf(
        "{\"items\": %lu, \"events\": %lu, \"accepted\": %lu, \"duplicate\": %lu, \"conflict\": %lu, "
        "\"rejected\": %lu, \"unreadable\": %lu, \"seconds\": %.3f, \"events_per_second\": %.0f}\n",
        items.accepted, events.events, events.accepted, events.duplicate, events.conflict, events.rejected,
        events.unreadable + items.unreadable, seconds, rate);
    return;
  }
  if (!flags.items.empty()) std::printf("%lu items\n", items.accepted);
  if (flags.events.empty()) return;
  std::printf(
      "%lu events: %lu new, %lu known, %lu conflicts, %lu rejected, %lu unreadable rows; %.1f s, %.0f events/s\n",
      events.events, events.accepted, events.duplicate, events.conflict, events.rejected, events.unreadable, seconds,
      rate);
}

void Ingest(const Flags& flags) {
  if (flags.events.empty() && flags.items.empty()) {
    Leave("ingest", absl::InvalidArgumentError("--events or --items needed"), kExitUsage);
  }
  const absl::StatusOr<ImportMappings> mappings = MappingsOf(flags.import);
  if (!mappings.ok()) Leave("ingest", mappings.status(), kExitUsage);
  // Both files are opened before the store is touched: a wrong path or column must not leave half an import.
  std::optional<ImportFile> events_file, items_file;
  if (!flags.items.empty()) items_file = OpenFile(flags.items, ImportFile::Content::kItems, mappings->items);
  if (!flags.events.empty()) events_file = OpenFile(flags.events, ImportFile::Content::kEvents, mappings->events);
  BadRowReport report;
  if (auto s = report.Open(flags.bad_rows); !s.ok()) Leave("ingest", s, kExitUsage);
  const Store store = OpenForWriting(flags.store);

  IngestOptions options;
  options.ns = flags.ns;
  options.threads = flags.threads != 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
  options.now_us =
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count();
  options.allow_immutable_change = flags.allow_immutable_change;
  IngestCounts items, events;
  if (items_file.has_value()) {
    const auto sink = [&](const BadRow& row) { report.Add(flags.items, row); };
    ProgressBar progress("items ");
    const auto counts = IngestItems(*items_file, options, store.catalog.get(), sink, std::ref(progress));
    progress.Clear();
    if (!counts.ok()) Leave("ingest", counts.status());
    items = *counts;
  }
  const Clock::time_point start = Clock::now();
  if (events_file.has_value()) {
    const auto sink = [&](const BadRow& row) { report.Add(flags.events, row); };
    ProgressBar progress("events");
    const auto counts = IngestEvents(*events_file, options, store.history.get(), sink, std::ref(progress));
    progress.Clear();
    if (!counts.ok()) Leave("ingest", counts.status());
    events = *counts;
  }
  Print(flags, items, events, SecondsSince(start));
  if (auto s = report.Finish(); !s.ok()) Leave("ingest", s);
  if (report.count() > flags.allow_bad) {
    Leave("ingest",
          absl::InvalidArgumentError(absl::StrCat(report.count(), " bad rows, --allow-bad ", flags.allow_bad)));
  }
}

}  // namespace

void AddIngestCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("ingest", "Load events and items from CSV or JSON lines into a store");
  auto flags = std::make_shared<Flags>();
  command->footer(kExamples);
  AddImportFlags(command, &flags->import);
  command->add_option("--store", flags->store, "Store directory, made if absent")->required();
  command->add_option("--events", flags->events, "Events as CSV or JSON lines (docs/reference/import-format.md)");
  command->add_option("--items", flags->items, "Items as CSV or JSON lines; loaded first");
  command->add_option("--namespace", flags->ns, "Namespace in the store")->capture_default_str();
  command->add_option("--bad-rows", flags->bad_rows, "Write every bad row, with file, line and reason, to this CSV");
  command->add_option("--allow-bad", flags->allow_bad, "Exit 0 if at most this many rows are bad")
      ->capture_default_str();
  command->add_flag("--allow-immutable-change", flags->allow_immutable_change,
                    "Let items change categories, semantic ids or year; models trained before must be retired");
  command->add_option("--threads", flags->threads, "Parsers; 0 = all cores")->capture_default_str();
  command->add_flag("--json", flags->json, "Print the counts as JSON");
  command->callback([flags] { Ingest(*flags); });
}

}  // namespace backstory
