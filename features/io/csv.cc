#include "features/io/csv.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace backstory {
namespace {

// Length of the record at the head of `text`, its line end excluded.
size_t RecordLength(std::string_view text) {
  QuoteScanner quotes;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quotes.EndsRecord(text[i], i)) return i;
    if (quotes.Overdue(i)) break;
  }
  return quotes.open() ? std::min(text.find('\n', quotes.opened_at()), text.size()) : text.size();
}

}  // namespace

bool CsvReader::Next() {
  while (!rest_.empty()) {
    const size_t length = RecordLength(rest_);
    line_ = next_line_;
    record_ = rest_.substr(0, length);
    const bool ended = length < rest_.size();
    rest_.remove_prefix(length + (ended ? 1 : 0));
    next_line_ += static_cast<uint64_t>(std::count(record_.begin(), record_.end(), '\n')) + (ended ? 1 : 0);
    if (record_.ends_with('\r')) record_.remove_suffix(1);
    if (record_.empty()) continue;
    Parse();
    return true;
  }
  return false;
}

// Reads a quoted field at the head of `left`; false if the quotes do not end where a field ends.
bool CsvReader::ParseQuoted(std::string_view* left) {
  left->remove_prefix(1);
  size_t end = left->find('"');
  if (end == std::string_view::npos) return false;
  const bool doubled = end + 1 < left->size() && (*left)[end + 1] == '"';
  if (!doubled) {
    fields_.push_back(left->substr(0, end));
    left->remove_prefix(end + 1);
    return left->empty() || left->front() == ',';
  }
  if (unescaped_used_ == unescaped_.size()) return false;
  std::string* text = &unescaped_[unescaped_used_++];
  text->clear();
  while (true) {
    if (end == std::string_view::npos) return false;
    text->append(left->substr(0, end));
    left->remove_prefix(end + 1);
    if (!left->starts_with('"')) break;
    text->push_back('"');
    left->remove_prefix(1);
    end = left->find('"');
  }
  fields_.push_back(*text);
  return left->empty() || left->front() == ',';
}

void CsvReader::Parse() {
  fields_.clear();
  error_.clear();
  unescaped_used_ = 0;
  if (record_.size() > kFieldBytesMax) {
    error_ = absl::StrCat("record of ", record_.size(), " bytes, limit ", kFieldBytesMax);
    return;
  }
  const size_t commas = static_cast<size_t>(std::count(record_.begin(), record_.end(), ','));
  // The storage must not move while fields point into it.
  if (record_.find('"') != std::string_view::npos && unescaped_.size() < commas + 1) unescaped_.resize(commas + 1);
  std::string_view left = record_;
  while (true) {
    if (fields_.size() == kFieldsMax) {
      error_ = absl::StrCat("more than ", kFieldsMax, " fields");
      return;
    }
    if (left.starts_with('"')) {
      const size_t number = fields_.size() + 1;
      if (!ParseQuoted(&left)) {
        error_ = absl::StrCat("field ", number, ": quotes do not end where the field ends");
        return;
      }
    } else {
      const size_t comma = left.find(',');
      fields_.push_back(left.substr(0, comma));
      left.remove_prefix(comma == std::string_view::npos ? left.size() : comma);
    }
    if (left.empty()) return;
    left.remove_prefix(1);  // the comma; what follows is a field, be it empty
  }
}

void AppendCsvField(std::string_view field, std::string* out) {
  if (field.find_first_of(",\"\r\n") == std::string_view::npos && !field.starts_with('#')) {
    out->append(field);
    return;
  }
  out->push_back('"');
  for (char c : field) {
    if (c == '"') out->push_back('"');
    out->push_back(c);
  }
  out->push_back('"');
}

TextPiece SkipCsvComments(std::string_view text) {
  TextPiece piece{text, 1};
  if (piece.text.starts_with("\xEF\xBB\xBF")) piece.text.remove_prefix(3);
  while (piece.text.starts_with('#')) {
    const size_t end = piece.text.find('\n');
    piece.text.remove_prefix(end == std::string_view::npos ? piece.text.size() : end + 1);
    ++piece.first_line;
  }
  return piece;
}

}  // namespace backstory
