// CSV by RFC 4180: comma, optional double quotes ("" inside is one quote), records end with LF or CRLF, quoted fields
// may hold line ends. A header row comes first; lines before it that start with '#' are comments.
#ifndef BACKSTORY_FEATURES_IO_CSV_H_
#define BACKSTORY_FEATURES_IO_CSV_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "features/io/text_file.h"

namespace backstory {

// Reads the records of one piece. Never fails as a whole: a malformed record has an `error` and reading goes on with
// the next line.
class CsvReader {
 public:
  static constexpr size_t kFieldsMax = 1024;
  static constexpr size_t kFieldBytesMax = 1 << 20;

  explicit CsvReader(TextPiece piece) : rest_(piece.text), next_line_(piece.first_line) {}

  // False at the end. Empty lines are skipped. The views are valid until the next call.
  bool Next();
  const std::vector<std::string_view>& fields() const { return fields_; }
  uint64_t line() const { return line_; }              // where the record starts
  const std::string& error() const { return error_; }  // empty if the record is well formed
  std::string_view record() const { return record_; }  // as it stands in the file, without the line end
  std::string_view rest() const { return rest_; }      // what is left to read
  uint64_t next_line() const { return next_line_; }

 private:
  void Parse();
  bool ParseQuoted(std::string_view* left);

  std::string_view rest_, record_;
  uint64_t line_ = 0, next_line_;
  std::vector<std::string_view> fields_;
  std::vector<std::string> unescaped_;  // storage of fields that had doubled quotes
  size_t unescaped_used_ = 0;
  std::string error_;
};

// Writes a field, quoted if it has to be.
void AppendCsvField(std::string_view field, std::string* out);

// Skips a UTF-8 byte order mark and comment lines at the head of a file.
TextPiece SkipCsvComments(std::string_view text);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_CSV_H_
