// Internal to features/io: one row of somebody's file -> events or an item, by a mapping.
#ifndef BACKSTORY_FEATURES_IO_IMPORT_ROWS_H_
#define BACKSTORY_FEATURES_IO_IMPORT_ROWS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/io/import_file.h"

namespace backstory {

// Where each field of a row comes from. Thread-safe.
class RowReader {
 public:
  // For CSV: resolves the header. The names of columns without a use are appended to `unused`.
  static absl::StatusOr<RowReader> ForCsv(const std::vector<std::string_view>& header, ImportFile::Content content,
                                          const ImportMapping& mapping, std::vector<std::string>* unused);
  static RowReader ForJson(const ImportMapping& mapping) { return RowReader(mapping); }

  // Appends to `rows`; on an error appends nothing.
  absl::Status ReadCsvEvent(const std::vector<std::string_view>& fields, std::vector<ImportedEvent>* rows) const;
  absl::Status ReadCsvItem(const std::vector<std::string_view>& fields, std::vector<Item>* rows) const;
  absl::Status ReadJsonEvent(std::string_view line, std::vector<ImportedEvent>* rows) const;
  absl::Status ReadJsonItem(std::string_view line, std::vector<Item>* rows) const;

 private:
  // The fields that CSV rows read one by one; CsvFieldName gives their names.
  enum CsvField : size_t {
    kUser,
    kKind,
    kEventId,
    kRevision,
    kTombstone,
    kTimeUs,
    kItemId,
    kRequestId,
    kPosition,
    kScene,
    kAction,
    kValue,
    kLabel,
    kExposureId,
    kLabelTimeUs,
    kEmbeddingIds,
    kCategories,
    kSid,
    kYear,
    kTitle,
    kText,
    kEmbedding,
    kEmbeddingSpace,
    kCsvFields
  };
  struct Slot {
    size_t column = SIZE_MAX;
    std::string constant;
  };
  static std::string_view CsvFieldName(CsvField field);

  explicit RowReader(const ImportMapping& mapping) : mapping_(mapping) {}
  // The row's value of a field: its column, else the constant, else empty.
  std::string_view Value(const std::vector<std::string_view>& fields, CsvField field) const {
    const Slot& slot = slots_[field];
    const bool filled = slot.column != SIZE_MAX && !fields[slot.column].empty();
    return filled ? fields[slot.column] : std::string_view(slot.constant);
  }
  absl::Status Finish(std::string user, Event event, double label, int64_t label_us,
                      std::vector<ImportedEvent>* rows) const;
  absl::Status FinishItem(Item item, std::vector<Item>* rows) const;

  ImportMapping mapping_;
  std::array<Slot, kCsvFields> slots_;
  std::vector<std::pair<std::string, size_t>> context_, numbers_, strings_;  // name -> column index
  size_t columns_ = 0;
};

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_IMPORT_ROWS_H_
