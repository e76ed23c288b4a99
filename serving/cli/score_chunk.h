// Some rows of a text file: what the scorer needs as columns, what the output repeats as text, and what was wrong.
#ifndef BACKSTORY_SERVING_CLI_SCORE_CHUNK_H_
#define BACKSTORY_SERVING_CLI_SCORE_CHUNK_H_

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "serving/engine/batch/batch_rows.h"

namespace backstory {

// A value as it stands in the file.
struct ScoreCell {
  enum Kind {
    kMissing,
    kLoose,   // of CSV or a constant: text, or a number, as the field needs
    kText,    // a JSON string, without its quotes
    kNumber,  // a JSON number, as written
    kOther,   // JSON of another type, as written
  } kind = kMissing;
  std::string_view text;
};

enum ScoreField : size_t {
  kScoreUser,
  kScoreItem,
  kScoreTime,
  kScoreAsOf,
  kScoreKnownBy,
  kScoreNamespace,
  kScoreScene,
  kScoreRequestId,
  kScoreFields
};
extern const std::array<std::string_view, kScoreFields> kScoreFieldNames;

// One row: the fields, then the features and the kept columns by their index.
struct ScoreCells {
  std::array<ScoreCell, kScoreFields> fields;
  std::vector<ScoreCell> features, keep;
};

struct BadScoreRow {
  uint64_t row = 0;    // of the input, from 0
  uint64_t line = 0;   // where it starts, from 1
  std::string column;  // empty: the row as a whole
  std::string reason;
  std::string text;  // the row, cut at 1,000 bytes
};

// Not copyable: columns point into it. The input's text must outlive it.
class ScoreChunk {
 public:
  explicit ScoreChunk(uint64_t first_row) : first_row_(first_row) {}
  ScoreChunk(const ScoreChunk&) = delete;
  ScoreChunk& operator=(const ScoreChunk&) = delete;

  // A row that could be taken apart; it may still turn out bad. `features` names every feature there is by now.
  void Add(const ScoreCells& cells, uint64_t line, std::string_view text, const std::vector<std::string>& features,
           int64_t time_unit_us);
  void AddBad(uint64_t line, std::string_view text, std::string column, std::string reason);
  // Text that does not lie in the input.
  std::string_view Keep(std::string text) { return kept_texts_.emplace_back(std::move(text)); }

  // When all rows are in: the columns to score. Their row i is input row RowOf(i).
  const BatchRows& Columns();
  uint64_t RowOf(size_t i) const { return rows_[i].row; }
  // Rows that the scorer refused join those that could not be read.
  std::vector<BadScoreRow> Bad(const std::vector<BadBatchRow>& refused) const;

  uint64_t first_row() const { return first_row_; }
  uint64_t rows() const { return records_; }  // of the input, good and bad
  const ScoreCell& user(size_t i) const { return rows_[i].user; }
  const ScoreCell& item(size_t i) const { return rows_[i].item; }
  int64_t time_us(size_t i) const { return times_.values[i]; }
  std::span<const ScoreCell> keep(size_t i) const { return {keep_.data() + i * keep_columns_, keep_columns_}; }

 private:
  template <typename T>
  struct Column {
    std::vector<T> values;
    std::vector<uint8_t> bits;
    void Add(T value, bool there);
    void Pad(size_t rows);  // missing values up to so many
    WholeColumn<T> view() const { return {values, {bits.data()}}; }
  };
  struct Row {
    uint64_t row = 0, line = 0;
    std::string_view text;
    ScoreCell user, item;
  };
  struct Feature {
    std::string field;
    Column<double> numbers;               // of one with numbers,
    std::vector<std::string_view> texts;  // or with texts
  };
  struct Parsed;
  // False: `problem` has column and reason.
  static bool Parse(const ScoreCells& cells, const std::vector<std::string>& features, int64_t time_unit_us,
                    Parsed* parsed, BadScoreRow* problem);
  void AddFeatures(const Parsed& parsed, const std::vector<std::string>& features);

  const uint64_t first_row_;
  uint64_t records_ = 0;
  std::vector<Row> rows_;
  std::vector<std::string_view> users_, namespaces_, scenes_;
  Column<uint64_t> items_, request_ids_;
  Column<int64_t> times_, as_of_, known_by_;
  std::vector<Feature> features_;
  size_t keep_columns_ = 0;
  std::vector<ScoreCell> keep_;  // [rows, keep_columns_]
  std::vector<BadScoreRow> bad_;
  std::deque<std::string> kept_texts_;  // does not move its elements
  BatchRows columns_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SCORE_CHUNK_H_
