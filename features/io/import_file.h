// Reads an event or item file (CSV or JSON lines) piece by piece, so that several threads can parse one file. A row
// that cannot be read is reported with its line and reason, never dropped silently and never fatal for the others.
#ifndef BACKSTORY_FEATURES_IO_IMPORT_FILE_H_
#define BACKSTORY_FEATURES_IO_IMPORT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "features/event.h"
#include "features/io/import_mapping.h"
#include "features/item.h"

namespace backstory {

struct ImportedEvent {
  std::string user;
  Event event;
  uint64_t line = 0;  // 1-based, where its row starts
};

struct BadRow {
  uint64_t line = 0;   // 1-based, where the row starts
  std::string reason;  // names the field
  std::string text;    // the row, cut at 1,000 bytes
};

template <typename Row>
struct ImportPiece {
  std::vector<Row> rows;    // in file order; one input row may give an exposure and the action of its label
  std::vector<BadRow> bad;  // in file order
  uint64_t records = 0;     // input rows seen, good and bad
};

class RowReader;  // columns -> fields of one file; in import_rows.h

// Immutable once open; Read is thread-safe.
class ImportFile {
 public:
  enum class Content { kEvents, kItems };

  // By suffix: .csv, or .jsonl / .ndjson / .json (one object a line). INVALID_ARGUMENT naming the path: another suffix,
  // no header, a mapped column that the header lacks, a field that is needed and has neither column nor constant.
  static absl::StatusOr<ImportFile> Open(const std::string& path, Content content, const ImportMapping& mapping);
  ~ImportFile();
  ImportFile(ImportFile&&) noexcept;
  ImportFile& operator=(ImportFile&&) noexcept;

  const std::string& path() const;
  size_t pieces() const;
  size_t piece_bytes(size_t piece) const;
  const std::vector<std::string>& unused_columns() const;  // of the header; worth telling the user

  ImportPiece<ImportedEvent> ReadEvents(size_t piece) const;  // of a file opened as kEvents
  ImportPiece<Item> ReadItems(size_t piece) const;            // of a file opened as kItems

 private:
  struct Parts;
  explicit ImportFile(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// All of a small file. Bad rows are appended to `bad`.
absl::StatusOr<std::vector<ImportedEvent>> ReadEventFile(const std::string& path, const ImportMapping& mapping,
                                                         std::vector<BadRow>* bad);
absl::StatusOr<std::vector<Item>> ReadItemFile(const std::string& path, const ImportMapping& mapping,
                                               std::vector<BadRow>* bad);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_IMPORT_FILE_H_
