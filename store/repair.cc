#include <rocksdb/db.h>

#include <filesystem>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "store/database.h"
#include "store/limits.h"
#include "store/maintenance.h"
#include "store/rocks_log.h"
#include "store/store_core.h"

namespace backstory {
namespace fs = std::filesystem;
namespace {

// directory.suffix, or with a number where that is taken.
std::string FreeName(const std::string& directory, const std::string& suffix) {
  std::error_code error;
  std::string name = absl::StrCat(directory, ".", suffix);
  for (int i = 2; fs::exists(name, error); ++i) name = absl::StrCat(directory, ".", suffix, "-", i);
  return name;
}

std::string Trimmed(std::string directory) {
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  return directory;
}

// The repaired directory takes the damaged one's place.
absl::Status Swap(const std::string& directory, const std::string& repaired, RepairReport* report) {
  report->damaged_moved_to = FreeName(directory, "damaged");
  std::error_code error;
  fs::rename(directory, report->damaged_moved_to, error);
  if (error) return FileError(error.value(), "rename", directory);
  fs::rename(repaired, directory, error);
  if (error) return FileError(error.value(), "rename", repaired);
  return SyncDirectory(fs::absolute(directory).parent_path().string());
}

// Copies what `files` still holds into the open store `core`.
class Salvage {
 public:
  Salvage(ReadOnlyFiles* files, StoreCore* core, RepairReport* report) : files_(files), core_(core), report_(report) {}

  absl::Status Run() {
    if (absl::Status status = Secrets(); !status.ok()) return status;
    if (absl::Status status = CopyRaw(Family::kCatalog, &report_->items); !status.ok()) return status;
    if (absl::Status status = ReadHeads(); !status.ok()) return status;
    if (absl::Status status = Histories(); !status.ok()) return status;
    return Aliases();
  }

 private:
  std::unique_ptr<rocksdb::Iterator> Scan(Family f) {
    return std::unique_ptr<rocksdb::Iterator>(files_->db->NewIterator({}, files_->handles[static_cast<size_t>(f)]));
  }
  absl::Status Write(const std::function<void(rocksdb::WriteBatch*)>& fill) {
    return core_->queue.Run(
        [&] {
          fill(core_->writer.batch());
          return absl::OkStatus();
        },
        true, 1);
  }
  void Unreadable(const std::string& what) {
    ++report_->unreadable;
    if (report_->notes.size() < 20) report_->notes.push_back(what);
  }

  // Marks of deleted users are worth nothing without the secret that they were made with.
  absl::Status Secrets() {
    std::string value;
    if (!files_->db->Get({}, files_->handles[0], "secrets", &value).ok()) {
      Unreadable("the record of secrets: marks of deleted users no longer refuse replays");
      return absl::OkStatus();
    }
    return Write([&](rocksdb::WriteBatch* batch) {
      for (size_t i = 0; i + kSecretBytes <= value.size(); i += kSecretBytes) {
        core_->database->AddSecret(value.substr(i, kSecretBytes), batch);
      }
    });
  }

  absl::Status CopyRaw(Family f, uint64_t* count) {
    auto it = Scan(f);
    for (it->SeekToFirst(); it->Valid();) {
      const absl::Status status = Write([&](rocksdb::WriteBatch* batch) {
        for (int n = 0; n < 10'000 && it->Valid(); ++n, it->Next(), ++*count) {
          batch->Put(core_->database->family(f), it->key(), it->value());
        }
      });
      if (!status.ok()) return status;
    }
    if (!it->status().ok()) Unreadable(it->status().ToString());
    return absl::OkStatus();
  }

  absl::Status ReadHeads() {
    auto it = Scan(Family::kHeads);
    std::vector<std::pair<std::string, std::string>> marks;
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      UserRecord record;
      if (it->key().size() != kUserPrefixBytes) {
        marks.emplace_back(it->key().ToString(), it->value().ToString());
      } else if (DecodeUserRecord(it->value().ToStringView(), &record)) {
        users_[it->key().ToString()] = std::move(record);
      } else {
        Unreadable("a head record is malformed");
      }
    }
    if (!it->status().ok()) Unreadable(it->status().ToString());
    return Write([&](rocksdb::WriteBatch* batch) {
      for (const auto& [key, value] : marks) batch->Put(core_->database->family(Family::kHeads), key, value);
    });
  }

  // A damaged file block ends an iterator; reading goes on at the next user.
  absl::Status Histories() {
    for (const auto& [prefix, record] : users_) {
      if (!record.alias_of.empty()) continue;
      ++report_->users;
      uint64_t found = 0;
      auto it = Scan(Family::kHistory);
      for (it->Seek(prefix); it->Valid() && it->key().starts_with(prefix); it->Next()) {
        std::vector<StoredEvent> stored;
        if (!DecodeBlock(it->value().ToStringView(), &stored)) {
          Unreadable("a history record is malformed");
          continue;
        }
        found += stored.size();
        if (absl::Status status = AppendStored(record.user, stored); !status.ok()) return status;
      }
      if (!it->status().ok()) Unreadable(it->status().ToString());
      if (found < record.stored)
        Unreadable(absl::StrCat(record.stored - found, " events of a user in slot ", SlotOf(record.user.user)));
    }
    return absl::OkStatus();
  }

  absl::Status AppendStored(const UserKey& user, const std::vector<StoredEvent>& stored) {
    std::vector<Event> events;
    for (const StoredEvent& e : stored) events.push_back(e.event);
    AppendResult result;
    result.outcomes.assign(events.size(), EventOutcome::kAccepted);
    result.reasons.resize(events.size());
    const absl::Status status =
        core_->queue.Run([&] { return core_->writer.Append(user, events, 0, true, &result); }, false, events.size());
    report_->events += result.accepted;
    return status;
  }

  absl::Status Aliases() {
    for (const auto& [prefix, record] : users_) {
      if (record.alias_of.empty()) continue;
      const absl::Status status = core_->queue.Run(
          [&] {
            return core_->writer.Merge(record.user, {record.user.ns, record.alias_of});
          },
          true, 1);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  ReadOnlyFiles* files_;
  StoreCore* core_;
  RepairReport* report_;
  std::map<std::string, UserRecord> users_;
};

}  // namespace

absl::StatusOr<RepairReport> RepairFromBackup(const std::string& store, const std::string& checkpoint) {
  const std::string directory = Trimmed(store);
  DirectoryLock lock;
  if (absl::Status status = lock.Acquire(directory, true); !status.ok()) return status;
  absl::StatusOr<VerifyReport> backup = VerifyStore(checkpoint);
  if (!backup.ok()) return backup.status();
  if (!backup->problems.empty()) {
    return absl::DataLossError(absl::StrCat("checkpoint ", checkpoint, " is damaged too: ", backup->problems[0]));
  }
  RepairReport report;
  report.users = backup->users;
  report.events = backup->events;
  report.items = backup->items;
  const std::string repaired = FreeName(directory, "repaired");
  if (absl::Status status = CopyStoreDirectory(checkpoint, repaired); !status.ok()) return status;
  if (absl::Status status = AdoptDirectory(repaired, rocksdb::Env::Default()); !status.ok()) return status;
  if (absl::Status status = Swap(directory, repaired, &report); !status.ok()) return status;
  return report;
}

absl::StatusOr<RepairReport> SalvageStore(const std::string& store) {
  const std::string directory = Trimmed(store);
  DirectoryLock lock;
  if (absl::Status status = lock.Acquire(directory, true); !status.ok()) return status;
  rocksdb::Env* env = rocksdb::Env::Default();
  RepairReport report;
  const std::string copy = FreeName(directory, "salvage"), repaired = FreeName(directory, "repaired");
  if (absl::Status status = CopyStoreDirectory(directory, copy); !status.ok()) return status;
  StoreOptions options;
  options.directory = copy;
  rocksdb::Options base = BaseOptions(options, env);
  base.info_log = NewRocksLog(copy);
  base.create_if_missing = base.create_missing_column_families = true;
  // Rebuilds the list of files from the files themselves; on the copy, because it moves away what it cannot read.
  const rocksdb::Status rebuilt =
      rocksdb::RepairDB(copy, rocksdb::DBOptions(base), FamilyDescriptors(options, base, false));
  if (!rebuilt.ok()) return FromRocks(rebuilt, copy);
  {
    // Families that lost every file are made anew, empty.
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* opened = nullptr;
    const rocksdb::Status status =
        rocksdb::DB::Open(base, copy, FamilyDescriptors(options, base, false), &handles, &opened);
    const std::unique_ptr<rocksdb::DB> db(opened);
    if (!status.ok()) return FromRocks(status, copy);
    for (auto* handle : handles) db->DestroyColumnFamilyHandle(handle);
  }
  absl::StatusOr<ReadOnlyFiles> files = OpenFilesReadOnly(options, env);
  if (!files.ok()) return files.status();
  {
    StoreOptions target;
    target.directory = repaired;
    absl::StatusOr<std::shared_ptr<StoreCore>> core = OpenCore(target, env);
    if (!core.ok()) return core.status();
    if (absl::Status status = Salvage(&*files, core->get(), &report).Run(); !status.ok()) return status;
  }
  std::error_code ignored;
  fs::remove_all(copy, ignored);
  if (absl::Status status = Swap(directory, repaired, &report); !status.ok()) return status;
  return report;
}

}  // namespace backstory
