#include "serving/cli/ingest_run.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

constexpr size_t kBatchEventsMax = 10'000;  // of one user in one Append
constexpr size_t kCommitEventsMax = 40'000;
constexpr size_t kCatalogBatch = 10'000;

// Pieces parsed by threads, taken in order. At most `window` pieces are in memory.
template <typename Row>
class OrderedPieces {
 public:
  using Read = std::function<ImportPiece<Row>(size_t)>;
  OrderedPieces(size_t pieces, unsigned threads, Read read)
      : pieces_(pieces), window_(2 * threads + 2), read_(std::move(read)), ready_(pieces) {
    for (unsigned t = 0; t < std::max(1u, threads); ++t) threads_.emplace_back([this] { Work(); });
  }
  ~OrderedPieces() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  // The next piece in order; call exactly `pieces` times.
  ImportPiece<Row> Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return ready_[taken_].has_value(); });
    ImportPiece<Row> piece = std::move(*ready_[taken_]);
    ready_[taken_++].reset();
    lock.unlock();
    changed_.notify_all();
    return piece;
  }

 private:
  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stop_ || next_ >= pieces_ || next_ < taken_ + window_; });
      if (stop_ || next_ >= pieces_) return;
      const size_t mine = next_++;
      lock.unlock();
      ImportPiece<Row> piece = read_(mine);
      lock.lock();
      ready_[mine] = std::move(piece);
      changed_.notify_all();
    }
  }

  const size_t pieces_, window_;
  const Read read_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::optional<ImportPiece<Row>>> ready_;  // guarded by mutex_, as are the rest
  size_t next_ = 0, taken_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// Events of one commit: one batch per user, in order of first appearance, and where each event came from.
struct Commit {
  std::vector<HistoryStore::UserBatch> batches;
  std::vector<std::vector<uint64_t>> lines;  // [batch][event]
};

// Takes events [*at, ...) of `rows` until a limit is reached.
Commit NextCommit(const std::string& ns, std::vector<ImportedEvent>* rows, size_t* at) {
  Commit commit;
  absl::flat_hash_map<std::string, size_t> index;
  for (size_t taken = 0; *at < rows->size() && taken < kCommitEventsMax; ++taken, ++*at) {
    ImportedEvent& row = (*rows)[*at];
    const auto [batch, added] = index.try_emplace(row.user, commit.batches.size());
    if (added) {
      commit.batches.push_back({.user = {.ns = ns, .user = std::move(row.user)}, .events = {}});
      commit.lines.emplace_back();
    }
    std::vector<Event>& events = commit.batches[batch->second].events;
    if (events.size() == kBatchEventsMax) break;
    events.push_back(std::move(row.event));
    commit.lines[batch->second].push_back(row.line);
  }
  return commit;
}

absl::Status Write(Commit commit, const IngestOptions& options, HistoryStore* history, std::vector<BadRow>* bad,
                   IngestCounts* counts) {
  const auto results = history->AppendMany(commit.batches, options.now_us, Durability::kBuffered);
  if (!results.ok()) return results.status();
  for (size_t b = 0; b < results->size(); ++b) {
    const AppendResult& result = (*results)[b];
    counts->accepted += result.accepted;
    counts->duplicate += result.duplicate;
    counts->conflict += result.conflict;
    counts->rejected += result.rejected;
    if (result.rejected + result.conflict == 0) continue;
    for (size_t e = 0; e < result.outcomes.size(); ++e) {
      const EventOutcome outcome = result.outcomes[e];
      if (outcome != EventOutcome::kRejected && outcome != EventOutcome::kConflict) continue;
      const char* what = outcome == EventOutcome::kConflict ? "conflict" : "rejected";
      bad->push_back({commit.lines[b][e], absl::StrCat(what, ": ", result.reasons[e]), ""});
    }
  }
  return absl::OkStatus();
}

void ReportInOrder(std::vector<BadRow> bad, const BadRowSink& sink) {
  std::stable_sort(bad.begin(), bad.end(), [](const BadRow& a, const BadRow& b) { return a.line < b.line; });
  for (const BadRow& row : bad) sink(row);
}

uint64_t TotalBytes(const ImportFile& file) {
  uint64_t total = 0;
  for (size_t i = 0; i < file.pieces(); ++i) total += file.piece_bytes(i);
  return total;
}

}  // namespace

absl::StatusOr<IngestCounts> IngestEvents(const ImportFile& file, const IngestOptions& options, HistoryStore* history,
                                          const BadRowSink& bad, const ByteProgress& progress) {
  IngestCounts counts;
  const uint64_t total = TotalBytes(file);
  uint64_t done = 0;
  OrderedPieces<ImportedEvent> pieces(file.pieces(), options.threads, [&](size_t i) { return file.ReadEvents(i); });
  for (size_t i = 0; i < file.pieces(); ++i) {
    ImportPiece<ImportedEvent> piece = pieces.Take();
    counts.rows += piece.records;
    counts.events += piece.rows.size();
    counts.unreadable += piece.bad.size();
    absl::Status written;
    for (size_t at = 0; at < piece.rows.size() && written.ok();) {
      written = Write(NextCommit(options.ns, &piece.rows, &at), options, history, &piece.bad, &counts);
    }
    ReportInOrder(std::move(piece.bad), bad);
    if (!written.ok()) return written;
    done += file.piece_bytes(i);
    if (progress) progress(done, total);
  }
  // One sync for all: nothing was reported as done before.
  if (auto synced = history->AppendMany({}, options.now_us, Durability::kSynced); !synced.ok()) return synced.status();
  return counts;
}

absl::StatusOr<IngestCounts> IngestItems(const ImportFile& file, const IngestOptions& options, Catalog* catalog,
                                         const BadRowSink& bad, const ByteProgress& progress) {
  IngestCounts counts;
  const uint64_t total = TotalBytes(file);
  uint64_t done = 0;
  OrderedPieces<Item> pieces(file.pieces(), options.threads, [&](size_t i) { return file.ReadItems(i); });
  for (size_t i = 0; i < file.pieces(); ++i) {
    ImportPiece<Item> piece = pieces.Take();
    counts.rows += piece.records;
    counts.events += piece.rows.size();
    counts.unreadable += piece.bad.size();
    ReportInOrder(std::move(piece.bad), bad);
    for (size_t at = 0; at < piece.rows.size(); at += kCatalogBatch) {
      const auto batch = std::span(piece.rows).subspan(at, std::min(kCatalogBatch, piece.rows.size() - at));
      if (auto s = catalog->Upsert(options.ns, batch, options.allow_immutable_change); !s.ok()) return s;
      counts.accepted += batch.size();
    }
    done += file.piece_bytes(i);
    if (progress) progress(done, total);
  }
  return counts;
}

}  // namespace backstory
