// Scores and bad rows as CSV or JSON lines. docs/reference/batch-scoring.md has the columns.
#ifndef BACKSTORY_SERVING_CLI_SCORE_OUTPUT_H_
#define BACKSTORY_SERVING_CLI_SCORE_OUTPUT_H_

#include <string>
#include <vector>

#include "serving/cli/score_chunk.h"
#include "serving/engine/batch/batch_rows.h"

namespace backstory {

// Immutable.
class ScoreFormat {
 public:
  ScoreFormat(bool csv, std::vector<std::string> tasks, std::vector<std::string> keep);

  const char* extension() const { return csv_ ? ".csv" : ".jsonl"; }
  // What a file begins with; nothing for JSON lines.
  const std::string& header() const { return header_; }
  const std::string& bad_header() const { return bad_header_; }
  const std::vector<std::string>& columns() const { return columns_; }

  // Rows that were scored, in input order.
  std::string Rows(const ScoreChunk& chunk, const BatchScores& scores) const;
  std::string BadRows(const std::vector<BadScoreRow>& rows) const;

 private:
  void AppendRow(const ScoreChunk& chunk, const BatchScores& scores, size_t i, std::string* out) const;

  const bool csv_;
  std::vector<std::string> columns_;
  std::vector<std::string> before_;  // what comes before the value of each column
  std::string header_, bad_header_;
};

}  // namespace backstory

#endif  // BACKSTORY_SERVING_CLI_SCORE_OUTPUT_H_
