#include "serving/cli/store_command.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "features/io/event_json.h"
#include "nlohmann/json.hpp"
#include "serving/cli/exit_codes.h"
#include "store/maintenance.h"
#include "store/rocksdb_history_store.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr const char* kExamples = R"(
Examples:
  backstory store verify --store data/store
  backstory store stats --store data/store --json
  backstory store checkpoint --store data/store --out backups/monday
  backstory store repair --store data/store --from-backup backups/monday
  backstory store repair --store data/store            # salvage what is readable
  backstory store export --store data/store --namespace movielens --events events.jsonl --items items.jsonl
  backstory store export --store data/store --slot 12182 --out slot.bkslot
  backstory store import --store data/other --slot 12182 --in slot.bkslot
  backstory store delete-user --store data/store --namespace movielens --user 42 --compact
No other process may have the store open for writing; a running server has the same calls on its admin port.

Exit codes: 0 done, 1 failed, 2 usage, 3 configuration invalid, 4 damaged, 5 storage unavailable or full.)";

struct Flags {
  std::string store, backup, out, in, events, items, ns = "default", user;
  int slot = -1;
  bool json = false, compact = false;
};

int64_t NowMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Store Open(const Flags& flags, bool read_only) {
  StoreOptions options;
  options.directory = flags.store;
  options.create_if_missing = false;
  options.read_only = read_only;
  absl::StatusOr<Store> store = OpenStore(options);
  CheckOk(store.status());
  return *std::move(store);
}

void Verify(const Flags& flags) {
  const absl::StatusOr<VerifyReport> report = VerifyStore(flags.store);
  CheckOk(report.status());
  if (flags.json) {
    std::cout << json{{"users", report->users},
                      {"aliases", report->aliases},
                      {"events", report->events},
                      {"tombstones", report->tombstones},
                      {"items", report->items},
                      {"blocks", report->blocks},
                      {"tail_records", report->tail_records},
                      {"sst_files", report->sst_files},
                      {"problems", report->problems}}
                     .dump()
              << "\n";
  } else {
    for (const std::string& problem : report->problems) std::cout << problem << "\n";
    std::cout << report->users << " users, " << report->events << " events, " << report->items << " items in "
              << report->sst_files << " files: " << (report->problems.empty() ? "sound" : "DAMAGED") << "\n";
  }
  if (!report->problems.empty())
    FailCommand(kExitDamaged, absl::StrCat(flags.store, ": ", report->problems.size(), " problems"));
}

void Repair(const Flags& flags) {
  const absl::StatusOr<RepairReport> report =
      flags.backup.empty() ? SalvageStore(flags.store) : RepairFromBackup(flags.store, flags.backup);
  CheckOk(report.status());
  if (flags.json) {
    std::cout << json{{"users", report->users},
                      {"events", report->events},
                      {"items", report->items},
                      {"unreadable", report->unreadable},
                      {"damaged_moved_to", report->damaged_moved_to},
                      {"notes", report->notes}}
                     .dump()
              << "\n";
    return;
  }
  for (const std::string& note : report->notes) std::cout << "lost: " << note << "\n";
  std::cout << report->users << " users, " << report->events << " events, " << report->items << " items are in "
            << flags.store << "; " << report->unreadable << " records were unreadable; the damaged store is "
            << report->damaged_moved_to << "\n";
}

void Stats(const Flags& flags) {
  const Store store = Open(flags, true);
  const auto stats = store.history->GetStats();
  CheckOk(stats.status());
  const double per_event =
      stats->events == 0 ? 0 : static_cast<double>(stats->disk_bytes) / static_cast<double>(stats->events);
  if (flags.json) {
    std::cout << json{{"users", stats->users},
                      {"events", stats->events},
                      {"disk_bytes", stats->disk_bytes},
                      {"bytes_per_event", per_event}}
                     .dump()
              << "\n";
    return;
  }
  std::printf("users   %12llu\nevents  %12llu\nbytes   %12llu (%.2f an event)\n",
              static_cast<unsigned long long>(stats->users), static_cast<unsigned long long>(stats->events),
              static_cast<unsigned long long>(stats->disk_bytes), per_event);
}

void Checked(std::ofstream& file, const std::string& path) {
  file.flush();
  if (!file) FailCommand(kExitUnavailable, absl::StrCat("write ", path, " failed"));
}

// JSON is UTF-8; other bytes would come back as a different user or item.
std::string Line(const json& object) {
  try {
    return object.dump() + "\n";
  } catch (const json::exception& error) {
    FailCommand(kExitFailed,
                absl::StrCat("export: text that is not UTF-8 has no JSON form; use --slot (", error.what(), ")"));
  }
}

// One JSON object a line: the import format of `backstory ingest`.
void ExportJson(const Flags& flags) {
  if (flags.events.empty() && flags.items.empty())
    FailCommand(kExitUsage, "export needs --events, --items, or --slot and --out");
  const Store store = Open(flags, true);
  uint64_t events = 0, items = 0;
  if (!flags.events.empty()) {
    std::ofstream out(flags.events, std::ios::binary);
    absl::Status read;
    CheckOk(store.history->ForEachUser(flags.ns, [&](const UserKey& user, const UserHead& /*head*/) {
      const auto snapshot = store.history->Read(user, {});
      read = snapshot.status();
      if (!read.ok()) return false;
      for (const Event& event : snapshot->events) {
        json line = EventToJson(event);
        line["user"] = user.user;
        out << Line(line);
        ++events;
      }
      return out.good();
    }));
    CheckOk(read);
    Checked(out, flags.events);
  }
  if (!flags.items.empty()) {
    std::ofstream out(flags.items, std::ios::binary);
    store.catalog->ForEach(flags.ns, [&](const Item& item) {
      out << Line(ItemToJson(item));
      ++items;
      return out.good();
    });
    Checked(out, flags.items);
  }
  std::cerr << events << " events and " << items << " items written\n";
}

void ExportSlot(const Flags& flags) {
  if (flags.out.empty()) FailCommand(kExitUsage, "export --slot needs --out FILE");
  const Store store = Open(flags, true);
  std::ofstream out(flags.out, std::ios::binary);
  CheckOk(store.history->ExportSlot(flags.slot, [&](std::string_view chunk) {
    out.write(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    return out ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("write ", flags.out, " failed"));
  }));
  Checked(out, flags.out);
}

void Import(const Flags& flags) {
  const Store store = Open(flags, false);
  std::ifstream in(flags.in, std::ios::binary);
  if (!in) FailCommand(kExitFailed, absl::StrCat("open ", flags.in, " failed"));
  CheckOk(store.history->ImportSlot(flags.slot, [&in]() -> absl::StatusOr<std::string> {
    std::string chunk(size_t{1} << 16, '\0');
    in.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
    chunk.resize(static_cast<size_t>(in.gcount()));
    return chunk;
  }));
}

void DeleteUser(const Flags& flags) {
  const Store store = Open(flags, false);
  const auto deleted = store.history->Delete({flags.ns, flags.user}, {.all = true}, NowMicros());
  CheckOk(deleted.status());
  if (flags.compact) CheckOk(store.history->Compact());
  std::cerr << *deleted << " events deleted"
            << (flags.compact ? " and their bytes removed" : "; their bytes go with the next compaction")
            << "; checkpoints made before still hold them\n";
}

}  // namespace

void AddStoreCommand(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* store = app.add_subcommand("store", "Check, repair, back up and move a store")->footer(kExamples);
  store->require_subcommand(1);
  const auto add = [&](const char* name, const char* what, const std::function<void()>& run) {
    CLI::App* command = store->add_subcommand(name, what);
    command->add_option("--store", flags->store, "Directory of the store")->required();
    command->callback(run);
    return command;
  };
  add("verify", "Check every file and every record; changes nothing", [flags] {
    Verify(*flags);
  })->add_flag("--json", flags->json, "One JSON object on stdout");
  CLI::App* repair =
      add("repair", "Put a backup in place, or salvage what is readable; keeps the damaged store beside it",
          [flags] { Repair(*flags); });
  repair->add_option("--from-backup", flags->backup, "A checkpoint to restore");
  repair->add_flag("--json", flags->json, "One JSON object on stdout");
  add("stats", "Users, events, bytes", [flags] {
    Stats(*flags);
  })->add_flag("--json", flags->json, "One JSON object on stdout");
  CLI::App* save = add("export", "Write events and items as JSON lines (the import format), or one slot as a stream",
                       [flags] { flags->slot >= 0 ? ExportSlot(*flags) : ExportJson(*flags); });
  save->add_option("--namespace", flags->ns, "Namespace")->capture_default_str();
  save->add_option("--events", flags->events, "JSON lines of all events");
  save->add_option("--items", flags->items, "JSON lines of all items");
  save->add_option("--slot", flags->slot, "One slot, 0 to 16383");
  save->add_option("--out", flags->out, "File of the slot");
  CLI::App* load = add("import", "Add the users of an exported slot", [flags] { Import(*flags); });
  load->add_option("--slot", flags->slot, "The slot, 0 to 16383")->required();
  load->add_option("--in", flags->in, "File that export --slot wrote")->required();
  add("compact", "Fold and compact everything: deleted bytes leave the files",
      [flags] { CheckOk(Open(*flags, false).history->Compact()); });
  add("checkpoint", "Make a consistent copy that can be opened or restored",
      [flags] { CheckOk(Open(*flags, false).history->Checkpoint(flags->out)); })
      ->add_option("--out", flags->out, "Directory to make; must not exist")
      ->required();
  CLI::App* forget =
      add("delete-user", "Delete a user and refuse replays of what was", [flags] { DeleteUser(*flags); });
  forget->add_option("--namespace", flags->ns, "Namespace")->capture_default_str();
  forget->add_option("--user", flags->user, "User id")->required();
  forget->add_flag("--compact", flags->compact, "Compact at once, so that no byte stays in the files");
}

}  // namespace backstory
