#include "features/io/text_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace backstory {

absl::StatusOr<TextFile> TextFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, path);
  const absl::Cleanup close_fd = [fd] { ::close(fd); };
  struct stat info;
  if (::fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  TextFile file;
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return file;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, path);
  file.mapping_ = std::shared_ptr<const void>(data, [size](const void* p) { ::munmap(const_cast<void*>(p), size); });
  file.text_ = {static_cast<const char*>(data), size};
  return file;
}

std::vector<TextPiece> SplitLines(std::string_view text, uint64_t first_line, size_t bytes, bool quoted) {
  std::vector<TextPiece> pieces;
  size_t begin = 0;
  uint64_t begin_line = first_line;
  QuoteScanner quotes;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool ends = quoted ? quotes.EndsRecord(text[i], i) : text[i] == '\n';
    if (quoted && quotes.Overdue(i)) {  // go back to the line that opened it
      i = text.find('\n', quotes.opened_at());
      if (i == std::string_view::npos) break;
      quotes = QuoteScanner();
    } else if (!ends) {
      continue;
    }
    if (i + 1 - begin < bytes) continue;
    pieces.push_back({text.substr(begin, i + 1 - begin), begin_line});
    begin_line += static_cast<uint64_t>(std::count(text.begin() + begin, text.begin() + i + 1, '\n'));
    begin = i + 1;
  }
  if (begin < text.size()) pieces.push_back({text.substr(begin), begin_line});
  return pieces;
}

}  // namespace backstory
