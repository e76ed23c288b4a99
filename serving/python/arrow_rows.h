// An Arrow record batch (the C data interface: two structs, no library) as rows to score. Knows no Python. Numbers are
// never copied; texts become views of Arrow's bytes.
#ifndef BACKSTORY_SERVING_PYTHON_ARROW_ROWS_H_
#define BACKSTORY_SERVING_PYTHON_ARROW_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "arrow/c/abi.h"
#include "serving/engine/batch/batch_rows.h"

namespace backstory {

// The rows of one record batch. Owns what it was made of; not thread-safe while it is made, constant afterwards.
class ArrowRows {
 public:
  // Takes both structs over: released and emptied by the time the result is gone, or at once on failure. Columns bear
  // the names of batch_rows.h, any order. Users, ids, texts: utf8 or large utf8; users and ids also int64 or uint64;
  // times: int64; numbers: float64, float32, int64, int32. INVALID_ARGUMENT names the column and what is wrong: an
  // unknown name, a name given twice, another type, a batch that is no struct of equally long columns.
  //
  // The interface carries no buffer sizes, so the arrays must be valid: what comes from outside is checked first by
  // who reads it (pyarrow's validate(full=True)).
  static absl::StatusOr<std::unique_ptr<ArrowRows>> Make(ArrowSchema* schema, ArrowArray* array);
  ~ArrowRows();
  ArrowRows(const ArrowRows&) = delete;
  ArrowRows& operator=(const ArrowRows&) = delete;

  const BatchRows& rows() const { return rows_; }
  // Values that a column of uint64 cannot hold, ascending by row: those rows count as missing in rows().
  const std::vector<BadBatchRow>& bad() const { return bad_; }

 private:
  struct Column;
  ArrowRows() = default;
  absl::Status AddAll();
  absl::Status Add(const Column& column);
  absl::Status AddUsers(const Column& column);
  absl::Status AddIds(const Column& column, WholeColumn<uint64_t>* to);
  absl::Status AddTimes(const Column& column, WholeColumn<int64_t>* to);
  absl::Status AddTexts(const Column& column, TextColumn* to);
  absl::Status AddNumbers(const Column& column, std::string_view name, std::vector<NumberFeature>* to);
  template <typename T>
  std::span<const T> ValuesOf(const Column& column);
  // `bytes` of memory that lives as long as this.
  void* Own(size_t bytes);

  ArrowSchema schema_ = {};
  ArrowArray array_ = {};
  BatchRows rows_;
  std::vector<BadBatchRow> bad_;
  std::vector<std::unique_ptr<std::byte[]>> owned_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_PYTHON_ARROW_ROWS_H_
