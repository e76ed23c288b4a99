#include "serving/engine/experiments/exposure_log.h"

#include <openssl/hmac.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace backstory {
namespace {

using nlohmann::json;

constexpr size_t kBatchRecordsMax = 4096;
constexpr size_t kKeyBytesMax = 1024;

std::string RandomHex() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

void AppendLine(const json& line, std::string* lines) {
  // Ids are opaque bytes: what is not UTF-8 is replaced rather than refused.
  absl::StrAppend(lines, line.dump(-1, ' ', false, json::error_handler_t::replace), "\n");
}

const std::string& IdOf(const Units& units, const std::string& kind) {
  return kind == "device" ? units.device : kind == "session" ? units.session : units.user;
}

}  // namespace

std::string UnitHash(const std::string& key, std::string_view unit, std::string_view id) {
  std::string text(unit);
  text.append("/").append(id);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), reinterpret_cast<const unsigned char*>(text.data()),
       text.size(), digest, &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), 8));
}

absl::StatusOr<std::unique_ptr<ExposureLog>> ExposureLog::Open(ExposureLogOptions options, LogDirectory* directory,
                                                               const Clock* clock, Metrics* metrics) {
  if (options.key.empty() || options.key.size() > kKeyBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("exposure log: the key of unit hashes has ", options.key.size(),
                                                   " bytes, 1..", kKeyBytesMax, " wanted"));
  }
  return std::unique_ptr<ExposureLog>(new ExposureLog(std::move(options), directory, clock, metrics));
}

ExposureLog::ExposureLog(ExposureLogOptions options, LogDirectory* directory, const Clock* clock, Metrics* metrics)
    : options_(std::move(options)),
      clock_(clock),
      run_(RandomHex()),
      log_(directory, clock, options_.files),
      records_metric_(metrics->GetCounter("backstory_exposure_log_records_total", "Exposure log records written")),
      dropped_metric_(metrics->GetCounter("backstory_exposure_log_dropped_total",
                                          "Exposure log records dropped because the disk did not keep up or failed")),
      errors_metric_(
          metrics->GetCounter("backstory_exposure_log_write_errors_total", "Failed writes of the exposure log")),
      failing_metric_(
          metrics->GetGauge("backstory_exposure_log_failing", "1 while the exposure log cannot be written")),
      writer_([this] { Run(); }) {}

ExposureLog::~ExposureLog() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  writer_.join();
}

void ExposureLog::Write(const ExposureRecord& record) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Exposure& exposure : record.exposures) {
      if (exposure.reason != kReasonOverride) ++counts_[{exposure.layer, exposure.experiment, exposure.arm}];
    }
  }
  Enqueue(record);
}

void ExposureLog::Finish(const ExposureFinal& final_record) { Enqueue(final_record); }

void ExposureLog::Enqueue(Record record) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (queue_.size() >= options_.queue_records_max) {
    ++dropped_;
    ++dropped_unlogged_;
    dropped_metric_->Add();
    return;
  }
  queue_.push_back(std::move(record));
  if (queue_.size() == 1) wake_.notify_one();
}

absl::Status ExposureLog::Flush() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t mine = ++flush_wanted_;
  wake_.notify_one();
  flushed_.wait(lock, [&] { return flush_done_ >= mine; });
  return health_;
}

std::map<ExposureLog::ArmKey, uint64_t> ExposureLog::Counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

uint64_t ExposureLog::dropped() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return dropped_;
}

// Takes what waits, writes it, syncs now and then. While the disk fails, what was taken stays in pending_ and nothing
// more is taken, so that memory is bounded by one batch and the queue.
void ExposureLog::Run() {
  int64_t synced_us = clock_->MonotonicMicros();
  bool unsynced = false;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    const bool failing = !health_.ok();
    const auto ready = [&] { return stopping_ || flush_wanted_ > flush_done_ || (!failing && !queue_.empty()); };
    const int64_t wait_us = failing ? options_.retry_interval_us : options_.sync_interval_us;
    wake_.wait_for(lock, std::chrono::microseconds(wait_us), ready);
    const bool stopping = stopping_;
    const uint64_t flush = flush_wanted_;
    const bool flushing = flush > flush_done_;
    std::deque<Record> batch;
    if (pending_.empty()) {
      const auto end = queue_.begin() + static_cast<std::ptrdiff_t>(std::min(queue_.size(), kBatchRecordsMax));
      batch.assign(std::make_move_iterator(queue_.begin()), std::make_move_iterator(end));
      queue_.erase(queue_.begin(), end);
    }
    const bool drained = queue_.empty();
    const uint64_t dropped = pending_.empty() ? std::exchange(dropped_unlogged_, 0) : 0;
    lock.unlock();
    const bool any = !batch.empty() || !pending_.empty() || dropped > 0;
    absl::Status status = any ? WriteBatch(batch, dropped) : absl::OkStatus();
    unsynced |= any;
    const bool due = clock_->MonotonicMicros() - synced_us >= options_.sync_interval_us;
    if (status.ok() && unsynced && (due || stopping || flushing)) {
      status = log_.Sync();
      synced_us = clock_->MonotonicMicros();
      unsynced = !status.ok();
    }
    SetHealth(status);
    lock.lock();
    health_ = status;
    if (status.ok() && !drained) continue;  // a flush, or the end, waits for the rest
    flush_done_ = std::max(flush_done_, flush);
    flushed_.notify_all();
    if (stopping) return;
  }
}

absl::Status ExposureLog::WriteBatch(const std::deque<Record>& batch, uint64_t dropped) {
  if (dropped > 0) {
    AppendLine({{"type", "dropped"}, {"run", run_}, {"time_us", clock_->WallMicros()}, {"records", dropped}},
               &pending_);
  }
  for (const Record& record : batch) Serialise(record, &pending_);
  const absl::Status status = log_.Append(pending_);
  if (!status.ok()) {
    errors_metric_->Add();
    return status;
  }
  records_metric_->Add(static_cast<double>(std::ranges::count(pending_, '\n')));
  pending_.clear();
  return status;
}

void ExposureLog::Serialise(const Record& record, std::string* lines) const {
  if (const auto* final_record = std::get_if<ExposureFinal>(&record)) {
    json line{{"type", "final"},
              {"run", run_},
              {"id", final_record->id},
              {"time_us", clock_->WallMicros()},
              {"status", final_record->status},
              {"model", final_record->model},
              {"version", final_record->version},
              {"degrade_step", final_record->degrade_step}};
    for (const EffectiveParameter& parameter : final_record->parameters) {
      line["parameters"][parameter.name] = parameter.value;
    }
    return AppendLine(line, lines);
  }
  const auto& exposed = std::get<ExposureRecord>(record);
  std::map<std::string, std::string> hashes;
  for (const Exposure& exposure : exposed.exposures) {
    std::string& hash = hashes[exposure.unit];
    if (hash.empty()) hash = UnitHash(options_.key, exposure.unit, IdOf(exposed.units, exposure.unit));
    AppendLine({{"type", "exposure"},
                {"run", run_},
                {"id", exposed.id},
                {"time_us", exposed.now_us},
                {"namespace", exposed.ns},
                {"scene", exposed.scene},
                {"layer", exposure.layer},
                {"experiment", exposure.experiment},
                {"arm", exposure.arm},
                {"unit", exposure.unit},
                {"unit_hash", hash},
                {"reason", exposure.reason},
                {"config_version", exposed.config_version},
                {"model", exposed.model},
                {"version", exposed.version},
                {"request_id", std::to_string(exposed.request_id)}},
               lines);
  }
}

void ExposureLog::SetHealth(const absl::Status& status) {
  failing_metric_->Set(status.ok() ? 0 : 1);
  bool changed = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    changed = status.ok() != health_.ok();
  }
  if (changed && options_.on_health) options_.on_health(status);
}

}  // namespace backstory
