// Rows to score from CSV or JSON lines, so many at a time. A row that cannot be read is reported and costs the others
// nothing. docs/reference/batch-scoring.md has the fields.
#ifndef BACKSTORY_SERVING_CLI_SCORE_INPUT_H_
#define BACKSTORY_SERVING_CLI_SCORE_INPUT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "features/io/csv.h"
#include "features/io/text_file.h"
#include "serving/cli/score_chunk.h"

namespace backstory {

struct ScoreMapping {
  std::map<std::string, std::string> columns;    // field -> column; others use the column of their own name
  std::map<std::string, std::string> constants;  // field -> value of rows whose column is absent or empty
  int64_t time_unit_us = 1;
  std::vector<std::string> keep;  // input columns copied to the output
};

// "user=uid,time=ts" and "scene=feed". INVALID_ARGUMENT naming an unknown field or a malformed pair.
absl::Status AddScoreColumns(std::string_view pairs, ScoreMapping* mapping);
absl::Status AddScoreConstants(std::string_view pairs, ScoreMapping* mapping);

// Reads front to back. Not thread-safe.
class ScoreInput {
 public:
  // By suffix, as ImportFile::Open. Errors of the file; INVALID_ARGUMENT naming what is wrong with the header: a mapped
  // or kept column that is not there, a needed field without column and constant, two columns for one field.
  static absl::StatusOr<ScoreInput> Open(const std::string& path, const ScoreMapping& mapping);

  bool csv() const { return csv_; }
  uint64_t bytes() const { return text_.text().size(); }
  // XXH3-64 over the whole file, 16 hex digits. Reads it once.
  std::string Fingerprint() const;

  bool AtEnd();  // no further row
  uint64_t bytes_left() const { return left_.text.size(); }
  size_t Skip(size_t rows);                       // returns how many there were
  std::unique_ptr<ScoreChunk> Read(size_t rows);  // at most so many

  // Columns or keys seen so far that nobody asked for; worth telling the user.
  const std::vector<std::string>& unused() const { return unused_; }

 private:
  // Where the value of a column or key goes.
  struct Target {
    enum Kind { kField, kFeature, kKeep, kRefused } kind = kField;
    size_t index = 0;
  };

  explicit ScoreInput(const ScoreMapping& mapping) : mapping_(mapping) {}
  absl::Status UseHeader(const std::vector<std::string_view>& header);
  const std::vector<Target>& TargetsOf(std::string_view column);
  size_t FeatureOf(std::string_view field);
  std::string WhyNoFeature(const std::string& field) const;
  bool NextLine(std::string_view* line, uint64_t* number);
  bool NextCsv(ScoreCells* cells, uint64_t* line, std::string_view* text, std::string* problem, ScoreChunk* chunk);
  bool NextJson(ScoreCells* cells, uint64_t* line, std::string_view* text, std::string* problem, ScoreChunk* chunk);
  std::string Place(const std::vector<Target>& targets, const ScoreCell& cell, ScoreCells* cells) const;

  ScoreMapping mapping_;
  bool csv_ = false;
  TextFile text_;
  TextPiece left_;  // not read yet
  std::unique_ptr<CsvReader> reader_;
  uint64_t rows_read_ = 0;
  std::vector<std::vector<Target>> columns_;                         // CSV: by column
  std::map<std::string, std::vector<Target>, std::less<>> targets_;  // by name of a column or key
  std::vector<std::string> features_;                                // fields with a prefix, in order of appearance
  std::vector<std::string> refusals_;                                // why a key cannot be a feature
  std::vector<std::string> unused_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SCORE_INPUT_H_
