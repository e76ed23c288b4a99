// The import itself, apart from the command line: files -> catalog and histories. Parses on several threads, writes in
// file order from the calling one, so that the outcome (which of two conflicting rows is first) does not depend on
// timing.
#ifndef BACKSTORY_SERVING_CLI_INGEST_RUN_H_
#define BACKSTORY_SERVING_CLI_INGEST_RUN_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/io/import_file.h"
#include "store/catalog.h"
#include "store/history_store.h"

namespace backstory {

struct IngestOptions {
  std::string ns = "default";
  unsigned threads = 2;  // parsers
  int64_t now_us = 0;    // ingest time of every event
  bool allow_immutable_change = false;
};

struct IngestCounts {
  uint64_t rows = 0;    // rows of the file, good and bad
  uint64_t events = 0;  // events they gave
  uint64_t accepted = 0, duplicate = 0, conflict = 0, rejected = 0;
  uint64_t unreadable = 0;  // bad rows of the file
  uint64_t bad() const { return unreadable + conflict + rejected; }
};

using BadRowSink = std::function<void(const BadRow&)>;
using ByteProgress = std::function<void(uint64_t done, uint64_t total)>;  // bytes of the file; may be empty

// On return everything is durable. Events are idempotent: an import that was interrupted is simply run again.
// Unreadable rows, rejections and conflicts go to `bad` in file order; other failures of the store end the import.
absl::StatusOr<IngestCounts> IngestEvents(const ImportFile& file, const IngestOptions& options, HistoryStore* history,
                                          const BadRowSink& bad, const ByteProgress& progress);

absl::StatusOr<IngestCounts> IngestItems(const ImportFile& file, const IngestOptions& options, Catalog* catalog,
                                         const BadRowSink& bad, const ByteProgress& progress);

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_INGEST_RUN_H_
