// A text file mapped read-only, and cut into pieces that can be parsed in parallel.
#ifndef BACKSTORY_FEATURES_IO_TEXT_FILE_H_
#define BACKSTORY_FEATURES_IO_TEXT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace backstory {

// Move-only; the text is valid as long as the object. A file that shrinks while it is read kills the process (SIGBUS),
// as with every mapping: do not truncate files that are being imported.
class TextFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT (no regular file), naming the path.
  static absl::StatusOr<TextFile> Open(const std::string& path);
  std::string_view text() const { return text_; }

 private:
  std::shared_ptr<const void> mapping_;
  std::string_view text_;
};

// A run of whole records. `first_line` is the 1-based number of its first line in the file.
struct TextPiece {
  std::string_view text;
  uint64_t first_line = 1;
};

// CSV quoting, byte by byte: a quote opens at the start of a field only, and again right after it closed (""). A quote
// that does not close within kQuotedBytesMax is an error of its line, not the end of the file.
class QuoteScanner {
 public:
  static constexpr size_t kQuotedBytesMax = 1 << 20;
  // True if c, at offset `at`, is a line end outside quotes.
  bool EndsRecord(char c, size_t at) {
    if (open_) {
      if (c == '"') open_ = false;
      can_open_ = c == '"';
      return false;
    }
    if (c == '"' && can_open_) {
      open_ = true;
      opened_at_ = at;
      return false;
    }
    can_open_ = c == ',' || c == '\n';
    return c == '\n';
  }
  bool open() const { return open_; }
  size_t opened_at() const { return opened_at_; }
  bool Overdue(size_t at) const { return open_ && at - opened_at_ > kQuotedBytesMax; }

 private:
  bool open_ = false, can_open_ = true;
  size_t opened_at_ = 0;
};

// Cuts `text` (which starts at line `first_line`) after line ends, about every `bytes` bytes. With `quoted`, line ends
// inside CSV quotes do not count. One pass over the text.
std::vector<TextPiece> SplitLines(std::string_view text, uint64_t first_line, size_t bytes, bool quoted);

}  // namespace backstory

#endif  // BACKSTORY_FEATURES_IO_TEXT_FILE_H_
