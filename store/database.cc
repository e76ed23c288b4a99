#include "store/database.h"

#include <openssl/rand.h>
#include <rocksdb/convenience.h>
#include <rocksdb/listener.h>
#include <rocksdb/sst_file_manager.h>
#include <rocksdb/utilities/checkpoint.h>

#include <chrono>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "store/byte_io.h"
#include "store/keys.h"
#include "store/kill_point.h"
#include "store/rocks_log.h"

namespace backstory {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSecretsKey = "secrets";
constexpr const char* kFormatKey = "format";

std::string BareName(const std::string& name) { return name.starts_with("/") ? name.substr(1) : name; }

}  // namespace

// Called on RocksDB's threads: remembers, never calls back.
class Database::Listener : public rocksdb::EventListener {
 public:
  explicit Listener(Database* database) : database_(database) {}
  void OnFlushCompleted(rocksdb::DB* /*db*/, const rocksdb::FlushJobInfo& /*info*/) override {
    PassKillPoint(KillPoint::kFlushed);
    database_->MarkRecordStale();
  }
  void OnCompactionCompleted(rocksdb::DB* /*db*/, const rocksdb::CompactionJobInfo& /*info*/) override {
    PassKillPoint(KillPoint::kCompacted);
    database_->MarkRecordStale();
  }
  void OnBackgroundError(rocksdb::BackgroundErrorReason /*reason*/, rocksdb::Status* status) override {
    if (status->severity() < rocksdb::Status::kHardError) return;  // a compaction waits for space; writes go on
    std::lock_guard<std::mutex> lock(database_->mutex_);
    database_->background_error_ = FromRocks(*status, database_->directory());
  }
  void OnErrorRecoveryEnd(const rocksdb::BackgroundErrorRecoveryInfo& info) override {
    {
      std::lock_guard<std::mutex> lock(database_->mutex_);
      database_->background_error_ = FromRocks(info.new_bg_error, database_->directory());
    }
    database_->MarkRecordStale();
  }

 private:
  Database* const database_;
};

ReadOnlyFiles::~ReadOnlyFiles() {
  for (rocksdb::ColumnFamilyHandle* handle : handles) db->DestroyColumnFamilyHandle(handle);
}

std::map<std::string, SstFile> ReadOnlyFiles::LiveSsts() const {
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  std::map<std::string, SstFile> live;
  for (const auto& file : files) {
    live[BareName(file.name)] = {file.size, absl::BytesToHexString(file.file_checksum)};
  }
  return live;
}

absl::StatusOr<ReadOnlyFiles> OpenFilesReadOnly(const StoreOptions& options, rocksdb::Env* env) {
  rocksdb::Options base = BaseOptions(options, env);
  base.info_log = NewSilentLog();
  ReadOnlyFiles files;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::OpenForReadOnly(
      base, options.directory, FamilyDescriptors(options, base, false), &files.handles, &db);
  files.db.reset(db);
  if (status.ok()) return files;
  if (status.IsInvalidArgument()) {  // a column family that the MANIFEST does not know
    return absl::DataLossError(
        absl::StrCat(options.directory, ": MANIFEST: ", status.ToString(), "; ", DamageAdvice(options.directory)));
  }
  return FromRocks(status, options.directory);
}

absl::StatusOr<IntegrityRecord> CheckStore(const StoreOptions& options, rocksdb::Env* env) {
  absl::StatusOr<IntegrityRecord> record = CheckFiles(options.directory);
  if (!record.ok() || record->state == IntegrityRecord::State::kCreating) return record;
  absl::StatusOr<uint64_t> watermark = Watermark::Read(options.directory);
  if (!watermark.ok()) return watermark.status();
  absl::StatusOr<ReadOnlyFiles> files = OpenFilesReadOnly(options, env);
  if (!files.ok()) return files.status();
  const absl::Status same =
      CheckAgainstLive(options.directory, *record, files->LiveSsts(), files->db->GetLatestSequenceNumber(), *watermark);
  if (!same.ok()) return same;
  // What a store reads while it opens for writing, read here: found there, damage would have let RocksDB change files.
  for (const Family family : {Family::kMeta, Family::kCatalog}) {
    rocksdb::ReadOptions read;
    read.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(
        files->db->NewIterator(read, files->handles[static_cast<size_t>(family)]));
    for (it->SeekToFirst(); it->Valid();) it->Next();
    if (!it->status().ok()) return FromRocks(it->status(), options.directory);
  }
  return record;
}

absl::Status AdoptDirectory(const std::string& directory, rocksdb::Env* env) {
  StoreOptions options;
  options.directory = directory;
  absl::StatusOr<ReadOnlyFiles> files = OpenFilesReadOnly(options, env);
  if (!files.ok()) return files.status();
  IntegrityRecord record;
  record.state = IntegrityRecord::State::kClosed;
  record.sequence = files->db->GetLatestSequenceNumber();
  record.ssts = files->LiveSsts();
  absl::StatusOr<std::string> current = ReadWholeFile(directory + "/CURRENT");
  if (!current.ok()) return current.status();
  record.manifest = current->substr(0, current->find('\n'));
  std::error_code error;
  record.manifest_bytes = fs::file_size(directory + "/" + record.manifest, error);
  absl::StatusOr<uint64_t> hash = HashFilePrefix(directory + "/" + record.manifest, record.manifest_bytes);
  if (!hash.ok()) return hash.status();
  record.manifest_hash = *hash;
  Watermark watermark;
  if (absl::Status status = watermark.Open(directory); !status.ok()) return status;
  for (int slot = 0; slot < 2; ++slot) {  // both: a copied file may hold a higher number
    if (absl::Status status = watermark.Set(record.sequence); !status.ok()) return status;
  }
  if (absl::Status status = watermark.Sync(); !status.ok()) return status;
  return WriteIntegrity(directory, record);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const StoreOptions& options, rocksdb::Env* env) {
  absl::StatusOr<DirectoryState> found = InspectDirectory(options.directory);
  if (!found.ok()) return found.status();
  if (*found != DirectoryState::kStore && (options.read_only || !options.create_if_missing)) {
    return absl::NotFoundError(absl::StrCat("no store in ", options.directory));
  }
  std::unique_ptr<Database> database(new Database(options, env));
  const absl::Status status = options.read_only ? database->OpenReadOnly() : database->OpenForWriting(*found);
  if (!status.ok()) return status;
  return database;
}

absl::Status Database::OpenReadOnly() {
  if (absl::Status status = lock_.Acquire(options_.directory, false); !status.ok()) return status;
  if (absl::Status status = CheckStore(options_, env_).status(); !status.ok()) return status;
  absl::StatusOr<ReadOnlyFiles> files = OpenFilesReadOnly(options_, env_);
  if (!files.ok()) return files.status();
  db_ = std::move(files->db);
  handles_ = std::exchange(files->handles, {});
  return PrepareMeta(false);
}

absl::Status Database::OpenForWriting(DirectoryState found) {
  std::error_code error;
  fs::create_directories(options_.directory, error);
  if (error) return FileError(error.value(), "create directory", options_.directory);
  if (absl::Status status = lock_.Acquire(options_.directory, true); !status.ok()) return status;
  IntegrityRecord record;
  if (found == DirectoryState::kStore) {
    absl::StatusOr<IntegrityRecord> checked = CheckStore(options_, env_);
    if (!checked.ok()) return checked.status();
    record = *std::move(checked);
  }
  const bool created = record.state == IntegrityRecord::State::kCreating;
  // From here to the first new record RocksDB may change MANIFEST, and a crash in between must not look like damage.
  if (!created) record.state = IntegrityRecord::State::kOpening;
  if (absl::Status status = WriteIntegrity(options_.directory, record); !status.ok()) return status;
  if (absl::Status status = watermark_.Open(options_.directory); !status.ok()) return status;

  PassKillPoint(KillPoint::kOpenMarked);
  files_ = std::make_shared<LogFileSystem>(env_->GetFileSystem(), options_.directory, options_.reserve_bytes / 2);
  log_env_ = rocksdb::NewCompositeEnv(files_);
  rocksdb::Options base = BaseOptions(options_, log_env_.get());
  base.info_log = NewRocksLog(options_.directory);
  base.create_if_missing = base.create_missing_column_families = created;
  listener_ = std::make_shared<Listener>(this);
  base.listeners.push_back(listener_);
  rocksdb::Status rocks_status;
  base.sst_file_manager.reset(rocksdb::NewSstFileManager(log_env_.get(), base.info_log, "", 0, true, &rocks_status));
  rocksdb::DB* db = nullptr;
  if (rocks_status.ok()) {
    rocks_status =
        rocksdb::DB::Open(base, options_.directory, FamilyDescriptors(options_, base, false), &handles_, &db);
  }
  db_.reset(db);
  if (!rocks_status.ok()) return FromRocks(rocks_status, options_.directory);
  PassKillPoint(KillPoint::kOpenRecovered);
  if (absl::Status status = PrepareMeta(created); !status.ok()) return status;
  if (absl::Status status = SyncLog(); !status.ok()) return status;
  if (absl::Status status = WriteRecord(IntegrityRecord::State::kOpen); !status.ok()) return status;
  rocks_status = db_->EnableAutoCompaction(handles_);
  if (!rocks_status.ok()) return FromRocks(rocks_status, options_.directory);
  maintenance_ = std::thread([this] { Maintain(); });
  return absl::OkStatus();
}

absl::Status Database::PrepareMeta(bool created) {
  std::string value;
  absl::StatusOr<bool> found = Get(Family::kMeta, kSecretsKey, &value);
  if (!found.ok()) return found.status();
  if (*found && !value.empty() && value.size() % kSecretBytes == 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < value.size(); i += kSecretBytes) secrets_.push_back(value.substr(i, kSecretBytes));
    own_secret_ = secrets_.front();
    return absl::OkStatus();
  }
  if (!created) {
    return absl::DataLossError(
        absl::StrCat(directory(), ": the record of secrets is missing; ", DamageAdvice(directory())));
  }
  std::string secret(kSecretBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(secret.data()), static_cast<int>(secret.size())) != 1) {
    return absl::UnavailableError("no random bytes for a new store");
  }
  rocksdb::WriteBatch batch;
  batch.Put(family(Family::kMeta), kFormatKey, absl::StrCat(kStoreFormatVersion));
  AddSecret(secret, &batch);
  own_secret_ = secret;
  return Write(&batch, true);
}

void Database::AddSecret(const std::string& secret, rocksdb::WriteBatch* batch) {
  std::string value;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    secrets_.push_back(secret);
    for (const std::string& s : secrets_) value += s;
  }
  batch->Put(family(Family::kMeta), kSecretsKey, value);
}

Database::~Database() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (maintenance_.joinable()) maintenance_.join();
  if (db_ == nullptr) return;
  bool clean = !options_.read_only && maintenance_.get_id() == std::thread::id() && listener_ != nullptr;
  if (clean) {
    rocksdb::FlushOptions flush;
    clean = SyncLog().ok() && db_->Flush(flush, handles_).ok();
    rocksdb::CancelAllBackgroundWork(db_.get(), true);
    clean = clean && WriteRecord(IntegrityRecord::State::kOpen).ok();
    PassKillPoint(KillPoint::kCloseFlushed);
  }
  for (rocksdb::ColumnFamilyHandle* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  handles_.clear();
  clean = db_->Close().ok() && clean;
  db_.reset();
  PassKillPoint(KillPoint::kCloseDone);
  if (clean) {
    // Failure leaves the record of an open store, which is checked as after a crash.
    (void)AdoptDirectory(options_.directory, env_);
  }
}

absl::StatusOr<bool> Database::Get(Family f, const std::string& key, std::string* value,
                                   const rocksdb::Snapshot* snapshot) const {
  rocksdb::ReadOptions read;
  read.snapshot = snapshot;
  const rocksdb::Status status = db_->Get(read, family(f), key, value);
  if (status.IsNotFound()) return false;
  if (!status.ok()) return FromRocks(status, directory());
  return true;
}

std::unique_ptr<rocksdb::Iterator> Database::Scan(Family f, const rocksdb::Snapshot* snapshot, bool bulk) const {
  rocksdb::ReadOptions read;
  read.snapshot = snapshot;
  read.fill_cache = !bulk;
  return std::unique_ptr<rocksdb::Iterator>(db_->NewIterator(read, family(f)));
}

absl::Status Database::Write(rocksdb::WriteBatch* batch, bool sync) {
  if (absl::Status admitted = AdmitWrite(); !admitted.ok()) return admitted;
  PassKillPoint(KillPoint::kBeforeWrite);
  // Never with WriteOptions::sync: the log is synced by SyncLog, which may fail and be tried again.
  const rocksdb::Status status = db_->Write(rocksdb::WriteOptions(), batch);
  if (!status.ok()) return FromRocks(status, directory());
  unsynced_ = true;
  PassKillPoint(KillPoint::kAfterWrite);
  return sync ? SyncLog() : FromRocks(files_->LogHealth(), directory());
}

absl::Status Database::AdmitWrite() {
  if (!files_->LogHealth().ok()) {  // a log is behind: first what it lacks
    if (absl::Status status = SyncLog(); !status.ok()) return status;
  }
  return CheckSpace();
}

absl::Status Database::CheckSpace() const {
  const uint64_t free = files_->FreeBytes(directory());
  if (free >= options_.reserve_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("store ", directory(), ": ", free, " bytes of disk are free, ", options_.reserve_bytes,
                   " are kept in reserve; free disk space, writes resume by themselves"));
}

absl::Status Database::SyncLog() {
  unsynced_ = false;
  const uint64_t sequence = db_->GetLatestSequenceNumber();
  if (const rocksdb::Status status = files_->SyncLogs(); !status.ok()) {
    unsynced_ = true;
    return FromRocks(status, directory());
  }
  ++syncs_;
  PassKillPoint(KillPoint::kAfterSync);
  std::lock_guard<std::mutex> lock(sync_mutex_);
  if (sequence <= acknowledged_) return absl::OkStatus();
  acknowledged_ = sequence;
  const absl::Status raised = watermark_.Set(sequence);
  PassKillPoint(KillPoint::kAfterWatermark);
  return raised;
}

absl::Status Database::EnsureSynced() {
  return db_->GetLatestSequenceNumber() > acknowledged_ ? SyncLog() : absl::OkStatus();
}

absl::Status Database::DescribeFiles(IntegrityRecord* record) const {
  constexpr int kTriesMax = 100;  // a flush or compaction may end between the two calls
  for (int tries = 0; tries < kTriesMax; ++tries) {
    std::vector<std::string> names;
    uint64_t manifest_bytes = 0;
    const rocksdb::Status status = db_->GetLiveFiles(names, &manifest_bytes, /*flush_memtable=*/false);
    if (!status.ok()) return FromRocks(status, directory());
    std::vector<rocksdb::LiveFileMetaData> files;
    db_->GetLiveFilesMetaData(&files);
    record->ssts.clear();
    for (const auto& file : files) {
      record->ssts[BareName(file.name)] = {file.size, absl::BytesToHexString(file.file_checksum)};
    }
    size_t ssts = 0;
    bool known = true;
    for (const std::string& path : names) {
      const std::string name = BareName(path);
      if (name.starts_with("MANIFEST-")) record->manifest = name;
      if (!name.ends_with(".sst")) continue;
      ++ssts;
      known = known && record->ssts.contains(name);
    }
    record->manifest_bytes = manifest_bytes;
    if (known && ssts == record->ssts.size()) return absl::OkStatus();
  }
  return absl::UnavailableError("live files kept changing");
}

absl::Status Database::WriteRecord(IntegrityRecord::State state) {
  std::lock_guard<std::mutex> lock(record_mutex_);
  IntegrityRecord record;
  record.state = state;
  record.sequence = acknowledged_;
  if (absl::Status status = DescribeFiles(&record); !status.ok()) return status;
  absl::StatusOr<uint64_t> hash = HashFilePrefix(directory() + "/" + record.manifest, record.manifest_bytes);
  if (!hash.ok()) return hash.status();
  record.manifest_hash = *hash;
  return WriteIntegrity(directory(), record);
}

void Database::MarkRecordStale() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    record_stale_ = true;
  }
  wake_.notify_all();
}

void Database::Maintain() {
  const auto interval = options_.wal_flush_interval;
  auto next_watermark_sync = std::chrono::steady_clock::now();
  uint64_t synced_watermark = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    wake_.wait_for(lock, interval, [this] { return stopping_ || record_stale_; });
    const bool stale = std::exchange(record_stale_, false);
    lock.unlock();
    if (unsynced_) (void)SyncLog();  // a failure is the next writer's failure too, and Health()
    const bool failed = stale && !WriteRecord(IntegrityRecord::State::kOpen).ok();
    if (const auto now = std::chrono::steady_clock::now();
        now >= next_watermark_sync && acknowledged_ != synced_watermark) {
      synced_watermark = acknowledged_;
      (void)watermark_.Sync();
      next_watermark_sync = now + std::chrono::seconds(1);
    }
    lock.lock();
    if (failed && !stopping_) {  // a full disk: again after a pause, not at once
      wake_.wait_for(lock, interval, [this] { return stopping_; });
      record_stale_ = true;
    }
  }
}

absl::Status Database::Checkpoint(const std::string& target) {
  std::error_code error;
  std::lock_guard<std::mutex> one_at_a_time(checkpoint_mutex_);  // a second of the same name would clear this one away
  if (absl::Status health = Health(); !health.ok()) return health;
  if (fs::exists(target, error))
    return absl::AlreadyExistsError(absl::StrCat("checkpoint directory ", target, " exists"));
  const std::string parent = fs::absolute(target).parent_path().string();
  // RocksDB reports a missing or read-only target as an I/O error, which would read as damage of this store.
  fs::create_directories(parent, error);
  if (error) return FileError(error.value(), "create directory", parent);
  // A name that no checkpoint of an operator has.
  const std::string partial = absl::StrCat(parent, "/.", fs::absolute(target).filename().string(), ".partial");
  fs::remove_all(partial, error);
  rocksdb::Checkpoint* made = nullptr;
  rocksdb::Status status = rocksdb::Checkpoint::Create(db_.get(), &made);
  std::unique_ptr<rocksdb::Checkpoint> checkpoint(made);
  if (status.ok()) status = checkpoint->CreateCheckpoint(partial, 0);
  if (!status.ok()) return FromRocks(status, directory());
  PassKillPoint(KillPoint::kCheckpointMade);
  if (absl::Status adopted = AdoptDirectory(partial, env_); !adopted.ok()) return adopted;
  PassKillPoint(KillPoint::kCheckpointAdopted);
  fs::rename(partial, target, error);
  if (error) return FileError(error.value(), "rename", partial);
  return SyncDirectory(parent);
}

absl::Status Database::CompactAll() {
  rocksdb::CompactRangeOptions compact;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForceOptimized;
  compact.exclusive_manual_compaction = true;
  rocksdb::Status status = db_->Flush(rocksdb::FlushOptions(), handles_);
  for (size_t i = 0; status.ok() && i < handles_.size(); ++i) {
    status = db_->CompactRange(compact, handles_[i], nullptr, nullptr);
  }
  if (!status.ok()) return FromRocks(status, directory());
  return WriteRecord(IntegrityRecord::State::kOpen);
}

absl::Status Database::Health() const {
  if (read_only()) return absl::OkStatus();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!background_error_.ok()) return background_error_;
  }
  if (rocksdb::IOStatus logs = files_->LogHealth(); !logs.ok()) return FromRocks(logs, directory());
  return CheckSpace();
}

}  // namespace backstory
