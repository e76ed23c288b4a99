// How RocksDB is set up, with reasons; and how its statuses become ours.
#include <rocksdb/cache.h>
#include <rocksdb/file_checksum.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/slice_transform.h>
#include <rocksdb/sst_file_manager.h>
#include <rocksdb/table.h>

#include "absl/strings/str_cat.h"
#include "store/cell_codec.h"
#include "store/database.h"

namespace backstory {

absl::Status FromRocks(const rocksdb::Status& status, const std::string& directory) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat("store ", directory, ": ", status.ToString());
  // A write that waited for a flush which then failed is Incomplete, and its cause survives as text alone.
  const bool waited_in_vain = status.IsIncomplete() && text.find("No space left on device") != std::string::npos;
  if (waited_in_vain || status.IsNoSpace() || status.subcode() == rocksdb::Status::SubCode::kSpaceLimit) {
    return absl::ResourceExhaustedError(absl::StrCat(text, "; free disk space, writes resume by themselves"));
  }
  if (status.IsCorruption() || status.IsPathNotFound() || status.IsNotFound()) {
    return absl::DataLossError(absl::StrCat(text, "; ", DamageAdvice(directory)));
  }
  if (status.IsInvalidArgument() || status.IsNotSupported() || status.IsMergeInProgress())
    return absl::InternalError(text);
  return absl::UnavailableError(text);
}

rocksdb::Options BaseOptions(const StoreOptions& options, rocksdb::Env* env) {
  rocksdb::Options o;
  o.env = env;
  o.paranoid_checks = true;
  // A prefix of the log in commit order, never a hole. What it drops is compared with the watermark: a torn tail that
  // was never acknowledged passes, damage below the watermark refuses. (kAbsoluteConsistency would refuse every torn
  // tail, kTolerateCorruptedTailRecords may skip a hole between two logs.)
  o.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  // track_and_verify_wals_in_manifest stays off: it could record a size that a log has not reached on a full disk (see
  // log_file_system.h), and the watermark, which covers the open log too, says more.
  o.manifest_preallocation_size = 256 << 10;  // 4 MB would be much of a nearly full disk
  o.max_total_wal_size = 4 * options.write_buffer_bytes;  // bounds recovery
  o.file_checksum_gen_factory = rocksdb::GetFileChecksumGenCrc32cFactory();
  o.max_background_jobs = std::max(2, options.background_threads);
  o.avoid_flush_during_shutdown = true;  // we flush ourselves, to record what was flushed
  o.bytes_per_sync = 1 << 20;            // no fsync storms at the end of a large file
  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;
  return o;
}

std::vector<rocksdb::ColumnFamilyDescriptor> FamilyDescriptors(const StoreOptions& options,
                                                               const rocksdb::Options& base, bool compactions) {
  auto cache = rocksdb::NewLRUCache(options.block_cache_bytes);
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  for (size_t i = 0; i < kFamilies; ++i) {
    rocksdb::ColumnFamilyOptions cf(base);
    const auto family = static_cast<Family>(i);
    rocksdb::BlockBasedTableOptions table;
    table.block_cache = cache;
    table.format_version = 5;
    table.block_size = family == Family::kHistory ? 16 << 10 : 8 << 10;
    if (family == Family::kHeads)
      table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));   // unknown users: no read
    if (family == Family::kCells) table.block_restart_interval = 64;  // many short keys that share a prefix
    cf.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    // Fast while young; the last level, where nearly all bytes are, small.
    cf.compression = rocksdb::kLZ4Compression;
    cf.bottommost_compression = rocksdb::kZSTD;
    cf.bottommost_compression_opts.level = 3;
    cf.bottommost_compression_opts.enabled = true;
    cf.write_buffer_size = family == Family::kHistory ? options.write_buffer_bytes
                                                      : std::max<size_t>(options.write_buffer_bytes / 4, 64 << 10);
    cf.disable_auto_compactions = !compactions;
    cf.level_compaction_dynamic_level_bytes = true;
    if (family == Family::kCells) {
      cf.merge_operator = NewCellMergeOperator();
      cf.memtable_insert_with_hint_prefix_extractor.reset(
          rocksdb::NewFixedPrefixTransform(1));  // commits insert in order
    }
    families.emplace_back(kFamilyNames[i], cf);
  }
  return families;
}

}  // namespace backstory
